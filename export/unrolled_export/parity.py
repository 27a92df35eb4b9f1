"""The check that ends every export: both graphs compute what the reference does.

Every comparison feeds the same tokens from the zero state and carries the state from run to
run. It differs in how the tokens are cut into runs, and in which rows share a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import numpy as np

from unrolled_export.errors import ParityError
from unrolled_export.network import Floats, Network
from unrolled_export.reference import Reference, make_reference
from unrolled_export.runners import EngineRunner, PortableRunner, Runner, Tokens, zero_states

ROWS = 3
STEPS = 1024
GREEDY_STEPS = 256
GREEDY_STEPS_PER_RUN = 8
TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that float32 explains."""
CLEAR_MARGIN = 1e-3
"""Smallest gap between the two likeliest tokens, in nats, that decides a greedy choice."""


@dataclass(frozen=True)
class Parity:
    """What a check that passed has found."""

    reference: str
    tokens: int
    """Tokens whose log-probabilities were compared."""
    max_abs_logprob_error: float
    """In nats, over all comparisons."""
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Schedule:
    """One way of running the tokens."""

    what: str
    rows: tuple[int, ...]
    """Which rows share a run, and in which order."""
    steps: tuple[int, ...]
    """Steps of each run, over and over until the end."""


PORTABLE_SCHEDULES = (
    Schedule("in one chunk", (0, 1, 2), (STEPS,)),
    Schedule("in chunks of odd sizes", (0,), (1, 3, 7, 29, 101)),
    Schedule("with rows permuted", (2, 0, 1), (STEPS,)),
)
ENGINE_SCHEDULES = (
    Schedule("a row alone, one step a run", (0,), (1,)),
    Schedule("eight steps a run", (0, 1, 2), (8,)),
    Schedule("with rows permuted, in runs of odd sizes", (2, 0, 1), (5, 1, 13)),
)


def check_parity(network: Network, portable: bytes, engine: bytes) -> Parity:
    """Compare serialised graphs with the reference.

    Raises ParityError, naming graph and comparison, where a log-probability, a greedy choice
    or, between runs of the engine's graph, a single bit differs.
    """
    reference = make_reference(network)
    tokens = _tokens(network.vocabulary_size)
    truth = reference.logprobs(tokens[:, :-1])
    if not np.isfinite(truth).all():
        raise ParityError(f"{reference.name}: the network's log-probabilities are not finite")
    checks = _Checks(network, reference, tokens, truth)
    for schedule in PORTABLE_SCHEDULES:
        checks.run(PortableRunner(network, portable), schedule)
    engine_runner = EngineRunner(network, engine)
    runs = [checks.run(engine_runner, schedule) for schedule in ENGINE_SCHEDULES]
    _check_same_bits(runs)
    _check_greedy(network, reference, engine_runner, tokens[:, 0])
    return Parity(reference.name, ROWS * STEPS, checks.worst)


def _tokens(vocabulary: int) -> Tokens:
    """The tokens of every check [ROWS, STEPS + 1], the same in every export."""
    return np.random.default_rng(0).integers(0, vocabulary, (ROWS, STEPS + 1))


class _Checks:
    """Comparisons with one reference; keeps the largest error."""

    def __init__(
        self, network: Network, reference: Reference, tokens: Tokens, truth: Floats
    ) -> None:
        self._network, self._reference = network, reference
        self._tokens, self._truth = tokens, truth
        self.worst = 0.0

    def run(self, runner: Runner, schedule: Schedule) -> dict[int, Floats]:
        """Run a schedule and compare; returns log-probabilities [STEPS, V] by row."""
        rows = list(schedule.rows)
        states = zero_states(self._network, len(rows))
        done, parts = 0, []
        for steps in cycle(schedule.steps):
            window = self._tokens[rows, done : done + steps + 1]
            logprobs, states = runner.advance(window, states)
            parts.append(logprobs)
            done += steps
            if done >= STEPS:
                break
        result = np.concatenate(parts, axis=1)
        self._compare(f"{runner.name}, {schedule.what}", result, rows)
        return dict(zip(rows, result, strict=True))

    def _compare(self, where: str, logprobs: Floats, rows: list[int]) -> None:
        errors = np.abs(logprobs - self._truth[rows]).max(axis=-1)
        worst = float(errors.max())
        if not worst <= TOLERANCE:
            row, step = np.unravel_index(errors.argmax(), errors.shape)
            raise ParityError(
                f"{where}: a log-probability differs from {self._reference.name} by {worst:.1e} "
                f"at step {step} of row {rows[row]}; {TOLERANCE:.0e} is tolerated"
            )
        self.worst = max(self.worst, worst)


def _check_same_bits(runs: list[dict[int, Floats]]) -> None:
    """Compare the bits of every row in every run that has it."""
    first: dict[int, tuple[str, Floats]] = {}
    for schedule, run in zip(ENGINE_SCHEDULES, runs, strict=True):
        for row, logprobs in run.items():
            what, expected = first.setdefault(row, (schedule.what, logprobs))
            differing = (logprobs.view(np.uint32) != expected.view(np.uint32)).any(axis=-1)
            if differing.any():
                raise ParityError(
                    f"engine.onnx: row {row} gives other bits {schedule.what} than {what}, "
                    f"first at step {differing.argmax()}"
                )


def _check_greedy(
    network: Network, reference: Reference, engine: EngineRunner, pending: Tokens
) -> None:
    """Draw greedily, and ask the reference for its choice after the same tokens."""
    states = zero_states(network, len(pending))
    drawn = pending[:, None]
    while drawn.shape[1] <= GREEDY_STEPS:
        tokens, states = engine.draw(drawn[:, -1], GREEDY_STEPS_PER_RUN, states)
        drawn = np.concatenate([drawn, tokens], axis=1)
    truth = reference.logprobs(drawn[:, :-1])
    chosen = np.take_along_axis(truth, drawn[:, 1:, None], axis=-1)[..., 0]
    wrong = ~(truth.max(axis=-1) - chosen <= CLEAR_MARGIN)
    if wrong.any():
        row, step = np.unravel_index(wrong.argmax(), wrong.shape)
        raise ParityError(
            f"engine.onnx, greedily: chose token {drawn[row, step + 1]} at step {step} of row "
            f"{row}, {reference.name} token {truth[row, step].argmax()}"
        )

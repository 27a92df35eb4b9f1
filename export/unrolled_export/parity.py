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

LENGTHS = (1024, 256, 256)
"""Steps of every row of tokens. One long row shows whether errors grow."""
GREEDY_STEPS = 128
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
    """Steps of each run, over and over until the shortest row ends."""

    @property
    def length(self) -> int:
        """Steps in all."""
        return min(LENGTHS[row] for row in self.rows)


PORTABLE_SCHEDULES = (
    Schedule("in one chunk", (0,), (LENGTHS[0],)),
    Schedule("in chunks of odd sizes", (0,), (1, 3, 7, 29, 101)),
    Schedule("three rows at once", (0, 1, 2), (64,)),
    Schedule("with rows permuted", (2, 0, 1), (64,)),
)
ENGINE_SCHEDULES = (
    Schedule("one row, one step a run", (0,), (1,)),
    Schedule("three rows, eight steps a run", (0, 1, 2), (8,)),
    Schedule("rows permuted, runs of odd sizes", (2, 0, 1), (5, 1, 13)),
)


def check_parity(network: Network, portable: bytes, engine: bytes) -> Parity:
    """Compare serialised graphs with the reference.

    Raises ParityError, naming graph and comparison, where a log-probability, a greedy choice
    or, between runs of the engine's graph, a single bit differs.
    """
    reference = make_reference(network)
    checks = _Checks(network, reference)
    portable_runner = PortableRunner(network, portable)
    engine_runner = EngineRunner(network, engine)
    for schedule in PORTABLE_SCHEDULES:
        checks.run(portable_runner, schedule)
    runs = [checks.run(engine_runner, schedule) for schedule in ENGINE_SCHEDULES]
    _check_same_bits(runs)
    _check_greedy(network, reference, engine_runner)
    return Parity(reference.name, sum(LENGTHS), checks.worst)


def _tokens(network: Network) -> list[Tokens]:
    """Rows of tokens, each a step's longer than LENGTHS, the same in every export."""
    random = np.random.default_rng(0)
    return [random.integers(0, network.vocabulary_size, length + 1) for length in LENGTHS]


class _Checks:
    """Comparisons of log-probabilities with one reference; keeps the largest error."""

    def __init__(self, network: Network, reference: Reference) -> None:
        """Run the reference. Raises ParityError where the network overflows."""
        self._network, self._reference = network, reference
        self._tokens = _tokens(network)
        self._truth = [reference.logprobs(row[None, :-1])[0] for row in self._tokens]
        self.worst = 0.0
        if not all(np.isfinite(row).all() for row in self._truth):
            raise ParityError(f"{reference.name}: the network's log-probabilities are not finite")

    def run(self, runner: Runner, schedule: Schedule) -> dict[int, Floats]:
        """Run a schedule and compare; returns log-probabilities [T, V] by row."""
        tokens = np.stack([self._tokens[row][: schedule.length + 1] for row in schedule.rows])
        states = zero_states(self._network, len(tokens))
        done, parts, sizes = 0, [], cycle(schedule.steps)
        while done < schedule.length:
            steps = next(sizes)
            logprobs, states = runner.advance(tokens[:, done : done + steps + 1], states)
            parts.append(logprobs)
            done += steps
        by_row = dict(zip(schedule.rows, np.concatenate(parts, axis=1), strict=True))
        for row, result in by_row.items():
            self._compare(f"{runner.name}, {schedule.what}", row, result)
        return by_row

    def _compare(self, where: str, row: int, logprobs: Floats) -> None:
        errors = np.abs(logprobs - self._truth[row][: len(logprobs)]).max(axis=-1)
        worst = float(errors.max())
        # Not a number is not tolerated either.
        if not worst <= TOLERANCE:
            raise ParityError(
                f"{where}: a log-probability differs from {self._reference.name} by {worst:.1e} "
                f"at step {errors.argmax()} of row {row}; {TOLERANCE:.0e} is tolerated"
            )
        self.worst = max(self.worst, worst)


def _check_same_bits(runs: list[dict[int, Floats]]) -> None:
    """Compare the bits of every row in every run that has it."""
    first: dict[int, tuple[str, Floats]] = {}
    for schedule, run in zip(ENGINE_SCHEDULES, runs, strict=True):
        for row, logprobs in run.items():
            what, expected = first.setdefault(row, (schedule.what, logprobs))
            pairs = zip(logprobs, expected, strict=False)
            differing = [one.tobytes() != other.tobytes() for one, other in pairs]
            if any(differing):
                raise ParityError(
                    f"engine.onnx: row {row} has other bits with {schedule.what} than with "
                    f"{what}, first at step {differing.index(True)}"
                )


def _check_greedy(network: Network, reference: Reference, engine: EngineRunner) -> None:
    """Draw greedily, and ask the reference for its choice after the same tokens."""
    drawn = np.stack([row[:1] for row in _tokens(network)])
    states = zero_states(network, len(drawn))
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

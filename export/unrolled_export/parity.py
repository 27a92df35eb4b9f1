"""The check that ends every export: both graphs compute what the reference does.

The text is drawn from the model itself, but for every eighth token: there the vocabulary goes
by in its own order, so that rare tokens occur as well. Every comparison feeds the same text from
the zero state and carries the state from run to run; it differs in how the text is cut into
runs, and in which rows share a run.

Some trained networks are chaotic: two correct implementations whose roundings differ drift
apart by a constant factor a step, until they agree on nothing (a published GRU of two layers of
512 loses all agreement within 300 steps, PyTorch's own float32 against float64). Where a
comparison fails, it is therefore repeated with every row's state taken from the reference every
few steps, and decides then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from unrolled_export.errors import ParityError
from unrolled_export.network import Floats, Network
from unrolled_export.reference import Reference, States, Tokens, make_reference, zero_states
from unrolled_export.runners import DRAW, EngineRunner, PortableRunner, Runner

LENGTHS = (1024, 256, 256)
"""Steps of every row of text. One long row shows whether errors grow."""
SPAN = 8
"""Steps after which a network that is chaotic gets its state from the reference."""
TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that float32 explains."""
CLEAR_MARGIN = 1e-3
"""Smallest gap between the two likeliest tokens, in nats, that decides a greedy choice."""


@dataclass(frozen=True)
class Parity:
    """What a check that passed has found."""

    reference: str
    """What computes it, and whether its state was taken on the way."""
    tokens: int
    """Tokens whose log-probabilities were compared."""
    max_abs_logprob_error: float
    """In nats, over all comparisons."""
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Schedule:
    """One way of running the text."""

    what: str
    rows: tuple[int, ...]
    """Which rows share a run, and in which order."""
    steps: tuple[int, ...]
    """Steps of each run, over and over until the shortest row ends."""

    @property
    def length(self) -> int:
        """Steps in all."""
        return min(LENGTHS[row] for row in self.rows)

    def runs(self, span: int) -> Iterator[tuple[int, int]]:
        """First and last step (exclusive) of every run; none goes over a multiple of `span`."""
        start = 0
        for steps in cycle(self.steps):
            stop = min(start + steps, start - start % span + span, self.length)
            yield start, stop
            start = stop
            if start == self.length:
                return


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
    portable_runner = PortableRunner(network, portable)
    engine_runner = EngineRunner(network, engine)
    truth = _Truth(network, reference, _text(network, engine_runner))
    checks = _Checks(truth)
    for schedule in PORTABLE_SCHEDULES:
        checks.run(portable_runner, schedule)
    _check_same_bits([checks.run(engine_runner, schedule) for schedule in ENGINE_SCHEDULES])
    _check_greedy(truth, engine_runner)
    note = f", state taken every {SPAN} steps" if checks.is_chaotic else ""
    return Parity(reference.name + note, sum(LENGTHS), checks.worst)


def _text(network: Network, engine: EngineRunner) -> list[Tokens]:
    """Rows of tokens, each a step's longer than LENGTHS."""
    rows, size = len(LENGTHS), network.vocabulary_size
    told = np.full((rows, max(LENGTHS)), DRAW)
    told[:, ::SPAN] = np.arange(told[:, ::SPAN].size).reshape(rows, -1) % size
    first = np.arange(rows) % size
    drawn = engine.draw(first, told, zero_states(network, rows), greedy=False)
    if drawn.min() < 0 or drawn.max() >= size:
        raise ParityError("engine.onnx: drew a token that the vocabulary does not have")
    text = np.column_stack([first, drawn])
    return [row[: length + 1] for row, length in zip(text, LENGTHS, strict=True)]


class _Truth:
    """What the reference says of the text."""

    def __init__(self, network: Network, reference: Reference, text: list[Tokens]) -> None:
        """Run the reference. Raises ParityError where the network overflows."""
        self.reference, self.text = reference, text
        followed = [_follow(reference, row, zero_states(network, 1)) for row in text]
        self.logprobs = [logprobs for logprobs, _ in followed]
        """Of the token that followed, [T], by row."""
        self._states = [states for _, states in followed]
        if not all(np.isfinite(row).all() for row in self.logprobs):
            raise ParityError(f"{reference.name}: the network's log-probabilities are not finite")

    def states(self, rows: tuple[int, ...], step: int) -> States:
        """The states of some rows before `step`, a multiple of SPAN, as float32."""
        states = [self._states[row][step // SPAN] for row in rows]
        return {
            name: np.concatenate([state[name] for state in states]).astype(np.float32)
            for name in states[0]
        }


def _follow(reference: Reference, row: Tokens, states: States) -> tuple[Floats, list[States]]:
    """Log-probabilities [T] of a row's T + 1 tokens but the first, and the states before every
    SPAN of them."""
    parts, before = [], []
    for start in range(0, len(row) - 1, SPAN):
        window = row[None, start : start + SPAN + 1]
        before.append(states)
        logprobs, states = reference.advance(window[:, :-1], states)
        parts.append(_of_what_followed(logprobs, window)[0])
    return np.concatenate(parts), before


class _Checks:
    """Comparisons of log-probabilities; keeps the largest difference."""

    def __init__(self, truth: _Truth) -> None:
        self._truth = truth
        self.worst = 0.0
        self.is_chaotic = False

    def run(self, runner: Runner, schedule: Schedule) -> dict[int, Floats]:
        """Run a schedule and compare; returns log-probabilities [T, V] by row, with the state
        carried throughout."""
        carried = self._run(runner, schedule, schedule.length)
        try:
            self._compare(runner, schedule, carried)
        except ParityError:
            self._compare(runner, schedule, self._run(runner, schedule, SPAN))
            self.is_chaotic = True
        return carried

    def _run(self, runner: Runner, schedule: Schedule, span: int) -> dict[int, Floats]:
        """Run a schedule, its states taken from the reference every `span` steps."""
        length, rows, parts = schedule.length, schedule.rows, []
        tokens = np.stack([self._truth.text[row][: length + 1] for row in rows])
        for start, stop in schedule.runs(span):
            if start % span == 0:
                states = self._truth.states(rows, start)
            logprobs, states = runner.advance(tokens[:, start : stop + 1], states)
            parts.append(logprobs)
        return dict(zip(rows, np.concatenate(parts, axis=1), strict=True))

    def _compare(self, runner: Runner, schedule: Schedule, found: dict[int, Floats]) -> None:
        for row, logprobs in found.items():
            window = self._truth.text[row][: schedule.length + 1]
            truth = self._truth.logprobs[row][: schedule.length]
            errors = np.abs(_of_what_followed(logprobs[None], window[None])[0] - truth)
            worst = float(errors.max())
            # Not a number is not tolerated either.
            if not worst <= TOLERANCE:
                raise ParityError(
                    f"{runner.name}, {schedule.what}: a log-probability differs from "
                    f"{self._truth.reference.name} by {worst:.1e} at step {errors.argmax()} of "
                    f"row {row}; {TOLERANCE:.0e} is tolerated"
                )
            self.worst = max(self.worst, worst)


def _of_what_followed(logprobs: Floats, window: Tokens) -> Floats:
    """From log-probabilities [B, T, V] and tokens [B, T + 1] to those of the tokens, [B, T]."""
    return np.take_along_axis(logprobs, window[:, 1:, None], axis=-1)[..., 0]


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


def _check_greedy(truth: _Truth, engine: EngineRunner) -> None:
    """Draw greedily from places all over the text, and ask the reference for its choices."""
    for start in range(0, LENGTHS[0], LENGTHS[0] // 16):
        states = truth.states((0,), start)
        pending = truth.text[0][start : start + 1]
        drawn = engine.draw(pending, np.full((1, SPAN), DRAW), states, greedy=True)
        window = np.column_stack([pending, drawn])
        logprobs, _ = truth.reference.advance(window[:, :-1], states)
        loss = logprobs.max(axis=-1) - _of_what_followed(logprobs, window)
        wrong = ~(loss[0] <= CLEAR_MARGIN)
        if wrong.any():
            step = int(wrong.argmax())
            raise ParityError(
                f"engine.onnx, greedily: chose token {drawn[0, step]} at step {start + step}, "
                f"{truth.reference.name} token {logprobs[0, step].argmax()}"
            )

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

In int8, a hidden state that lies on the edge between two roundings may fall either way, and what
follows differs visibly. There the state is taken from the reference at every step, most of which
(on published models 88 to 100 %) then agree as closely as in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from unrolled_export.errors import ParityError
from unrolled_export.network import Floats, Network
from unrolled_export.progress import Progress, no_progress
from unrolled_export.quantization import QuantizedWeight
from unrolled_export.reference import Reference, States, Tokens, initial_states
from unrolled_export.references import make_reference
from unrolled_export.runners import DRAW, EngineRunner, PortableRunner, Runner

LENGTHS = (1024, 256, 256)
"""Steps of every row of text. One long row shows whether errors grow."""
SPAN = 8
"""Steps after which a network that is chaotic gets its state from the reference."""
TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that float32 explains."""


@dataclass(frozen=True)
class Tolerance:
    """What a comparison lets pass."""

    spans: tuple[int, ...]
    """Steps after which the state is taken from the reference, tried in turn; the first that
    passes decides."""
    largest: float = TOLERANCE
    """Of any step, in nats."""
    share: float = 1.0
    """Of the steps, that at least must be within TOLERANCE."""
    clear_margin: float = 1e-3
    """Smallest gap between the two likeliest tokens, in nats, that decides a greedy choice."""


IN_FLOATS = Tolerance((max(LENGTHS), SPAN))
IN_BYTES = Tolerance((1,), largest=0.05, share=0.75, clear_margin=0.1)


@dataclass(frozen=True)
class Parity:
    """What a check that passed has found."""

    reference: str
    """What computes it, and whether its state was taken on the way."""
    tokens: int
    """Tokens whose log-probabilities were compared."""
    max_abs_logprob_error: float
    """In nats, over all comparisons."""
    tolerance: float


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


def check_parity(
    network: Network,
    portable: bytes,
    engine: bytes,
    quantized: Mapping[str, QuantizedWeight] | None = None,
    progress: Progress = no_progress,
) -> Parity:
    """Compare serialised graphs with the reference; `quantized` are the engine's 8-bit weights.

    Raises ParityError, naming graph, comparison and the layer at fault, where a log-probability,
    a greedy choice or, between runs of the engine's graph, a single bit differs.
    """
    names, size = network.state_names, network.vocabulary_size
    portable_runner = PortableRunner(names, size, portable)
    engine_runner = EngineRunner(names, size, engine)
    text = _text(network, engine_runner)
    with progress("checking", len(PORTABLE_SCHEDULES) + len(ENGINE_SCHEDULES)) as advance:
        truth = _Truth(network, make_reference(network), text, SPAN)
        in_floats = _Checks(truth, IN_FLOATS)
        for schedule in PORTABLE_SCHEDULES:
            in_floats.run(portable_runner, schedule)
            advance(1)
        in_engine = in_floats
        if quantized:
            truth = _Truth(network, make_reference(network, quantized), text, 1)
            in_engine = _Checks(truth, IN_BYTES)
        runs = []
        for schedule in ENGINE_SCHEDULES:
            runs.append(in_engine.run(engine_runner, schedule))
            advance(1)
    _check_same_bits(runs)
    _check_greedy(truth, engine_runner, in_engine.tolerance.clear_margin)
    worst = max(in_floats.worst, in_engine.worst)
    return Parity(in_engine.basis, sum(LENGTHS), worst, in_engine.tolerance.largest)


def _text(network: Network, engine: EngineRunner) -> list[Tokens]:
    """Rows of tokens, each a step's longer than LENGTHS."""
    rows, size = len(LENGTHS), network.vocabulary_size
    told = np.full((rows, max(LENGTHS)), DRAW)
    told[:, ::SPAN] = np.arange(told[:, ::SPAN].size).reshape(rows, -1) % size
    first = np.arange(rows) % size
    drawn = engine.draw(first, told, initial_states(network, rows), greedy=False)
    if drawn.min() < 0 or drawn.max() >= size:
        raise ParityError("engine.onnx: drew a token that the vocabulary does not have")
    text = np.column_stack([first, drawn])
    return [row[: length + 1] for row, length in zip(text, LENGTHS, strict=True)]


class _Truth:
    """What the reference says of the text."""

    def __init__(
        self, network: Network, reference: Reference, text: list[Tokens], grain: int
    ) -> None:
        """Run the reference, and note its states every `grain` steps.

        Raises ParityError where the network overflows.
        """
        self.network, self.reference, self.text, self.grain = network, reference, text, grain
        followed = [_follow(reference, row, initial_states(network, 1), grain) for row in text]
        self.logprobs = [logprobs for logprobs, _ in followed]
        """Of the token that followed, [T], by row."""
        self._states = [states for _, states in followed]
        if not all(np.isfinite(row).all() for row in self.logprobs):
            raise ParityError(f"{reference.name}: the network's log-probabilities are not finite")

    def states(self, rows: tuple[int, ...], step: int) -> States:
        """The states of some rows before `step`, a multiple of the grain, as float32."""
        states = [self._states[row][step // self.grain] for row in rows]
        return {
            name: np.concatenate([state[name] for state in states]).astype(np.float32)
            for name in states[0]
        }

    def window(self, row: int, start: int, stop: int) -> Tokens:
        """The tokens of some steps of a row and the one that follows them, [1, T + 1]."""
        return self.text[row][None, start : stop + 1]


def _follow(
    reference: Reference, row: Tokens, states: States, grain: int
) -> tuple[Floats, list[States]]:
    """Log-probabilities [T] of a row's T + 1 tokens but the first, and the states before every
    `grain` of them."""
    parts, before = [], []
    for start in range(0, len(row) - 1, grain):
        window = row[None, start : start + grain + 1]
        before.append(states)
        logprobs, states = reference.advance(window[:, :-1], states)
        parts.append(_of_what_followed(logprobs, window)[0])
    return np.concatenate(parts), before


class _Checks:
    """Comparisons of log-probabilities; keeps the largest difference."""

    def __init__(self, truth: _Truth, tolerance: Tolerance) -> None:
        self._truth = truth
        self.tolerance = tolerance
        self.worst = 0.0
        self._span = tolerance.spans[0]

    @property
    def basis(self) -> str:
        """What was compared with, and how often its state was taken."""
        if self._span >= max(LENGTHS):
            return self._truth.reference.name
        steps = f"{self._span} steps" if self._span > 1 else "step"
        return f"{self._truth.reference.name}, state taken every {steps}"

    def run(self, runner: Runner, schedule: Schedule) -> dict[int, Floats]:
        """Run a schedule and compare; returns log-probabilities [T, V] by row, with the state
        carried throughout."""
        carried = self._run(runner, schedule, schedule.length)
        for span in self.tolerance.spans:
            found = carried if span >= schedule.length else self._run(runner, schedule, span)
            try:
                self._compare(runner, schedule, found)
            except ParityError:
                if span == self.tolerance.spans[-1]:
                    raise
            else:
                self._span = min(self._span, span)
                return carried
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
            truth = self._truth.logprobs[row][: schedule.length]
            window = self._truth.window(row, 0, schedule.length)
            errors = np.abs(_of_what_followed(logprobs[None], window)[0] - truth)
            # Not a number is not tolerated either.
            within = errors <= TOLERANCE
            worst = float(errors.max())
            if not worst <= self.tolerance.largest or within.mean() < self.tolerance.share:
                step = int(np.argmin(within))
                raise ParityError(
                    f"{runner.name}, {schedule.what}: a log-probability differs from "
                    f"{self._truth.reference.name} by {errors[step]:.1e} nats at step {step} of "
                    f"row {row}, {_origin(self._truth, runner, row, step)}; "
                    f"{self.tolerance.largest:.0e} is tolerated"
                )
            self.worst = max(self.worst, worst)


def _origin(truth: _Truth, runner: Runner, row: int, last: int) -> str:
    """Where a difference starts: the first layer that makes another state of the same step."""
    for step in range(last + 1):
        if step % truth.grain == 0:
            before = truth.states((row,), step)
        floats = {name: array.astype(np.float32) for name, array in before.items()}
        _, found = runner.advance(truth.window(row, step, step + 1), floats)
        _, before = truth.reference.advance(truth.window(row, step, step), before)
        for state in truth.network.states:
            if not np.allclose(found[state.input], before[state.input], TOLERANCE, TOLERANCE):
                return f"which starts at layer {state.layer} ({state.input}, step {step})"
    return "which starts above the last layer, whose states agree"


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


def _check_greedy(truth: _Truth, engine: EngineRunner, clear_margin: float) -> None:
    """Draw greedily from places all over the text, and ask the reference for its choices."""
    for start in range(0, LENGTHS[0], LENGTHS[0] // 16):
        states = truth.states((0,), start)
        pending = truth.text[0][start : start + 1]
        drawn = engine.draw(pending, np.full((1, SPAN), DRAW), states, greedy=True)
        window = np.column_stack([pending, drawn])
        logprobs, _ = truth.reference.advance(window[:, :-1], states)
        loss = logprobs.max(axis=-1) - _of_what_followed(logprobs, window)
        wrong = ~(loss[0] <= clear_margin)
        if wrong.any():
            step = int(wrong.argmax())
            raise ParityError(
                f"engine.onnx, greedily: chose token {drawn[0, step]} at step {start + step}, "
                f"{truth.reference.name} token {logprobs[0, step].argmax()}"
            )

"""The engine and its two lanes, run by run under a clock of the test, against lone runs.

Turns of every kind join, stop, are cancelled and read on while others run, in whichever lane has a
place; whatever a run's length and company, each has to draw or score what it does alone, and to
leave the same state.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.models import CHARACTERS, Repository
from support.oracle import Draw, LoneRun, LoneSequence
from unrolled_server import engine as engines
from unrolled_server import prefix_cache, row, scheduler, telling
from unrolled_server.delivery import Flushing
from unrolled_server.engine import Engine
from unrolled_server.lane import Lane
from unrolled_server.models import ServedModel
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.runner import Runner
from unrolled_server.running import StateSpec
from unrolled_server.turn import Recall, Task, Turn
from unrolled_server.types import (
    Delta,
    Ending,
    FinishReason,
    Floats,
    Past,
    Places,
    Prefix,
    Sampling,
    Tokens,
)
from unrolled_server.vocabulary import CharacterVocabulary

LANES = 2
PLACES = 4
"""Of each lane."""
CACHE_BYTES = 60_000
"""Some 55 states: few enough to be driven out, and several for each prompt."""
NEWLINE = CHARACTERS.index("\n")
END = CHARACTERS.index("q")
SHARED = np.random.default_rng(0).integers(0, len(CHARACTERS), 300)


class Counting(Runner):
    """Counts runs, and those that tell some of the rows of its lane and not the others."""

    lane: Lane
    apart = 0
    runs = 0

    def tell(self, told: Tokens, places: Places) -> None:
        self.apart += len(places) < self.lane._batch.size
        super().tell(told, places)

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]:
        self.runs += 1
        return super().run(rows, steps)


class Immediate:
    """An event loop that calls at once."""

    def call_soon_threadsafe(self, call: Callable[..., None], *arguments: Any) -> None:
        call(*arguments)


class Clock:
    """Seconds that pass as the test says."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


class Watched(Turn):
    """A turn that keeps what it gets, and the sequence that it has to equal."""

    def __init__(
        self, task: Task, lone: LoneSequence, scores: list[float | None], states: list[bytes]
    ) -> None:
        super().__init__(task)
        self.lone = lone
        """With all that the turn tells."""
        self.first = len(lone.tokens)
        """Tokens of the sequence before those that the turn draws."""
        self.scores = scores
        """Of the told tokens."""
        self.states = states
        """After each number of the told tokens, where the turn begins the sequence."""
        self.said: list[int] = []
        """Tokens that were drawn, or scored."""
        self.logprobs: list[float | None] = []
        self.text = ""
        self.ending: Ending | None = None
        self._handed = 0

    def read(self) -> None:
        """Take what has come out of the inbox."""
        self.taken = self._handed

    def receive(self, message: Delta | Ending | Exception | Prefix) -> None:
        assert not isinstance(message, Exception)
        if isinstance(message, Prefix):
            assert message.state.tobytes() == self.states[message.tokens]
            super().receive(message)
            return
        assert self.ending is None
        if isinstance(message, Ending):
            self.ending = message
            return
        self.said += message.token_ids
        self.text += message.text
        self._handed += len(message.token_ids)
        if message.logprobs is not None:
            known = zip(message.logprobs.chosen, message.logprobs.unset, strict=True)
            self.logprobs += [None if unset else float(logprob) for logprob, unset in known]


@dataclass(frozen=True)
class Kind:
    """What a turn asks for."""

    seed: int
    told: int
    shared: int
    """Of the told tokens, those that other turns are told as well."""
    draws: int
    how: Draw
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    scores: bool = False
    """Nothing is drawn, and the told tokens are scored."""


HOW = (
    Draw(),
    Draw(0.0),
    Draw(0.7, top_k=5),
    Draw(1.3, top_p=0.8),
    Draw(0.7, min_p=0.3),
    Draw(0.9, top_k=20, top_p=0.9, min_p=0.5),
)
kinds = st.builds(
    Kind,
    seed=st.integers(0, 2**64 - 1),
    told=st.one_of(st.integers(0, 60), st.sampled_from([255, 256, 257, 300])),
    shared=st.sampled_from([0, 7, 9, 17, 40, 300, 300]),
    draws=st.integers(0, 70),
    how=st.sampled_from(HOW),
    stops=st.sampled_from([(), (), ("e",), ("th", "zz"), ("a\n", "er")]),
    logprobs=st.sampled_from([None, None, 0, 2]),
    scores=st.sampled_from([False, False, False, True]),
)


class EngineMachine(RuleBasedStateMachine):
    """Hypothesis drives; `make_lanes`, `run` and `model` are set by the test."""

    make_lanes: Callable[[Clock], list[Lane]]
    run: LoneRun
    model: ServedModel
    hits = 0
    """Of all machines."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.lanes = type(self).make_lanes(self.clock)
        self.engine = Engine(self.lanes)
        self.prefixes = PrefixCache(CACHE_BYTES)
        self.turns: list[Watched] = []
        self.over: list[Watched] = []

    @initialize()
    def warm(self) -> None:
        """What others begin with is known."""
        self._submit(Kind(0, 60, 60, 0, Draw()), None)
        while self.turns[-1].ending is None:
            self.step_all()

    @initialize()
    def crowd(self) -> None:
        """Two prompts beside a turn that draws, which are told apart from it; and one elsewhere."""
        self._submit(Kind(1, 1, 0, 40, Draw()), None)
        self.step_all()
        for seed in (2, 3, 4):
            self._submit(Kind(seed, 40, 0, 3, Draw()), None)
        self.step_all()

    @rule(kind=kinds)
    def begin(self, kind: Kind) -> None:
        self._submit(kind, None)

    @rule(kind=kinds, which=st.integers(0, 9))
    def go_on(self, kind: Kind, which: int) -> None:
        """A turn that starts where another has ended."""
        if self.over:
            self._submit(kind, self.over[which % len(self.over)])

    @rule(order=st.lists(st.integers(0, LANES - 1), min_size=1, max_size=8))
    def step(self, order: list[int]) -> None:
        for lane in order:
            self.lanes[lane].step()

    def step_all(self) -> None:
        for lane in self.lanes:
            lane.step()

    @rule(which=st.integers(0, 9))
    def read(self, which: int) -> None:
        """A reader who was behind, perhaps, catches up."""
        if self.turns:
            self.turns[which % len(self.turns)].read()
            self.engine.nudge()

    @rule(seconds=st.sampled_from([0.01, 0.3, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 9))
    def stop(self, which: int) -> None:
        if self.turns:
            self.turns[which % len(self.turns)].stopping = True
            self.engine.nudge()

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.turns:
            self.turns.pop(which % len(self.turns)).cancelled = True
            self.engine.nudge()

    def teardown(self) -> None:
        limit = 2000
        while any(turn.ending is None for turn in self.turns):
            self.step_all()
            for turn in self.turns:
                turn.read()
            limit -= 1
            assert limit, "turns that never end"
        for turn in self.turns:
            check(turn)

    def _submit(self, kind: Kind, past: Watched | None) -> None:
        start = Past(None, None, 0)
        lone = LoneSequence(type(self).run, kind.seed, NEWLINE)
        if past is not None and past.ending is not None:
            start = past.ending.past
            lone = past.lone.copy(kind.seed)
            catch_up(lone, past)
        told = np.random.default_rng(kind.seed).integers(0, len(CHARACTERS), kind.told)
        told[: kind.shared] = SHARED[: kind.told][: kind.shared]
        told[told == END] = NEWLINE
        scores: list[float | None] = []
        states: list[bytes] = []
        for token in told.tolist():
            scores.append(lone.tell(token))
            states.append(state_bytes(lone))
        how = kind.how
        sampling = Sampling(kind.seed, how.temperature, how.top_k, how.top_p, how.min_p)
        recall = Recall()
        if start.pending is None and not kind.scores:
            recall = self.prefixes.recall(type(self).model, told.astype(np.int32))
            type(self).hits += recall.known is not None
        draws, stops, logprobs = kind.draws, kind.stops, kind.logprobs
        if kind.scores:
            draws, stops, logprobs = 0, (), kind.logprobs or 0
        task = Task(
            start, told.astype(np.int32), draws, sampling, stops, logprobs,
            scores=kind.scores, keeps_partial=True, recall=recall,
        )  # fmt: skip
        turn = Watched(task, lone, scores, states)
        self.turns.append(turn)
        self.engine.submit(turn)
        self.over = [each for each in self.turns if each.ending is not None]


def state_bytes(lone: LoneSequence) -> bytes:
    """The state before the newest token."""
    return np.concatenate([value[0] for value in lone._before.values()]).tobytes()


def how_of(task: Task) -> Draw:
    """How a turn draws."""
    how = task.sampling
    return Draw(how.temperature, how.top_k, how.top_p, how.min_p)


def catch_up(lone: LoneSequence, past: Watched) -> None:
    """Let a copy of a turn's sequence draw what the turn has drawn."""
    drawn = [] if past.task.scores else past.said
    for token in drawn[len(lone.tokens) - past.first :]:
        again, _ = lone.draw(how_of(past.task), past.task.sampling.seed)
        assert again == token


def check(turn: Watched) -> None:
    """The turn drew what it draws alone, to where its text ends, or scored what it was told."""
    task, ending, lone = turn.task, turn.ending, turn.lone.copy()
    assert ending is not None
    if task.scores:
        assert (turn.said, turn.logprobs) == (task.told.tolist(), turn.scores)
        assert (turn.text, ending.drawn, ending.reason) == ("", 0, FinishReason.LENGTH)
    else:
        check_draws(turn, ending, lone)
    assert ending.told == len(task.told)
    assert ending.past.position == len(lone.tokens)
    assert ending.past.pending == (lone.tokens[-1] if lone.tokens else None)
    # Fed the pending token, state and sequence have to say the same of what follows.
    if ending.past.state is not None:
        assert ending.past.state.tobytes() == state_bytes(lone)


def check_draws(turn: Watched, ending: Ending, lone: LoneSequence) -> None:
    """What the turn drew is what `lone` draws, which goes on to where the turn ended."""
    task = turn.task
    how = how_of(task)
    text, reason = "", FinishReason.LENGTH
    expected: list[int] = []
    logprobs: list[float | None] = []
    while len(expected) < task.max_tokens and reason is FinishReason.LENGTH:
        if ending.reason is FinishReason.STOPPED and len(expected) == ending.drawn:
            reason = FinishReason.STOPPED
            break
        token, logprob = lone.draw(how, task.sampling.seed)
        expected.append(token)
        logprobs.append(logprob)
        if token == END:
            reason = FinishReason.END
            break
        text += CHARACTERS[token]
        if any(stop in text for stop in task.stop):
            reason = FinishReason.STOP
            text = text[: min(text.find(stop) for stop in task.stop if stop in text)]
    assert turn.said == expected
    assert turn.text == text
    assert ending.reason is reason
    assert ending.drawn == len(expected)
    assert turn.logprobs == ([] if task.logprobs is None else logprobs)


def test_every_turn_draws_what_it_draws_alone(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that readers are behind now and then.
    monkeypatch.setattr(scheduler, "MAX_UNREAD", 6)
    monkeypatch.setattr(prefix_cache, "BLOCK", 8)
    # That two rows are told apart from one.
    monkeypatch.setattr(telling, "COMPANY", 2)
    monkeypatch.setattr(telling, "OTHERS", 1)
    # That the other lane has work of its own, and scores come in several messages.
    monkeypatch.setattr(engines, "FULL", 3)
    monkeypatch.setattr(row, "SCORES_PER_DELTA", 16)
    folder = repository.path / "lstm" / "1"
    states = json.loads((folder / "manifest.json").read_text())["states"]
    specs = tuple(StateSpec(s["input"], s["output"], int(s["shape"][0])) for s in states)
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], NEWLINE, (END,), None)
    prompt = folder / "prompt.onnx"
    first = Counting(folder / "engine.onnx", specs, len(CHARACTERS), PLACES, prompt=prompt)
    runners = [first, *(first.another(PLACES) for _ in range(LANES - 1))]

    def lanes(clock: Clock) -> list[Lane]:
        loop = cast(asyncio.AbstractEventLoop, Immediate())
        for runner in runners:
            runner.lane = Lane("lstm", runner, vocabulary, Flushing(), loop, clock)
        return [runner.lane for runner in runners]

    class Machine(EngineMachine):
        make_lanes = staticmethod(lanes)
        run = LoneRun(folder)
        model = ServedModel("lstm", 1, "f", first.state_size, vocabulary, cast(Engine, None), "cpu")

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    assert Machine.hits
    assert first.apart
    assert all(runner.runs for runner in runners)

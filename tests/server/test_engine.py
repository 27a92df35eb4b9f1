"""The engine's thread on a real graph: failures, places, parking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from support.calls import SECONDS
from support.models import CHARACTERS, Repository
from support.networks import Weights
from support.oracle import Draw, LoneRun, LoneSequence
from unrolled_export.network import Cell, Layer, Network
from unrolled_export.step_graph import step_graph
from unrolled_server.delivery import Flushing
from unrolled_server.engine import Engine
from unrolled_server.lane import Lane
from unrolled_server.row import Row
from unrolled_server.runner import Runner
from unrolled_server.running import StateSpec
from unrolled_server.scheduler import FULL, MAX_UNREAD, Pace
from unrolled_server.telling import COMPANY, LEAST_TOLD, OTHERS
from unrolled_server.turn import EngineFailure, Task, Turn
from unrolled_server.types import (
    MAX_STEPS,
    PROMPT_STEPS,
    Delta,
    Ending,
    Floats,
    Past,
    Places,
    Sampling,
    Tokens,
)
from unrolled_server.vocabulary import CharacterVocabulary

ROWS = 4
MANY = OTHERS + COMPANY + 1
"""Rows among which some are told apart from the others."""


class UnsteadyRunner(Runner):
    """Fails as many runs as it is told to, and counts them all."""

    failures = 0
    runs = 0
    tellings = 0

    def tell(self, told: Tokens, places: Places) -> None:
        self.tellings += 1
        super().tell(told, places)

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]:
        self.runs += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("made to fail")
        return super().run(rows, steps)


@pytest.fixture
def runner(repository: Repository) -> UnsteadyRunner:
    folder = repository.path / "lstm" / "1"
    states = json.loads((folder / "manifest.json").read_text())["states"]
    specs = tuple(StateSpec(s["input"], s["output"], int(s["shape"][0])) for s in states)
    graph = folder / "engine.onnx"
    return UnsteadyRunner(graph, specs, len(CHARACTERS), ROWS, prompt=folder / "prompt.onnx")


@pytest.fixture
async def engine(runner: UnsteadyRunner) -> AsyncIterator[Lane]:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop = asyncio.get_running_loop()
    engine = Lane("lstm", runner, vocabulary, Flushing(), loop)
    engine.start()
    yield engine
    engine.close()


def turn(seed: int, draws: int) -> Turn:
    told = np.array([seed % 50, 7, 3], np.int32)
    task = Task(Past(None, None, 0), told, draws, Sampling(seed), (), None, False, False)
    return Turn(task)


async def finish(turn: Turn) -> tuple[list[int], Ending]:
    """All tokens that a turn draws, and how it ends."""
    tokens: list[int] = []
    while True:
        message = await turn.next()
        if isinstance(message, Ending):
            return tokens, message
        tokens += message.token_ids


def lone_draws(repository: Repository, seed: int, draws: int) -> list[int]:
    sequence = LoneSequence(LoneRun(repository.path / "lstm" / "1"), seed, None)
    for token in (seed % 50, 7, 3):
        sequence.tell(token)
    return [sequence.draw(Draw())[0] for _ in range(draws)]


async def test_more_turns_than_rows_all_end_right(engine: Lane, repository: Repository) -> None:
    turns = [turn(seed, 5 + seed % 11) for seed in range(5 * ROWS)]
    for each in turns:
        engine.submit(each)
    for seed, each in enumerate(turns):
        tokens, _ = await finish(each)
        assert tokens == lone_draws(repository, seed, 5 + seed % 11)


async def test_a_prompt_alone_is_told_in_few_runs(
    engine: Lane, runner: UnsteadyRunner, repository: Repository
) -> None:
    told = np.random.default_rng(1).integers(0, len(CHARACTERS), 3 * PROMPT_STEPS + 5)
    task = Task(Past(None, None, 0), told.astype(np.int32), 9, Sampling(7), (), None, False, False)
    lone = LoneSequence(LoneRun(repository.path / "lstm" / "1"), 7, None)
    for token in told.tolist():
        lone.tell(token)
    prompted = Turn(task)
    engine.submit(prompted)
    tokens, ending = await finish(prompted)
    assert tokens == [lone.draw(Draw())[0] for _ in range(9)]
    assert runner.tellings >= 3
    assert runner.runs < 3 * MAX_STEPS
    states = np.concatenate([value[0] for value in lone._before.values()])
    assert ending.past.state is not None
    assert ending.past.state.tobytes() == states.tobytes()


class Clock:
    """Seconds that pass as the test says."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


async def test_a_slow_run_makes_the_next_shorter_and_no_more(runner: UnsteadyRunner) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    clock = Clock()
    lengths: list[int] = []

    class Slow(UnsteadyRunner):
        def tell(self, told: Tokens, places: Places) -> None:
            clock.now += 0.0 if lengths else 10.0
            lengths.append(len(told))
            super().tell(told, places)

    runner.__class__ = Slow
    lane = Lane("lstm", runner, vocabulary, Flushing(), asyncio.get_running_loop(), clock)
    task = Task(
        Past(None, None, 0),
        np.zeros(400, np.int32),
        1,
        Sampling(1),
        (),
        None,
        False,
        False,
    )
    prompted = Turn(task)
    lane.submit(prompted)
    for _ in range(20):
        lane.step()
    await finish(prompted)
    # The first is short, for nobody knows what it takes; the next, for now that is known.
    assert lengths[:3] == [4, 4, PROMPT_STEPS]


class Noting(UnsteadyRunner):
    """Notes every run: how many rows it told, or 0, and how long it took by the test's clock."""

    clock: Clock
    noted: list[tuple[int, float]]
    step_seconds = 1e-3

    tellings_that_fail = 0

    def tell(self, told: Tokens, places: Places) -> None:
        self._note(len(places), len(told))
        if self.tellings_that_fail:
            self.tellings_that_fail -= 1
            raise RuntimeError("made to fail")
        super().tell(told, places)

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]:
        self._note(0, steps)
        return super().run(rows, steps)

    def _note(self, told: int, steps: int) -> None:
        self.clock.now += steps * self.step_seconds
        self.noted.append((told, steps * self.step_seconds))


@pytest.fixture
def noting(runner: UnsteadyRunner) -> Noting:
    noting = runner.another(MANY)
    noting.__class__ = Noting
    assert isinstance(noting, Noting)
    noting.clock, noting.noted = Clock(), []
    return noting


def crowded(noting: Noting) -> Lane:
    """A lane that a test steps, with room for many."""
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop = asyncio.get_running_loop()
    return Lane("lstm", noting, vocabulary, Flushing(), loop, noting.clock)


def text_of(seed: int, tokens: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, len(CHARACTERS), tokens).astype(np.int32)


def prompted(seed: int, told: int, draws: int) -> Turn:
    sampling = Sampling(seed)
    start = Past(None, None, 0)
    return Turn(Task(start, text_of(seed, told), draws, sampling, (), None, False, False))


def lone_after(repository: Repository, seed: int, told: int, draws: int) -> list[int]:
    sequence = LoneSequence(LoneRun(repository.path / "lstm" / "1"), seed, None)
    for token in text_of(seed, told).tolist():
        sequence.tell(token)
    return [sequence.draw(Draw())[0] for _ in range(draws)]


async def test_prompts_beside_many_that_draw_are_told_apart_half_of_the_time(
    noting: Noting, repository: Repository
) -> None:
    lane = crowded(noting)
    drawing = [turn(seed, 300) for seed in range(OTHERS)]
    for each in drawing:
        lane.submit(each)
    # However long they have drawn, that earns them no long wait.
    for _ in range(10):
        lane.step()
    noting.noted.clear()
    prompts = [prompted(100 + seed, 150 + seed, 9) for seed in range(COMPANY)]
    for each in prompts:
        lane.submit(each)
    lane.step()
    while any(lane._batch.tell_left[: lane._batch.size] > LEAST_TOLD):
        lane.step()
    assert {told for told, _ in noting.noted} == {0, COMPANY}
    ahead, run = 0.0, Flushing().seconds
    for told, seconds in noting.noted:
        ahead += seconds if told else -seconds
        assert abs(ahead) <= 2 * run
    while lane.turns:
        lane.step()
    for seed, each in enumerate(prompts):
        assert (await finish(each))[0] == lone_after(repository, 100 + seed, 150 + seed, 9)
    for seed, each in enumerate(drawing):
        assert (await finish(each))[0] == lone_draws(repository, seed, 300)


@pytest.mark.parametrize(("drawing", "prompts"), [(OTHERS - 1, COMPANY), (OTHERS, COMPANY - 1)])
async def test_prompts_beside_few_and_few_prompts_share_the_runs_of_others(
    noting: Noting, repository: Repository, drawing: int, prompts: int
) -> None:
    lane = crowded(noting)
    others = [turn(seed, 90) for seed in range(drawing)]
    for each in others:
        lane.submit(each)
    lane.step()
    told = [prompted(100 + seed, 60, 5) for seed in range(prompts)]
    for each in told:
        lane.submit(each)
    while lane.turns:
        lane.step()
    assert {told for told, _ in noting.noted} == {0}
    for seed, each in enumerate(told):
        assert (await finish(each))[0] == lone_after(repository, 100 + seed, 60, 5)


async def test_of_many_prompts_those_with_least_left_are_told_first(
    noting: Noting, repository: Repository
) -> None:
    noting.prompt_rows = COMPANY
    lane = crowded(noting)
    lengths = [200 - seed for seed in range(MANY)]
    turns = [prompted(seed, length, 1) for seed, length in enumerate(lengths)]
    for each in turns:
        lane.submit(each)
    lane.step()
    assert [told for told, _ in noting.noted] == [COMPANY]
    left = lane._batch.tell_left[:MANY]
    assert left[-COMPANY - 1] - left[-COMPANY] > 1
    while lane.turns:
        lane.step()
    for seed, each in enumerate(turns):
        assert (await finish(each))[0] == lone_after(repository, seed, lengths[seed], 1)


async def test_a_text_that_is_scored_is_not_told_apart(
    noting: Noting, repository: Repository
) -> None:
    lane = crowded(noting)
    others = [turn(seed, 120) for seed in range(OTHERS)]
    prompts = [prompted(100 + seed, 60, 5) for seed in range(COMPANY)]
    text = text_of(7, 60)
    start = Past(None, None, 0)
    scored = Turn(Task(start, text, 0, Sampling(7), (), 0, scores=True, keeps_partial=False))
    for each in (*others, *prompts, scored):
        lane.submit(each)
    while lane.turns:
        lane.step()
    assert {told for told, _ in noting.noted} == {0, COMPANY}
    lone = LoneSequence(LoneRun(repository.path / "lstm" / "1"), 7, None)
    expected = [lone.tell(token) for token in text.tolist()]
    logprobs: list[float] = []
    while not isinstance(message := await scored.next(), Ending):
        assert isinstance(message, Delta)
        assert message.logprobs is not None
        logprobs += message.logprobs.chosen.tolist()
    assert logprobs[1:] == expected[1:]
    for seed, each in enumerate(prompts):
        assert (await finish(each))[0] == lone_after(repository, 100 + seed, 60, 5)


async def test_a_run_that_only_tells_fails_nobody_else(
    noting: Noting, repository: Repository
) -> None:
    lane = crowded(noting)
    noting.tellings_that_fail = 1
    # One of those that draw is behind them, in the place that is given away last.
    drawing = [turn(seed, 60) for seed in range(OTHERS)]
    prompts = [prompted(100 + seed, 80, 5) for seed in range(COMPANY)]
    for each in (*drawing[:-1], *prompts, drawing[-1]):
        lane.submit(each)
    while lane.turns:
        lane.step()
    for each in prompts:
        with pytest.raises(EngineFailure):
            await finish(each)
    for seed, each in enumerate(drawing):
        assert (await finish(each))[0] == lone_draws(repository, seed, 60)
    assert lane.stats.failures == 1


async def test_the_first_run_that_only_tells_is_short(noting: Noting) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    at_once, loop = Flushing(seconds=0.0), asyncio.get_running_loop()
    lane = Lane("lstm", noting, vocabulary, at_once, loop, noting.clock)
    lane.submit(prompted(1, 200, 1))
    lane.step()
    assert noting.noted == [(1, LEAST_TOLD * noting.step_seconds)]


async def test_a_failed_run_fails_its_turns_and_no_others(
    engine: Lane, runner: UnsteadyRunner, repository: Repository
) -> None:
    runner.failures = 1
    lost = turn(1, 20)
    engine.submit(lost)
    with pytest.raises(EngineFailure):
        await finish(lost)
    after = turn(2, 20)
    engine.submit(after)
    assert (await finish(after))[0] == lone_draws(repository, 2, 20)
    assert engine.stats.failures == 1


async def test_a_turn_that_nobody_reads_waits_and_goes_on_where_it_was(
    engine: Lane, repository: Repository
) -> None:
    draws = 3 * MAX_UNREAD
    unread = turn(3, draws)
    engine.submit(unread)
    # Turns that are read pass by, until the unread one has left the batch.
    while not unread.parked:
        read = turn(4, 20)
        engine.submit(read)
        assert (await finish(read))[0] == lone_draws(repository, 4, 20)
    tokens: list[int] = []
    while len(tokens) < draws:
        message = await unread.next()
        if isinstance(message, Ending):
            break
        tokens += message.token_ids
        engine.nudge()
    assert tokens == lone_draws(repository, 3, draws)


async def test_a_cancelled_turn_gives_its_row_to_the_next(
    engine: Lane, repository: Repository
) -> None:
    endless = [turn(seed, 10**9) for seed in range(ROWS)]
    for each in endless:
        engine.submit(each)
    waiting = turn(9, 12)
    engine.submit(waiting)
    for each in endless:
        await each.next()
        each.cancelled = True
    engine.nudge()
    assert (await finish(waiting))[0] == lone_draws(repository, 9, 12)


async def test_tokens_that_are_rarely_delivered_arrive_all(
    runner: UnsteadyRunner, repository: Repository
) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop, rarely = asyncio.get_running_loop(), Flushing(tokens=10**9, seconds=1e9)
    engine = Lane("lstm", runner, vocabulary, rarely, loop)
    engine.start()
    each = turn(5, 3 * MAX_UNREAD)
    engine.submit(each)
    async with asyncio.timeout(SECONDS):
        tokens, _ = await finish(each)
    engine.close()
    assert tokens == lone_draws(repository, 5, 3 * MAX_UNREAD)


async def test_wide_messages_are_taken_whole_and_park_nobody_who_reads(
    runner: UnsteadyRunner, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = Row.take

    def noting(row: Row, tokens: list[int], logprobs: Floats | None) -> int:
        taken.append(len(tokens))
        return take(row, tokens, logprobs)

    monkeypatch.setattr(Row, "take", noting)
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    # Ends inside a run, at more than a reader may be behind.
    wide = Flushing(tokens=MAX_UNREAD + 1, seconds=1e9)
    lane = Lane("lstm", runner, vocabulary, wide, asyncio.get_running_loop())
    drawing = turn(5, 3 * MAX_UNREAD)
    lane.submit(drawing)
    reader = asyncio.create_task(finish(drawing))
    while not reader.done():
        lane.step()
        await asyncio.sleep(0)
        assert not drawing.parked
    assert (await reader)[0] == lone_draws(repository, 5, 3 * MAX_UNREAD)
    whole = MAX_UNREAD + MAX_STEPS
    assert [count for count in taken if count] == [1, whole, whole, MAX_UNREAD - 2 * MAX_STEPS - 1]


async def test_lanes_share_the_work_and_no_row(
    repository: Repository, runner: UnsteadyRunner
) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop, runners = asyncio.get_running_loop(), [runner, runner.another(ROWS)]
    engine = Engine([Lane("lstm", each, vocabulary, Flushing(), loop) for each in runners])
    turns = [turn(seed, 5 + seed % 11) for seed in range(FULL + 3)]
    for each in turns:
        engine.submit(each)
    engine.start()
    for seed, each in enumerate(turns):
        tokens, _ = await finish(each)
        assert tokens == lone_draws(repository, seed, 5 + seed % 11)
    engine.close()
    assert all(each.runs for each in runners)
    assert engine.stats.generated_tokens == sum(5 + seed % 11 for seed in range(FULL + 3))


async def test_few_turns_stay_in_one_lane(runner: UnsteadyRunner) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop, runners = asyncio.get_running_loop(), (runner, runner.another(ROWS))
    lanes = [Lane("lstm", each, vocabulary, Flushing(), loop) for each in runners]
    engine = Engine(lanes)
    for seed in range(ROWS):
        engine.submit(turn(seed, 5))
    assert [lane.turns for lane in lanes] == [ROWS, 0]


async def test_turns_that_wait_in_one_lane_run_in_another_that_has_a_place(
    repository: Repository, runner: UnsteadyRunner
) -> None:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    loop, runners = asyncio.get_running_loop(), [runner, runner.another(ROWS)]
    lanes = [Lane("lstm", each, vocabulary, Flushing(), loop) for each in runners]
    engine = Engine(lanes)
    engine.start()
    endless = [turn(seed, 10**9) for seed in range(ROWS)]
    for each in endless:
        # As if it had a reader: it is not to give up its place.
        each.taken = 10**9
        lanes[0].submit(each)
    for each in endless:
        await each.next()
    # The other lane sleeps by now; these would wait for ever for one of the endless to end.
    behind = [turn(seed, 12) for seed in range(20, 20 + 3 * ROWS)]
    for each in behind:
        lanes[0].submit(each)
    async with asyncio.timeout(SECONDS):
        for seed, each in enumerate(behind, 20):
            assert (await finish(each))[0] == lone_draws(repository, seed, 12)
    for each in endless:
        each.cancelled = True
    engine.nudge()
    engine.close()


@pytest.mark.parametrize(
    ("rows", "seconds"), [(1, 0.02), (10, 0.02), (11, 0.022), (64, 0.128), (256, 0.512)]
)
def test_many_rows_send_their_messages_less_often(rows: int, seconds: float) -> None:
    assert Flushing().interval(rows) == pytest.approx(seconds)


def test_a_run_takes_no_longer_than_a_message_may_wait() -> None:
    pace = Pace(0.02, MAX_STEPS)
    assert pace.steps(1) == MAX_STEPS
    pace.observe(rows=2, steps=4, seconds=0.016)
    assert pace.steps(2) == pace.steps(1) == 5
    assert pace.steps(4) == 2
    assert pace.steps(64) == 1
    pace.observe(rows=64, steps=1, seconds=0.001)
    assert pace.steps(64) == MAX_STEPS


async def test_a_state_that_overflows_fails_its_own_turn_alone(tmp_path: Path) -> None:
    """Also beside a row that filters, where what it draws would be no token."""
    graph, states, overflowing = relu_network(tmp_path)
    runner = Runner(graph, states, LETTERS, ROWS)
    vocabulary = CharacterVocabulary([bytes([97 + n]) for n in range(LETTERS)], None, (), None)
    lane = Lane("relu", runner, vocabulary, Flushing(), asyncio.get_running_loop())

    def drawing(told: list[int], sampling: Sampling) -> Turn:
        tokens = np.array(told, np.int32)
        return Turn(Task(Past(None, None, 0), tokens, 40, sampling, (), None, False, False))

    for greedy in (True, False):
        # Neither of them draws the token that makes states grow.
        sampling = Sampling(1, temperature=0) if greedy else Sampling(1, top_k=1)
        sound, lost = drawing([1, 2], sampling), drawing([1, overflowing], Sampling(1))
        for turn_ in (sound, lost):
            lane.submit(turn_)
        while lane.turns:
            lane.step()
        tokens, _ = await finish(sound)
        assert (len(tokens), overflowing in tokens) == (40, False)
        with pytest.raises(EngineFailure, match="the state is not finite any more"):
            await finish(lost)
    assert lane.stats.failures == 0


LETTERS = 11


def relu_network(folder: Path) -> tuple[Path, tuple[StateSpec, ...], int]:
    """The graph and states of a network that overflows some steps after one of its tokens."""
    overflowing, hidden = LETTERS - 1, 4
    weights = Weights(np.random.default_rng(1))
    embedding = np.zeros((LETTERS, 3), np.float32)
    embedding[overflowing] = 1
    growing = 1e4 * np.eye(hidden, dtype=np.float32)
    none = np.zeros(hidden, np.float32)
    layer = Layer(np.abs(weights(hidden, 3)), growing, none, none)
    bias = np.zeros(LETTERS, np.float32)
    bias[0] = 1
    head = weights(LETTERS, hidden)
    network = Network(Cell.RNN_RELU, embedding, (layer,), head, bias, 0)
    graph = folder / "engine.onnx"
    graph.write_bytes(step_graph(network).SerializeToString())
    states = tuple(StateSpec(state.input, state.output, state.size) for state in network.states)
    return graph, states, overflowing

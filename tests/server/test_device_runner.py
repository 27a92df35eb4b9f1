"""The runner for devices, on the CPU: rows that come, move, go back and leave, and whole turns."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import RunOptions
from support.calls import SECONDS
from support.models import CHARACTERS, RECIPES, TorchModel, build, export
from support.oracle import Draw, LoneRun, LoneSequence, State, uniform
from unrolled_server import opening
from unrolled_server.delivery import Flushing
from unrolled_server.device_memory import Binding, Block, load_libraries, open_session
from unrolled_server.device_runner import FILTERS, GRAPHS, STEP, DeviceConfig, DeviceRunner
from unrolled_server.lane import Lane
from unrolled_server.opening import RunnerConfig, open_runners
from unrolled_server.runner import Runner
from unrolled_server.running import AnyRunner, DeviceError, RunnerError, StateSpec
from unrolled_server.turn import Recall, Task, Turn
from unrolled_server.types import (
    MAX_STEPS,
    Delta,
    Ending,
    Floats,
    Past,
    Prefix,
    Sampling,
    Tokens,
)
from unrolled_server.vocabulary import CharacterVocabulary

ROWS = 6
ON_CPU = DeviceConfig("cpu")
SIZE = len(CHARACTERS)


@dataclass(frozen=True)
class Exported:
    """A model with graphs for a device."""

    folder: Path
    model: TorchModel

    @property
    def specs(self) -> tuple[StateSpec, ...]:
        states = json.loads((self.folder / "manifest.json").read_text())["states"]
        return tuple(StateSpec(s["input"], s["output"], int(s["shape"][0])) for s in states)

    def runner(self, config: DeviceConfig = ON_CPU) -> DeviceRunner:
        return DeviceRunner(self.folder, self.specs, SIZE, ROWS, config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    recipe, path = RECIPES[0], tmp_path_factory.mktemp("device")
    model = build(recipe)
    export(model, recipe, path, path / "models", ["--device", "cuda"])
    return Exported(path / "models" / recipe.name / "1", model)


# --- Rows --------------------------------------------------------------------------------------


@dataclass
class NaiveRow:
    """A row as it has to be: its tokens, and its state by a run of its own."""

    seed: int
    how: Draw
    state: State
    pending: int
    before: tuple[State, int]
    drawn: int = 0


@dataclass
class Naive:
    """Rows that share nothing; every token is fed on its own."""

    run: LoneRun
    rows: list[NaiveRow] = field(default_factory=list)

    def join(self, seed: int, how: Draw, pending: int, state: State | None) -> None:
        state = self.run.start() if state is None else state
        self.rows.append(NaiveRow(seed, how, state, pending, (state, pending)))

    def advance(self, told: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Tokens and log-probabilities, [K, B] and [K, B, V], of a run."""
        columns = [self._advance(row, told[:, place]) for place, row in enumerate(self.rows)]
        tokens, logprobs = zip(*columns, strict=True)
        return np.stack(tokens, 1), np.stack(logprobs, 1)

    def _advance(self, row: NaiveRow, told: NDArray[np.int32]) -> tuple[Any, Any]:
        row.before = (row.state, row.pending)
        tokens, logprobs = [], []
        for step, token in enumerate(told.tolist()):
            number = uniform(row.seed, row.drawn + step)
            fed = self.run.feed(row.state, row.pending, row.how, number)
            row.state, row.pending = fed.state, fed.drawn if token < 0 else token
            tokens.append(row.pending)
            logprobs.append(fed.logprobs)
        row.drawn += len(told)
        return tokens, logprobs

    def flat(self, row: NaiveRow) -> Floats:
        return np.concatenate([value[0] for value in row.state.values()])


class Machine:
    """Does the same to a DeviceRunner and to the naive rows, at random, and compares."""

    def __init__(self, runner: DeviceRunner, naive: Naive, seed: int) -> None:
        self.runner, self.naive = runner, naive
        self.random = np.random.default_rng(seed)
        self.done: dict[str, int] = {}

    def act(self) -> None:
        rows = self.naive.rows
        actions = [self.join] * (len(rows) < ROWS) + [self.leave, self.run, self.run] * bool(rows)
        action = actions[self.random.integers(len(actions))]
        action()
        self.done[action.__name__] = self.done.get(action.__name__, 0) + 1

    def join(self) -> None:
        place, random = len(self.naive.rows), self.random
        how = Draw(
            temperature=float(random.choice([0, 1, 2.5])),
            top_k=int(random.choice([0, 0, 4])),
            top_p=float(random.choice([1, 1, 0.8])),
        )
        pending, state = int(random.integers(SIZE)), None
        if place and random.random() < 0.5:
            # Goes on from where another row stands.
            other = int(random.integers(place))
            state = self.naive.rows[other].state
            self.runner.load(place, self.runner.save(other))
        else:
            self.runner.load(place, None)
        self.naive.join(int(random.integers(1000)), how, pending, state)
        self.runner.pending[place] = pending
        self.runner.temperature[place] = how.temperature
        self.runner.top_k[place], self.runner.top_p[place] = how.top_k, how.top_p
        self.check(place)

    def leave(self) -> None:
        rows = self.naive.rows
        place = int(self.random.integers(len(rows)))
        if self.random.random() < 0.5:
            self.runner.fetch(range(place, len(rows)))
        self.check(place)
        rows[place] = rows[-1]
        rows.pop()
        if place != len(rows):
            self.runner.move(len(rows), place)
            self.check(place)

    def run(self) -> None:
        rows, runner, random = self.naive.rows, self.runner, self.random
        steps = int(random.integers(1, 6))
        runner.filtered[...] = any(row.how.top_k or row.how.top_p < 1 for row in rows)
        runner.wants_logprobs[...] = random.random() < 0.5
        told = runner.told(len(rows), steps)
        told[...] = random.integers(-SIZE, SIZE, told.shape).clip(-1)
        numbers = runner.uniforms(len(rows), steps)
        for place, row in enumerate(rows):
            numbers[:, place] = [uniform(row.seed, row.drawn + step) for step in range(steps)]
        expected, expected_logprobs = self.naive.advance(told.copy())
        tokens, logprobs = runner.run(len(rows), steps)
        assert tokens.tolist() == expected.tolist()
        if not runner.wants_logprobs:
            expected_logprobs = np.take_along_axis(expected_logprobs, expected[..., None], 2)
        np.testing.assert_allclose(logprobs, expected_logprobs, rtol=0, atol=1e-5)
        for place in range(len(rows)):
            if random.random() < 0.3:
                self.rewind(place, steps)
            assert runner.pending[place] == rows[place].pending
        if random.random() < 0.5:
            self.check(int(random.integers(len(rows))))

    def rewind(self, place: int, steps: int) -> None:
        row = self.naive.rows[place]
        row.state, row.pending = row.before
        row.drawn -= steps
        self.runner.rewind(place, row.pending)
        self.done["rewind"] = self.done.get("rewind", 0) + 1

    def check(self, place: int) -> None:
        expected = self.naive.flat(self.naive.rows[place])
        np.testing.assert_allclose(self.runner.save(place), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("largest_sort", [0, SIZE], ids=["filters on host", "filters on device"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_as_if_each_were_alone(exported: Exported, seed: int, largest_sort: int) -> None:
    runner = exported.runner(replace(ON_CPU, largest_sort=largest_sort))
    machine = Machine(runner, Naive(LoneRun(exported.folder)), seed)
    for _ in range(100):
        machine.act()
    for place in range(len(machine.naive.rows)):
        machine.check(place)
    assert all(machine.done[name] > 5 for name in ("join", "leave", "run", "rewind"))


def test_rows_of_a_size_have_the_same_bits_whoever_else_is_there(exported: Exported) -> None:
    """A row in each place of a batch of four, with others about, against the same row with none."""
    random = np.random.default_rng(5)
    states = random.normal(size=(4, exported.runner().state_size)).astype(np.float32)
    found = set()
    for place in range(4):
        for others in ("none", "some"):
            runner = exported.runner()
            for row in range(4):
                state = states[random.integers(1, 4)] if others == "some" else None
                runner.load(row, states[0] if row == place else state)
                runner.pending[row] = 7 if row == place else random.integers(SIZE)
            runner.told(4, 9).fill(-1)
            runner.uniforms(4, 9)[...] = random.random((9, 4))
            runner.uniforms(4, 9)[:, place] = np.linspace(0, 0.99, 9)
            tokens, logprobs = runner.run(4, 9)
            row_of = (tokens[:, place], logprobs[:, place], runner.save(place))
            found.add(b"".join(array.tobytes() for array in row_of))
    assert len(found) == 1


def test_a_state_that_is_not_finite_shows_in_the_log_probabilities(exported: Exported) -> None:
    runner = exported.runner()
    for row in range(3):
        runner.load(row, np.full(runner.state_size, np.nan if row == 1 else 0, np.float32))
    runner.told(3, 2).fill(-1)
    runner.uniforms(3, 2).fill(0.5)
    for wants in (True, False):
        runner.wants_logprobs[...] = wants
        tokens, logprobs = runner.run(3, 2)
        assert np.isnan(logprobs[:, :, 0]).tolist() == [[False, True, False]] * 2
        assert set(tokens.ravel().tolist()) <= set(range(SIZE))


# --- Turns -------------------------------------------------------------------------------------


@pytest.fixture
def engines(exported: Exported) -> Iterator[list[Lane]]:
    engines: list[Lane] = []
    yield engines
    for engine in engines:
        engine.close()


def started(exported: Exported, engines: list[Lane], *, wants_logprobs: bool) -> Lane:
    vocabulary = CharacterVocabulary([c.encode() for c in CHARACTERS], None, (), None)
    runner = exported.runner()
    runner.wants_logprobs[...] = wants_logprobs
    loop = asyncio.get_running_loop()
    engine = Lane("device", runner, vocabulary, Flushing(), loop)
    engines.append(engine)
    engine.start()
    return engine


def turn(seed: int, draws: int, *, stop: tuple[str, ...] = (), logprobs: int | None = None) -> Turn:
    told = np.array([seed % SIZE, 7, 3], np.int32)
    start, sampling = Past(None, None, 0), Sampling(seed)
    return Turn(Task(start, told, draws, sampling, stop, logprobs, False, False))


async def finish(turn: Turn) -> tuple[list[Delta], Ending]:
    deltas: list[Delta] = []
    async with asyncio.timeout(SECONDS):
        while not isinstance(message := await turn.next(), Ending):
            deltas.append(message)
    return deltas, message


def ids(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def lone(exported: Exported, seed: int) -> LoneSequence:
    sequence = LoneSequence(LoneRun(exported.folder), seed, None)
    for token in (seed % SIZE, 7, 3):
        sequence.tell(token)
    return sequence


@pytest.mark.parametrize("wants_logprobs", [True, False])
async def test_turns_are_those_of_a_lone_run(
    exported: Exported, engines: list[Lane], wants_logprobs: bool
) -> None:
    """More turns than places, some of which end at a stop string inside a run."""
    engine = started(exported, engines, wants_logprobs=wants_logprobs)
    turns = {}
    for seed in range(4 * ROWS):
        draws = 5 + 7 * (seed % 5)
        sequence = lone(exported, seed)
        expected = [sequence.draw(Draw())[0] for _ in range(draws)]
        stop: tuple[str, ...] = ()
        if seed % 3 == 0:
            stop = (CHARACTERS[expected[2]],)
            expected = expected[: expected.index(expected[2]) + 1]
        turns[seed] = (turn(seed, draws, stop=stop), expected)
        engine.submit(turns[seed][0])
    for seed, (each, expected) in turns.items():
        deltas, ending = await finish(each)
        assert ids(deltas) == expected
        # The state is that before the newest token.
        sequence, run = lone(exported, seed), LoneRun(exported.folder)
        state = run.start()
        for token in [*sequence.tokens, *expected][:-1]:
            state = run.feed(state, token).state
        found = ending.past.state
        assert found is not None
        flat = np.concatenate([value[0] for value in state.values()])
        np.testing.assert_allclose(found, flat, rtol=0, atol=1e-5)


async def test_states_on_the_way_are_handed_out_and_started_from(
    exported: Exported, engines: list[Lane]
) -> None:
    engine, run = started(exported, engines, wants_logprobs=False), LoneRun(exported.folder)
    prompts = [
        np.random.default_rng(seed).integers(0, SIZE, 50).astype(np.int32) for seed in range(ROWS)
    ]
    wanted: list[list[Prefix]] = [[] for _ in prompts]
    # One more row draws beside them, and moves when others leave.
    turns = [turn(99, 70)] + [
        telling(told, Recall(marks=(8, 17 + seed, 33), remember=wanted[seed].append))
        for seed, told in enumerate(prompts)
    ]
    for each in turns:
        engine.submit(each)
    for each in turns:
        await finish(each)
    for seed, told in enumerate(prompts):
        state, states = run.start(), {}
        for count, token in enumerate(told.tolist(), 1):
            state = run.feed(state, token).state
            states[count] = np.concatenate([value[0] for value in state.values()])
        assert [prefix.tokens for prefix in wanted[seed]] == [8, 17 + seed, 33]
        for prefix in wanted[seed]:
            np.testing.assert_allclose(prefix.state, states[prefix.tokens], rtol=0, atol=1e-5)
        again = [telling(told, Recall(), seed), telling(told, Recall(wanted[seed][1]), seed)]
        for each in again:
            engine.submit(each)
        (deltas, ending), (others, other) = [await finish(each) for each in again]
        assert ids(deltas) == ids(others)
        assert (ending.told, ending.cached) == (50, 0)
        assert (other.told, other.cached) == (50, 17 + seed)


def telling(told: Tokens, recall: Recall, seed: int = 0) -> Turn:
    start, sampling = Past(None, None, 0), Sampling(seed)
    return Turn(Task(start, told, 9, sampling, (), None, False, False, recall))


async def test_log_probabilities_are_those_of_pytorch(
    exported: Exported, engines: list[Lane]
) -> None:
    engine = started(exported, engines, wants_logprobs=True)
    turns = [turn(seed, 40, logprobs=0) for seed in range(ROWS)]
    for each in turns:
        engine.submit(each)
    for each in turns:
        deltas, _ = await finish(each)
        tokens = [*each.task.told.tolist(), *ids(deltas)]
        with torch.no_grad():
            after = exported.model(torch.tensor([tokens]))[0]
        found = np.concatenate([d.logprobs.chosen for d in deltas if d.logprobs is not None])
        expected = after[np.arange(2, len(tokens) - 1), tokens[3:]].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# --- Opening -----------------------------------------------------------------------------------


def opened(exported: Exported, device: str, files: tuple[str, ...] = GRAPHS) -> AnyRunner:
    config = RunnerConfig(device, 1)
    (runner,) = open_runners(
        exported.folder, files, exported.specs, SIZE, ROWS, config, halves=False
    )
    return runner


def test_cuda_without_a_device_is_refused_and_auto_takes_the_cpu(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "has_cuda", lambda: False)
    with pytest.raises(DeviceError, match="--device cuda"):
        opened(exported, "cuda")
    assert opened(exported, "auto").device == "cpu"


def test_cuda_without_its_graphs_says_how_they_are_made(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "has_cuda", lambda: True)
    with pytest.raises(RunnerError, match=r"device\.onnx.*export the model with --device cuda"):
        opened(exported, "cuda", files=("engine.onnx",))
    assert opened(exported, "auto", files=("engine.onnx",)).device == "cpu"


@pytest.mark.parametrize(("rows", "shares"), [(31, [31]), (33, [17, 16]), (62, [21, 21, 20])])
def test_lanes_share_all_rows_there_are_to_be(
    exported: Exported, rows: int, shares: list[int]
) -> None:
    config = RunnerConfig("cpu", 3)
    runners = open_runners(exported.folder, (), exported.specs, SIZE, rows, config, halves=False)
    assert [runner.rows for runner in runners] == shares
    for runner, share in zip(runners, shares, strict=True):
        runner.told(share, 1).fill(5)
        tokens, _ = runner.run(share, 1)
        assert tokens.tolist() == [[5] * share]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in place of a CUDA device."""
    monkeypatch.setattr(opening, "has_cuda", lambda: True)
    monkeypatch.setattr(opening, "DeviceConfig", lambda _, **rest: DeviceConfig("cpu", **rest))


def fail_runs(monkeypatch: pytest.MonkeyPatch, fails: Callable[[RunOptions | None], bool]) -> None:
    """Have onnxruntime fail in the runs of some options."""
    run = Binding.run

    def failing(binding: Binding, options: RunOptions | None = None) -> None:
        if fails(options):
            raise RuntimeError("CUDA failure 901: operation failed\nin a node")
        run(binding, options)

    monkeypatch.setattr(Binding, "run", failing)


def is_captured(options: RunOptions | None) -> bool:
    try:
        return options is not None and bool(options.get_run_config_entry("gpu_graph_id"))
    except RuntimeError:
        return False


def drawn(runner: AnyRunner) -> list[int]:
    runner.load(0, None)
    runner.pending[0] = 7
    runner.wants_logprobs[...] = False
    runner.told(1, 9).fill(-1)
    runner.uniforms(1, 9)[...] = np.linspace(0, 0.99, 9)[:, None]
    tokens: list[int] = runner.run(1, 9)[0][:, 0].tolist()
    return tokens


def events(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    return {record.message: record.fields["reason"] for record in caplog.records}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("filters", [False, True])
def test_a_runner_that_was_tried_out_is_as_new(exported: Exported, filters: bool) -> None:
    tried, new = opened(exported, "cuda"), exported.runner()
    assert isinstance(tried, DeviceRunner)
    for runner in (tried, new):
        runner.filtered[...] = filters
    assert (tried.pending == new.pending).all()
    assert tried.save(0).tolist() == new.save(0).tolist()
    assert bool(tried.wants_logprobs) == bool(new.wants_logprobs)
    assert drawn(tried) == drawn(new)


@pytest.mark.usefixtures("stand_in")
def test_steps_that_cannot_be_captured_are_launched_node_by_node(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_runs(monkeypatch, is_captured)
    runner = opened(exported, "cuda")
    (event,) = events(caplog).items()
    assert event[0] == "cuda_graphs_unused"
    assert re.search("device.onnx: a run fails on .*CUDA failure 901: operation failed$", event[1])
    assert isinstance(runner, DeviceRunner)
    assert drawn(runner) == drawn(exported.runner(DeviceConfig("cpu", captures=False)))


@pytest.mark.usefixtures("stand_in")
def test_a_device_on_which_every_run_fails_is_refused_and_auto_takes_the_cpu(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_runs(monkeypatch, lambda _: True)
    with pytest.raises(DeviceError, match=r"a run fails on .*CUDA failure 901"):
        opened(exported, "cuda")
    caplog.clear()
    assert isinstance(opened(exported, "auto"), Runner)
    found = events(caplog)
    assert set(found) == {"cuda_graphs_unused", "device_unused"}
    assert "CUDA failure 901" in found["device_unused"]


def test_memory_that_a_device_does_not_have_is_the_devices_fault(exported: Exported) -> None:
    with pytest.raises(DeviceError, match=r"no room for 4,\d+,\d+,\d+,\d+ bytes.*--max-rows"):
        Block("cpu", {"x": (np.float32, (1 << 40,))})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_auto_takes_the_cpu_where_no_session_runs_on_the_device(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver answers, and onnxruntime cannot use it."""
    monkeypatch.setattr(opening, "has_cuda", lambda: True)
    assert opened(exported, "auto").device == "cpu"
    with pytest.raises(DeviceError, match="does not run on cuda"):
        opened(exported, "cuda")


@pytest.fixture
def cuda_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No session opens on CUDA; no library was looked for yet, and none will have been."""
    real = onnxruntime.InferenceSession._create_inference_session

    def create(session: Any, providers: Any, *rest: Any) -> None:
        if "CUDAExecutionProvider" in str(providers):
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nGPU=-1")
        real(session, providers, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    load_libraries.cache_clear()
    yield
    load_libraries.cache_clear()


@pytest.mark.usefixtures("cuda_fails")
def test_why_a_device_is_not_used_is_said(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is not what the CPU says that onnxruntime falls back to; and none of it is output."""
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("all is well"))
    with pytest.raises(DeviceError, match=r"device\.onnx: .*CUDA failure 100: no CUDA.*detected$"):
        open_session(exported.folder / STEP, "cuda", {})
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("cuda_fails")
def test_libraries_that_are_missing_are_named_and_looked_for_once_if_at_all(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def preload() -> None:
        calls.append(1)
        print("Failed to load libcurand.so.10: no such file\nPlease follow https://onnxruntime.ai")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(opening, "has_cuda", lambda: False)
    for device in ("cpu", "auto"):
        opened(exported, device)
    exported.runner()
    assert not calls
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"Failed to load libcurand.*requirements/gpu\.txt"):
            open_session(exported.folder / STEP, "cuda", {})
    assert len(calls) == 1
    assert capfd.readouterr().out == ""


def test_a_graph_of_another_model_is_refused(exported: Exported) -> None:
    specs = (replace(exported.specs[0], size=47), *exported.specs[1:])
    with pytest.raises(RunnerError, match=r"device\.onnx: input h_00"):
        DeviceRunner(exported.folder, specs, SIZE, ROWS, ON_CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("cuda_fails")
def test_a_damaged_graph_is_named_wherever_it_is_opened(tmp_path: Path, device: str) -> None:
    (tmp_path / FILTERS).write_bytes(b"no graph")
    with pytest.raises(RunnerError, match=f"{FILTERS}: .*[Pp]rotobuf"):
        open_session(tmp_path / FILTERS, device, {})
    with pytest.raises(RunnerError, match=f"{STEP}: there is no such file"):
        open_session(tmp_path / STEP, device, {})


def test_room_for_steps_shrinks_with_rows_only_where_distributions_are_wanted(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unrolled_server.device_runner.LOGPROBS_BYTES", 4 * SIZE * 3 * 5)
    runner = exported.runner()
    assert (runner.most_steps(1), runner.most_steps(5), runner.most_steps(6)) == (15, 3, 2)
    runner.wants_logprobs[...] = False
    assert runner.most_steps(ROWS) == MAX_STEPS

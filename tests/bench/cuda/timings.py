"""How fast a device runs, bare and under the engine, and the limits that it sets."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from unrolled_server.delivery import Flushing
from unrolled_server.device_runner import DeviceRunner
from unrolled_server.engine import Engine
from unrolled_server.lane import Lane
from unrolled_server.running import AnyRunner
from unrolled_server.turn import Task, Turn
from unrolled_server.types import MAX_STEPS, Ending, Past, Sampling
from unrolled_server.vocabulary import CharacterVocabulary

from bench.cuda.models import Subject

STEPS = (1, 4, 8, 16)
DRAWS = 2047
"""Of every turn under the engine; with the token it is told, whole runs."""
WARM_SECONDS = 90
"""In which all turns are to have had their first; a shorter one, so that they end at all times."""
MESSAGES = (Flushing(), Flushing(tokens=1024))
LANES = (1, 2)


class Rates:
    """What settings came to, by name, and why others came to nothing."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    @contextmanager
    def setting(self, name: str) -> Iterator[None]:
        """Measure one; if that fails, the others go on: time on a device is dear."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"


def plain(runner: DeviceRunner) -> None:
    """Runs in which all steps are launched before any is waited for."""


def filtered(runner: DeviceRunner) -> None:
    """Runs in which every row filters."""
    runner.filtered[...] = True
    runner.top_k.fill(40)
    runner.top_p.fill(0.95)


def distributions(runner: DeviceRunner) -> None:
    """Runs that return all log-probabilities."""
    runner.wants_logprobs[...] = True


def sweep(
    subject: Subject,
    models: Path,
    rows: int,
    device: str,
    seconds: float,
    asked: Callable[[DeviceRunner], None] = plain,
    numbers: Sequence[int] = STEPS,
) -> Rates:
    """Tokens a second at these numbers of steps, with and without CUDA graphs."""
    rates = Rates()
    # Last what may leave the device unusable.
    for captures in (False, True):
        for steps in numbers:
            name = f"K {steps}, {'CUDA graphs' if captures else 'launched node by node'}"
            with rates.setting(name):
                runner = subject.runner(models, rows, device, captures=captures)
                asked(runner)
                rates.found[name] = tokens_per_second(runner, rows, steps, seconds)
    return rates


def tokens_per_second(runner: DeviceRunner, rows: int, steps: int, seconds: float) -> float:
    """Of runs in which all rows draw, one after the other."""
    for row in range(rows):
        runner.load(row, None)
        runner.pending[row] = row % 7
    runner.told(rows, steps).fill(-1)
    runner.uniforms(rows, steps)[...] = np.random.default_rng(1).random((steps, rows))
    # Every set of states has been first once, and all steps are captured.
    for _ in range(6):
        runner.run(rows, steps)
    runs, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        runner.run(rows, steps)
        runs += 1
    return runs * rows * steps / taken


def engine_rates(subject: Subject, models: Path, rows: int, device: str, seconds: float) -> Rates:
    """Tokens a second of endless turns, delivered to a loop that reads them all: with messages of
    the usual size and wide ones, in one lane and in several that share the rows."""
    rates = Rates()
    for flushing in MESSAGES:
        for lanes in LANES:
            name = f"{flushing.tokens} tokens a message, lanes: {lanes}"
            with rates.setting(name):
                runners = [subject.runner(models, rows // lanes, device) for _ in range(lanes)]
                rate = under_engine(runners, subject, rows, flushing, seconds)
                rates.found[name] = asyncio.run(rate)
    return rates


async def under_engine(
    runners: Sequence[AnyRunner], subject: Subject, rows: int, flushing: Flushing, seconds: float
) -> float:
    """Tokens a second of `rows` endless turns, in a lane for each runner."""
    characters = [chr(0x100 + token).encode() for token in range(subject.vocabulary)]
    vocabulary = CharacterVocabulary(characters, None, (), None)
    loop = asyncio.get_running_loop()
    engine = Engine([Lane("bench", it, vocabulary, flushing, loop) for it in runners])
    engine.start()
    readers = [asyncio.create_task(_read(engine, seed)) for seed in range(rows)]
    try:
        before = await _drawn(engine, readers, DRAWS * rows)
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        drawn = await _drawn(engine, readers, before + 1) - before
        return drawn / (time.perf_counter() - started)
    finally:
        for reader in readers:
            reader.cancel()
        engine.close()


async def _drawn(engine: Engine, readers: Sequence[asyncio.Task[None]], least: int) -> int:
    """Tokens that the engine has drawn, once they are so many; raises what ends a reader."""
    async with asyncio.timeout(WARM_SECONDS):
        # What is waited for are counters of other threads.
        while (drawn := engine.stats.generated_tokens) < least:
            for reader in readers:
                if reader.done():
                    reader.result()
            await asyncio.sleep(0.05)
    return drawn


async def _read(engine: Engine, seed: int) -> None:
    """One turn after the other, the first shorter so that turns do not all end at once."""
    told = np.array([seed % 7, 1], np.int32)
    draws = DRAWS - MAX_STEPS * (seed % ((DRAWS + 1) // MAX_STEPS))
    while True:
        start = Past(None, None, 0)
        turn = Turn(Task(start, told, draws, Sampling(seed), (), None, False, False))
        engine.submit(turn)
        while not isinstance(await turn.next(), Ending):
            pass
        draws = DRAWS


def limits() -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of fp16 products."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.half) for _ in range(2))
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "copy_bytes_per_second": 2 * source.numel() / _seconds(lambda: target.copy_(source)),
        "fp16_operations_per_second": 2 * size**3 / _seconds(lambda: torch.mm(left, right)),
    }


def _seconds(work: Callable[[], Any], count: int = 20) -> float:
    """Of one call, the median of events around each."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(count):
        begin, end = _event(), _event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return float(np.median(taken))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def operations_per_token(subject: Subject) -> int:
    """Of the products of a step: two for each weight, but for those that are looked up."""
    square = 4 * subject.hidden * subject.hidden
    return 2 * (square * (2 * subject.layers - 1) + subject.hidden * subject.vocabulary)


def bytes_per_step(subject: Subject) -> int:
    """Weights that a step reads, which is all that a batch of one costs."""
    weight = 2 if subject.fp16 else 4
    square = 4 * subject.hidden * subject.hidden
    return weight * square * (2 * subject.layers - 1) + 4 * subject.hidden * subject.vocabulary

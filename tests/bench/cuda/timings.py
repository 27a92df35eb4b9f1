"""How fast a device runs, bare and under the engine, and the limits that it sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from unrolled_server.delivery import Delivery
from unrolled_server.device_runner import DeviceRunner
from unrolled_server.lane import Lane
from unrolled_server.turn import Task, Turn
from unrolled_server.types import Checkpoint, Ending, Sampling
from unrolled_server.vocabulary import CharacterVocabulary

from bench.cuda.models import Subject

STEPS = (1, 4, 8, 16)
DRAWS = 2048
"""Of every turn under the engine."""
WARM_SECONDS = 90
"""In which all turns are to be under way."""


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


def engine_tokens_per_second(
    subject: Subject, models: Path, rows: int, device: str, seconds: float
) -> float:
    """Of `rows` endless turns through an Lane, delivered to a loop that reads them all."""
    return asyncio.run(_under_engine(subject.runner(models, rows, device), subject, rows, seconds))


async def _under_engine(runner: DeviceRunner, subject: Subject, rows: int, seconds: float) -> float:
    characters = [chr(0x100 + token).encode() for token in range(subject.vocabulary)]
    vocabulary = CharacterVocabulary(characters, None, (), None)
    loop = asyncio.get_running_loop()
    engine = Lane("bench", runner, vocabulary, rows, Delivery(), loop)
    engine.start()
    readers = [asyncio.create_task(_read(engine, seed)) for seed in range(rows)]
    async with asyncio.timeout(WARM_SECONDS):
        # What is waited for are counters of another thread.
        while engine.stats.active < rows or engine.stats.generated_tokens < 64 * rows:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    before, started = engine.stats.generated_tokens, time.perf_counter()
    async with asyncio.timeout(seconds + WARM_SECONDS):
        await asyncio.sleep(seconds)
        while engine.stats.generated_tokens == before:  # noqa: ASYNC110
            await asyncio.sleep(seconds)
    rate = (engine.stats.generated_tokens - before) / (time.perf_counter() - started)
    for reader in readers:
        reader.cancel()
    engine.close()
    return rate


async def _read(engine: Lane, seed: int) -> None:
    """One turn after the other."""
    told = np.array([seed % 7, 1], np.int32)
    while True:
        start = Checkpoint(None, None, 0)
        turn = Turn(Task(start, told, DRAWS, Sampling(seed), (), None, False, False))
        engine.submit(turn)
        while not isinstance(await turn.next(), Ending):
            pass


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


def sweep(
    subject: Subject, models: Path, rows: int, device: str, seconds: float
) -> Iterator[tuple[str, float]]:
    """Tokens a second at every number of steps, with and without CUDA graphs."""
    for captures in (True, False):
        runner = subject.runner(models, rows, device, captures=captures)
        for steps in STEPS:
            name = f"K {steps}, {'CUDA graphs' if captures else 'launched node by node'}"
            yield name, tokens_per_second(runner, rows, steps, seconds)

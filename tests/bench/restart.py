"""How long a server with many sessions in its store takes from its start to serving."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from support.in_process import fill, in_process
from unrolled import AsyncClient

from bench.figure import Bench, Figure, Group, Result
from bench.models import Models
from bench.progress import Counter, in_turns
from bench.rate import cpu_seconds
from bench.ratios import median
from bench.subjects import SMALL, serving

FULL = 100_000
IN_MEMORY = 1_000
"""Sessions, while they are made."""

RESTART = Figure(
    "restart_seconds_100k",
    "s",
    "from a server's start to serving, 100,000 sessions in its SQLite store",
    2.0,
    1.0,
)


def groups() -> Iterator[Group]:
    """One."""
    yield Group((RESTART,), _measure)


@dataclass(frozen=True)
class Stored:
    """A file of sessions, and one of them."""

    path: Path
    session: str


@dataclass(frozen=True)
class Start:
    """Seconds since a server was started."""

    serving: float
    cpu: float
    """Of the server's CPU time until then, which a busy machine makes no longer."""
    first_turn: float
    """Until a client had the answer to a turn of a stored session."""


def _measure(bench: Bench) -> Iterator[Result]:
    models, count = bench.models.models(SMALL), min(FULL, bench.settings.sessions)
    with TemporaryDirectory(dir=bench.folder) as folder:
        many, one = (_stored(bench, models, Path(folder), count) for count in (count, 1))
        rounds = in_turns(
            "restart",
            bench.settings.rounds,
            lambda: _start(bench, models, many),
            lambda: _start(bench, models, one),
        )
    result = median(
        RESTART,
        [full.serving for full, _ in rounds],
        cpu_seconds=round(statistics.median(full.cpu for full, _ in rounds), 2),
        cpu_seconds_with_one_session=round(statistics.median(one.cpu for _, one in rounds), 2),
        first_turn=round(statistics.median(full.first_turn for full, _ in rounds), 3),
        with_one_session=round(statistics.median(one.serving for _, one in rounds), 3),
    )
    yield replace(result, reduced="" if count == FULL else f"{count:,} sessions")


def _stored(bench: Bench, models: Models, folder: Path, count: int) -> Stored:
    path = folder / f"{count}.db"
    name = bench.generator.run(fill_store, models.served, path, models.name("fp32"), count)
    return Stored(path, name)


async def fill_store(models: Path, path: Path, model: str, count: int) -> str:
    """Store so many sessions with a turn taken; the name of the last."""
    counter = Counter(f"{model}, sessions", count)
    async with in_process(models, path, IN_MEMORY) as here:
        return (await fill(here, model, range(count), counter.advance))[-1]


def _start(bench: Bench, models: Models, stored: Stored) -> Start:
    """Start a server and kill it once it has answered a turn."""
    started = time.perf_counter()
    with serving(models, "--store", f"sqlite:{stored.path}") as server:
        serving_after, cpu = time.perf_counter() - started, cpu_seconds(server.process.pid)
        bench.generator.run(take_turn, server.address, stored.session)
        return Start(serving_after, cpu, time.perf_counter() - started)


async def take_turn(address: str, name: str) -> None:
    """One told, one drawn."""
    async with AsyncClient(address) as client:
        session = await client.session(name)
        await session.complete("a", max_tokens=1)

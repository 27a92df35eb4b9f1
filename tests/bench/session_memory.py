"""Resident bytes of a session that is idle, over those of its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from support.server import RunningServer
from unrolled import AsyncClient

from bench.figure import Bench, Figure, Group, Result
from bench.models import Models, Recipe
from bench.progress import Counter, say
from bench.rate import resident_bytes
from bench.subjects import LARGE, SMALL, serving

FULL = 1_000_000
ALSO_AT = (1_000, 100_000)
"""In the detail."""
AT_ONCE = 128
"""Calls in flight."""
WARM_CALLS = 4_000

WHAT = "resident bytes of an idle session over its state's"


def groups() -> Iterator[Group]:
    """One for each size of state."""
    yield _group(Figure("session_bytes_1k", "ratio", f"{WHAT} of 1 KB", 2.0, 1.3), SMALL)
    yield _group(Figure("session_bytes_8k", "ratio", f"{WHAT} of 8 KB", 1.25, 1.05), LARGE)


def _group(figure: Figure, recipe: Recipe) -> Group:
    return Group((figure,), partial(_measure, figure, recipe))


def _measure(figure: Figure, recipe: Recipe, bench: Bench) -> Iterator[Result]:
    models, sessions = bench.models.models(recipe), bench.settings.sessions
    counts = [count for count in ALSO_AT if count < sessions] + [sessions]
    started = time.perf_counter()
    # Sessions do not end while others are made.
    with serving(models, "--max-sessions", str(sessions), "--session-ttl", "7d") as server:
        before, resident = _fill(bench, server, models, counts)
    bars = {
        f"{count:,} sessions": round((after - before) / count / recipe.state_bytes, 4)
        for count, after in resident.items()
    }
    detail = {
        "sessions": sessions,
        "model": recipe.name,
        "state_bytes": recipe.state_bytes,
        "resident_bytes_before": before,
        "resident_bytes": {str(count): after for count, after in resident.items()},
        "seconds": round(time.perf_counter() - started),
        "ratio": bars,
    }
    reduced = "" if sessions == FULL else f"{sessions:,} sessions"
    yield Result(figure, bars[f"{sessions:,} sessions"], detail, bars, reduced)


def _fill(
    bench: Bench, server: RunningServer, models: Models, counts: list[int]
) -> tuple[int, dict[int, int]]:
    """Resident bytes before there was a session, and at each count."""
    address, model, pid = server.address, models.name("fp32"), server.process.pid
    say(f"{model}: warming up")
    bench.generator.run(turns_without_sessions, address, model, WARM_CALLS)
    before, resident, made = resident_bytes(pid), {}, 0
    for count in counts:
        bench.generator.run(make_sessions, address, model, made, count)
        resident[count], made = resident_bytes(pid), count
    return before, resident


async def turns_without_sessions(address: str, model: str, count: int) -> None:
    """What calls themselves need to be resident, so that it is not taken for sessions'."""
    async with AsyncClient(address) as client:
        counter = Counter(f"{model}, turns", count)
        await _many(count, lambda: client.complete("a", model=model, max_tokens=1), counter)


async def make_sessions(address: str, model: str, made: int, count: int) -> None:
    """From `made` to `count` sessions, each of which takes one turn: one told, one drawn."""
    async with AsyncClient(address) as client:

        async def make() -> None:
            session = await client.create_session(model)
            await session.complete("a", max_tokens=1)

        await _many(count - made, make, Counter(f"{model}, sessions", count, made))


async def _many(count: int, call: Callable[[], Coroutine[Any, Any, Any]], counter: Counter) -> None:
    """Make `count` calls, AT_ONCE at a time."""
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            await call()
            counter.advance()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())

"""The server's sessions and turns in this process, without gRPC: for very many sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.delivery import Flushing
from unrolled_server.engine import Engine
from unrolled_server.lane import Lane
from unrolled_server.models import Models
from unrolled_server.opening import RunnerConfig
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.repository import load_models
from unrolled_server.running import AnyRunner
from unrolled_server.session import Session
from unrolled_server.sqlite_store import SqliteStore
from unrolled_server.stored_keeper import StoredKeeper
from unrolled_server.tasks import TurnLimits
from unrolled_server.turns import Turns
from unrolled_server.types import TurnRequest
from unrolled_server.vocabulary import Vocabulary

AT_ONCE = 256
"""Sessions that are made at the same time."""
IDLE_SECONDS = 30 * 86400.0
"""After which sessions end."""


@dataclass(frozen=True)
class InProcess:
    """What there is of a server."""

    models: Models
    sessions: StoredKeeper
    turns: Turns

    async def create(self, model: str, seed: int | None = None) -> Session:
        """A new session, stored."""
        return await self.sessions.create(self.models.model(model), seed)

    async def complete(self, session: str, prompt: str, drawn: int) -> list[tuple[int, float]]:
        """A turn of the session of this name; the drawn tokens and their log-probabilities."""
        request = TurnRequest("", session, prompt, "prompt", drawn, logprobs=0)
        said: list[tuple[int, float]] = []
        async with await self.turns.begin(request) as turn:
            async for delta in turn:
                if delta.logprobs is not None:
                    said += zip(delta.token_ids, map(float, delta.logprobs.chosen), strict=True)
        return said


@asynccontextmanager
async def in_process(models: Path, store: Path, max_sessions: int) -> AsyncIterator[InProcess]:
    """Serve these models' sessions from this file, as many in memory; one thread runs a model."""
    loop = asyncio.get_running_loop()

    def start(label: str, runners: Sequence[AnyRunner], vocabulary: Vocabulary) -> Engine:
        engine = Engine([Lane(label, r, vocabulary, Flushing(), loop) for r in runners])
        engine.start()
        return engine

    served = load_models(models, AT_ONCE, RunnerConfig("cpu", 1), start)
    memory = CachedSessions(max_sessions, IDLE_SECONDS)
    sessions = StoredKeeper(memory, served, SqliteStore(store))
    limits, prefixes = TurnLimits(1024, 1024, AT_ONCE), PrefixCache(0)
    try:
        yield InProcess(served, sessions, Turns(served, sessions, limits, prefixes))
    finally:
        await sessions.close()
        for model in served.ready():
            model.engine.close()


async def fill(
    here: InProcess, model: str, seeds: Sequence[int], made: Callable[[], None]
) -> list[str]:
    """Make a session of each seed, and have it take a turn: one told, one drawn.

    Returns their names in the order of the seeds. Each calls `made`.
    """
    names, left = [""] * len(seeds), iter(enumerate(seeds))

    async def make() -> None:
        for place, seed in left:
            session = await here.create(model, seed)
            names[place] = session.name
            await here.complete(session.name, "a", 1)
            made()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(make())
    return names

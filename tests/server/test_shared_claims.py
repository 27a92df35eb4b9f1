"""Two servers' sessions in one process, on one real Redis: who takes what from whom, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
from support.redis import RunningRedis, running_redis
from unrolled.v1 import model_pb2
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.redis_store import RedisStore
from unrolled_server.session_record import SessionRecord
from unrolled_server.shared_sessions import SharedSessions
from unrolled_server.store import Claim, Receipt
from unrolled_server.types import Checkpoint
from unrolled_server.vocabulary import CharacterVocabulary

VOCABULARY = CharacterVocabulary([b"a"], None, (), None)
MODEL = ServedModel("m", 1, "0f" * 32, 4, VOCABULARY, cast("Any", None), "cpu")


class WatchedStore(RedisStore):
    """Redis, whose answers can be held back."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=30.0)
        self.inserted, self.answers = asyncio.Event(), asyncio.Event()
        self.answers.set()

    async def insert(self, record: SessionRecord) -> Receipt:
        receipt = await super().insert(record)
        self.inserted.set()
        await self.answers.wait()
        return receipt


class Server:
    """Room for some sessions in memory."""

    def __init__(self, url: str) -> None:
        models = Models([Entry(model_pb2.Model(name="m", version=1), MODEL)])
        self.store = WatchedStore(url)
        self.sessions = SharedSessions(CachedSessions(9, 3600.0), models, self.store)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
async def pair(running: RunningRedis) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers on an empty Redis."""
    with running.client() as client:
        client.flushall()
    one, other = Server(running.url), Server(running.url)
    for server in (one, other):
        await server.store.open()
    yield one, other
    for server in (one, other):
        await server.sessions.close()


async def others_run() -> None:
    """Let everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def at(position: int) -> Checkpoint:
    return Checkpoint(np.full(4, position, np.float32), 0, position)


@pytest.mark.parametrize("is_found", [True, False])
async def test_a_session_that_nobody_was_told_of_ends_unless_another_server_has_it(
    pair: tuple[Server, Server], is_found: bool
) -> None:
    maker, finder = pair
    maker.store.answers.clear()
    making = asyncio.create_task(maker.sessions.create(MODEL))
    await maker.store.inserted.wait()
    making.cancel()
    with suppress(asyncio.CancelledError):
        await making
    (view,), _ = await finder.sessions.page("", 9, "")
    if is_found:
        session = await finder.sessions.load(view.name, Claim(0))
        finder.sessions.memory.hold(session, lambda: None)
    maker.store.answers.set()
    await others_run()
    await maker.sessions.expire()
    if is_found:
        await finder.sessions.commit(session, at(100))
        finder.sessions.release(session)
        await maker.sessions.expire()
        assert (await maker.sessions.load(view.name)).position == 100
    else:
        assert (await finder.sessions.page("", 9, ""))[0] == []

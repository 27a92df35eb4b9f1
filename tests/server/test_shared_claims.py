"""Two servers' sessions in one process, on one real Redis: who takes what from whom, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
from support.redis import RunningRedis, running_redis
from unrolled.v1 import model_pb2
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.errors import CheckpointNotFound
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.redis_store import RedisStore
from unrolled_server.session import Session
from unrolled_server.session_names import session_id
from unrolled_server.session_record import SessionRecord
from unrolled_server.shared_keeper import SharedKeeper
from unrolled_server.standing import Change
from unrolled_server.store import Claim, Receipt, Sight, Version
from unrolled_server.types import Past
from unrolled_server.vocabulary import CharacterVocabulary

VOCABULARY = CharacterVocabulary([b"a"], None, (), None)
MODEL = ServedModel("m", 1, "0f" * 32, 4, VOCABULARY, cast("Any", None), "cpu")


class WatchedStore(RedisStore):
    """Redis, whose answers can be held back."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=30.0)
        self.inserted, self.answers = asyncio.Event(), asyncio.Event()
        self.looking = asyncio.Event()
        for held_back in (self.answers, self.looking):
            held_back.set()
        self.looks: list[Claim | None] = []
        """The claims that came with looks."""
        self.before_claim: Callable[[], Awaitable[None]] | None = None

    async def insert(self, record: SessionRecord) -> Receipt:
        receipt = await super().insert(record)
        self.inserted.set()
        await self.answers.wait()
        return receipt

    async def look(
        self, id_: bytes, tenant: str, known: Version | None, claim: Claim | None = None
    ) -> Sight | None:
        self.looks.append(claim)
        await self.looking.wait()
        if claim is not None and self.before_claim is not None:
            await self.before_claim()
        return await super().look(id_, tenant, known, claim)


class Server:
    """Room for some sessions in memory."""

    def __init__(self, url: str) -> None:
        models = Models([Entry(model_pb2.Model(name="m", version=1), MODEL)])
        self.store = WatchedStore(url)
        self.sessions = SharedKeeper(CachedSessions(9, 3600.0), models, self.store)


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


def id_of(name: str) -> bytes:
    id_ = session_id(name)
    assert id_ is not None
    return id_


def at(position: int) -> Past:
    return Past(np.full(4, position, np.float32), 0, position)


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


async def changed(server: Server, name: str, change: Change) -> None:
    await server.sessions.change(name, None, change)


async def advance(server: Server, name: str, position: int) -> None:
    """A turn."""
    session = await server.sessions.load(name, Claim())
    server.sessions.memory.hold(session, lambda: None)
    await server.sessions.commit(session, at(position))
    server.sessions.release(session)


async def test_what_memory_allows_and_the_store_refuses_ends_no_turn(
    pair: tuple[Server, Server],
) -> None:
    """One server rewinds to a checkpoint of its own, which another has deleted."""
    stale, other = pair
    name = (await stale.sessions.create(MODEL)).name
    await changed(stale, name, lambda standing: standing.with_checkpoint("x"))
    await changed(other, name, lambda standing: standing.without_checkpoint("x"))
    session = await other.sessions.load(name, Claim())
    other.sessions.memory.hold(session, lambda: None)
    with pytest.raises(CheckpointNotFound):
        await changed(stale, name, lambda standing: standing.rewound("x"))
    await other.sessions.commit(session, at(3))
    other.sessions.release(session)
    assert (await stale.sessions.load(name)).position == 3


async def test_what_changes_after_the_check_is_checked_before_the_claim(
    pair: tuple[Server, Server],
) -> None:
    """Another server moves the session on, and has a turn on it, just before each claim."""
    one, other = pair
    name = (await other.sessions.create(MODEL)).name
    checked: list[int] = []

    def check(session: Session) -> None:
        checked.append(session.position)
        if session.position == 2:
            raise CheckpointNotFound(name, "x")

    async def meddle() -> None:
        await advance(other, name, len(checked))

    one.store.before_claim = meddle
    with pytest.raises(CheckpointNotFound):
        await one.sessions.load(name, Claim(), check)
    assert checked == [0, 1, 2]
    other_claim = other.sessions.memory.version(id_of(name))
    sight = await other.store.look(id_of(name), "default", other_claim)
    assert sight is not None
    assert sight.version == other_claim


async def test_what_a_server_claimed_last_takes_one_round_trip(
    pair: tuple[Server, Server],
) -> None:
    one, other = pair
    name = (await other.sessions.create(MODEL)).name
    await advance(one, name, 1)
    one.store.looks.clear()
    await one.sessions.load(name, Claim(), lambda _: None)
    (claim,) = one.store.looks
    assert claim is not None


async def test_a_session_that_stands_elsewhere_is_not_claimed(pair: tuple[Server, Server]) -> None:
    one, other = pair
    name = (await one.sessions.create(MODEL)).name
    await advance(other, name, 5)
    for server in pair:
        session = await server.sessions.load(name, Claim(3), lambda _: None)
        assert session.position == 5
    await advance(other, name, 6)
    version = other.sessions.memory.version(id_of(name))
    assert version is not None
    # The session was made by one claim, and taken over by one.
    assert version.epoch == 2


async def test_a_claim_that_waited_is_not_to_be_made_once_its_caller_has_given_up(
    pair: tuple[Server, Server],
) -> None:
    """It waits for another call on the session, and has no more time for that."""
    one, _ = pair
    name = (await one.sessions.create(MODEL)).name
    one.store.looking.clear()
    first = asyncio.create_task(one.sessions.load(name))
    second = asyncio.create_task(one.sessions.load(name, Claim(0)))
    await others_run()
    asked = time.monotonic()
    while time.monotonic() == asked:
        pass
    one.store.looking.set()
    await asyncio.gather(first, second)
    _, claim = one.store.looks
    assert claim is not None
    assert claim.expected_position == 0
    assert claim.until <= asked + one.store.timeout


@pytest.mark.parametrize("is_owner", [True, False])
async def test_a_check_may_take_longer_than_the_store(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, is_owner: bool
) -> None:
    """Whether it is of memory, or of what the store said."""
    one, other = pair
    name = (await (one if is_owner else other).sessions.create(MODEL)).name
    loop = asyncio.get_running_loop()
    clock, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + passed)

    def check(_: Session) -> None:
        nonlocal passed
        passed += 2 * one.store.timeout

    await one.sessions.load(name, Claim(), check)
    assert passed == 2 * one.store.timeout

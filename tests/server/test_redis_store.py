"""The store in Redis: what it shares with that in a file, and what is its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from support.calls import SECONDS
from support.redis import RunningRedis, running_redis
from support.stored import flip_a_bit
from unrolled_server.errors import (
    Fenced,
    RecordCorrupt,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from unrolled_server.redis_store import RedisStore
from unrolled_server.session_names import ID_BYTES, name_of, session_id
from unrolled_server.session_record import SessionFacts, SessionRecord, encode
from unrolled_server.sqlite_store import SqliteStore
from unrolled_server.store import Claim, Store, StoreOpenError
from unrolled_server.types import Durability, Past

NOW = time.time()


def numbered(number: int, idle_ttl: float = 3600.0, floats: int = 4) -> SessionRecord:
    """One session of many."""
    name = name_of(number.to_bytes(ID_BYTES))
    facts = SessionFacts(name, "default", "m/1", "ab" * 32, 1, 1, 7, 3, floats, NOW, NOW, idle_ttl)
    past = Past(np.full(floats, number, np.float32), 1, 3, b"\xc3", 2)
    return SessionRecord(facts, past, b"answers")


def id_of(record: SessionRecord) -> bytes:
    id_ = session_id(record.facts.name)
    assert id_ is not None
    return id_


def same(one: SessionRecord | None, other: SessionRecord) -> bool:
    """Whether two records agree to the last bit."""
    assert one is not None
    assert one.past.state is not None
    assert other.past.state is not None
    rest = replace(one.past, state=None), one.facts, one.answers
    bits = one.past.state.tobytes() == other.past.state.tobytes()
    return bits and rest == (replace(other.past, state=None), other.facts, other.answers)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def redis(running: RunningRedis) -> RunningRedis:
    """An empty one."""
    with running.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    return running


@pytest.fixture
async def store(redis: RunningRedis) -> AsyncIterator[RedisStore]:
    store = await opened(redis.url)
    yield store
    await store.close()


async def opened(url: str, replicas: int = 0) -> RedisStore:
    store = RedisStore(url, timeout=30.0, replicas=replicas)
    await store.open()
    return store


def key(record: SessionRecord) -> str:
    return "unrolled:{" + id_of(record).hex() + "}"


# As any store


@pytest.fixture(params=["sqlite", "redis"])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "sessions.db")
    else:
        store = await opened(request.getfixturevalue("redis").url)
    yield store
    await store.close()


async def test_what_was_written_is_read(any_store: Store) -> None:
    for number in range(5):
        await any_store.insert(numbered(number))
    moved = replace(numbered(2), answers=b"other")
    await any_store.commit(moved)
    assert await any_store.delete(id_of(numbered(3)))
    assert not await any_store.delete(id_of(numbered(3)))
    assert same(await any_store.read(id_of(moved), "default"), moved)
    assert same(await any_store.read(id_of(numbered(4)), "default"), numbered(4))
    assert await any_store.read(id_of(numbered(3)), "default") is None
    assert await any_store.read(id_of(numbered(4)), "another") is None
    assert await any_store.over(0.0, 10) == []
    assert any_store.count() == {"m/1": 4}


async def test_a_commit_does_not_bring_a_session_back(any_store: Store) -> None:
    await any_store.insert(numbered(1))
    assert await any_store.delete(id_of(numbered(1)))
    with pytest.raises(SessionNotFound):
        await any_store.commit(numbered(1))
    assert await any_store.read(id_of(numbered(1)), "default") is None


async def test_what_is_as_it_was_inserted_can_be_discarded(any_store: Store) -> None:
    untouched, moved, used = map(numbered, (1, 2, 3))
    for record in (untouched, moved, used):
        await any_store.insert(record)
    await any_store.commit(replace(moved, answers=b"other"))
    await any_store.note_uses({id_of(used): NOW + 1.0})
    never = numbered(4)
    outcomes = [
        await any_store.discard(id_of(record), encode(record)[0])
        for record in (untouched, moved, used, never)
    ]
    assert outcomes == [True, False, False, False]
    assert await any_store.read(id_of(untouched), "default") is None
    listed = (await any_store.page("default", b"", 9)).sessions
    assert [facts.name for facts in listed] == [moved.facts.name, used.facts.name]
    await any_store.over(0.0, 10)
    assert any_store.count() == {"m/1": 2}


async def test_pages_are_a_tenants_in_the_order_of_ids(any_store: Store) -> None:
    other = numbered(4)
    other = replace(other, facts=replace(other.facts, tenant="another"))
    for record in (*map(numbered, (7, 1, 300, 2, 5)), other):
        await any_store.insert(record)
    found, after, pages = [], b"", 0
    while True:
        page = await any_store.page("default", after, 2)
        found += page.sessions
        pages += 1
        if page.after is None:
            break
        after = page.after
    assert found == [numbered(number).facts for number in (1, 2, 5, 7, 300)]
    assert pages == 3
    assert (await any_store.page("another", b"", 9)).sessions == [other.facts]


async def test_a_use_moves_the_end_and_never_back(any_store: Store) -> None:
    record = numbered(1)
    await any_store.insert(record)
    for used in (NOW + 50.0, NOW + 20.0):
        await any_store.note_uses({id_of(record): used, bytes(ID_BYTES): used})
    found = await any_store.read(id_of(record), "default")
    assert found is not None
    assert found.facts == replace(record.facts, used=NOW + 50.0)
    assert (await any_store.page("default", b"", 9)).sessions == [found.facts]


@pytest.mark.parametrize("part", ["facts", "body"])
async def test_a_damaged_record_is_put_aside(
    any_store: Store, request: pytest.FixtureRequest, tmp_path: Path, part: str
) -> None:
    for number in (1, 2):
        await any_store.insert(numbered(number))
    if isinstance(any_store, RedisStore):
        damage(request.getfixturevalue("redis"), numbered(1), part)
    else:
        await any_store.close()
        flip_a_bit(tmp_path / "sessions.db", numbered(1).facts.name, part)
        any_store = SqliteStore(tmp_path / "sessions.db")
    for _ in range(2):
        with pytest.raises(RecordCorrupt):
            await any_store.read(id_of(numbered(1)), "default")
    assert any_store.stats.damaged == 1
    assert (await any_store.page("default", b"", 9)).sessions == [numbered(2).facts]
    assert same(await any_store.read(id_of(numbered(2)), "default"), numbered(2))
    assert await any_store.delete(id_of(numbered(1)))
    assert await any_store.read(id_of(numbered(1)), "default") is None
    await any_store.close()


def damage(redis: RunningRedis, record: SessionRecord, part: str) -> None:
    """Flip a bit in the middle of a part."""
    with redis.client() as client:
        stored = client.hget(key(record), part)
        assert isinstance(stored, bytes)
        damaged = bytearray(stored)
        damaged[len(stored) // 2] ^= 16
        client.hset(key(record), part, bytes(damaged))


# Its own


async def test_a_listing_puts_damaged_facts_aside_too(
    store: RedisStore, redis: RunningRedis
) -> None:
    await store.insert(numbered(1))
    damage(redis, numbered(1), "facts")
    assert (await store.page("default", b"", 9)).sessions == []
    with pytest.raises(RecordCorrupt):
        await store.look(id_of(numbered(1)), "default", None, Claim())
    with redis.client() as client:
        assert client.exists(key(numbered(1)) + ":damaged")


async def test_a_record_in_the_place_of_another_is_none(
    store: RedisStore, redis: RunningRedis
) -> None:
    for number in (1, 2):
        await store.insert(numbered(number))
    with redis.client() as client:
        client.copy(key(numbered(2)), key(numbered(1)), replace=True)
    with pytest.raises(RecordCorrupt):
        await store.read(id_of(numbered(1)), "default")
    assert same(await store.read(id_of(numbered(2)), "default"), numbered(2))


async def test_only_the_last_claim_may_commit_and_only_once(store: RedisStore) -> None:
    record = numbered(1)
    receipt = await store.insert(record)
    first = await store.look(id_of(record), "default", receipt.version, Claim())
    assert first is not None
    assert (first.record, first.version) == (None, receipt.version)
    second = await store.look(id_of(record), "default", None, Claim())
    assert second is not None
    assert same(second.record, record)
    since = second.version.digest
    with pytest.raises(Fenced):
        await store.commit(replace(record, answers=b"late"), since)
    mine = replace(record.facts, epoch=second.version.epoch)
    await store.commit(replace(record, facts=mine, answers=b"first"), since)
    with pytest.raises(Fenced):
        await store.commit(replace(record, facts=mine, answers=b"again"), since)
    now = await store.read(id_of(record), "default")
    assert now is not None
    assert now.answers == b"first"


@pytest.mark.parametrize("command", ["zadd", "hset", "hincrby", "pexpireat"])
async def test_there_is_no_session_that_the_indexes_do_not_know_of(
    store: RedisStore, redis: RunningRedis, command: str
) -> None:
    """Whichever step of an insertion fails; what the indexes have of it goes when it is met."""
    with forbidden(redis, command), pytest.raises(StoreUnavailable):
        await store.insert(numbered(1))
    with redis.client() as client:
        indexed = client.zrange("unrolled:{index}:ends", 0, -1)
        assert bool(client.exists(key(numbered(1)))) <= (id_of(numbered(1)) in indexed)
    await store.expire(await store.over(NOW + 4000, 10), NOW + 4000)
    assert await store.over(NOW + 4000, 10) == []
    listed = (await store.page("default", b"", 9)).sessions
    assert sum(store.count().values()) == len(listed)
    with redis.client() as client:
        assert client.zcard("unrolled:{index}:tenant:default") == len(listed)


@contextmanager
def forbidden(redis: RunningRedis, command: str) -> Iterator[None]:
    """Redis refuses this command, in scripts too."""
    with redis.client() as client:
        act: Callable[..., object] = client.execute_command
        act("ACL", "SETUSER", "default", f"-{command}")
        try:
            yield
        finally:
            act("ACL", "SETUSER", "default", "+@all")


async def test_redis_ends_sessions_and_the_indexes_follow(
    store: RedisStore, redis: RunningRedis
) -> None:
    kept, short, forever = numbered(1), numbered(2, idle_ttl=0.001), numbered(3, idle_ttl=0.0)
    for record in (kept, short, forever):
        await store.insert(record)
    assert await store.read(id_of(short), "default") is None
    with redis.client() as client:
        assert client.pexpiretime(key(kept)) == pytest.approx((NOW + 3600) * 1000, abs=1)
        assert client.pexpiretime(key(forever)) == -1
    # As if both were over by the index: one was used, and Redis knows.
    over = await store.over(NOW + 4000, 10)
    assert over == [id_of(short), id_of(kept)]
    assert await store.expire(over, NOW + 4000) == 1
    assert await store.over(NOW + 3000, 10) == []
    assert store.count() == {"m/1": 2}
    page = await store.page("default", b"", 9)
    assert page.sessions == [kept.facts, forever.facts]


@pytest.mark.parametrize("ahead", [0.0, -3600.0, 3600.0])
async def test_a_turn_under_way_keeps_its_session(
    store: RedisStore, redis: RunningRedis, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """For half a minute of Redis's time, whatever the server's clock says."""
    claimed, held = (replace(numbered(n), facts=short_of(n)) for n in (1, 2))
    for record in (claimed, held):
        await store.insert(record)
    with monkeypatch.context() as patched, redis.client() as client:
        clock = time.time
        patched.setattr(time, "time", lambda: clock() + ahead)
        assert await store.look(id_of(claimed), "default", None, Claim()) is not None
        await store.hold([id_of(held)])
        seconds, _ = client.time()
        for record in (claimed, held):
            end = client.pexpiretime(key(record))
            assert isinstance(end, int)
            assert (seconds + 15) * 1000 < end < (seconds + 32) * 1000


async def test_what_was_claimed_is_not_discarded(store: RedisStore) -> None:
    record = numbered(1)
    await store.insert(record)
    await store.look(id_of(record), "default", None, Claim())
    assert not await store.discard(id_of(record), encode(record)[0])
    assert same(await store.read(id_of(record), "default"), record)


async def test_a_claim_that_nobody_waits_for_is_not_made(store: RedisStore) -> None:
    receipt = await store.insert(numbered(1))
    given_up = Claim(until=time.monotonic())
    with pytest.raises(StoreUnavailable):
        await store.look(id_of(numbered(1)), "default", None, given_up)
    sight = await store.look(id_of(numbered(1)), "default", receipt.version, Claim())
    assert sight is not None
    assert sight.version == receipt.version


def short_of(number: int) -> SessionFacts:
    """Facts of a session that has some seconds to live."""
    return replace(numbered(number).facts, used=time.time(), idle_ttl=10.0)


async def test_a_full_redis_loses_nothing_and_is_got_over(
    store: RedisStore, redis: RunningRedis
) -> None:
    kept, refused = numbered(1), numbered(2)
    receipt = await store.insert(kept)
    with redis.client() as client:
        client.config_set("maxmemory", 1)
    moved = replace(kept, answers=b"moved")
    for attempt in (
        store.insert(refused),
        store.commit(moved),
        store.look(id_of(kept), "default", None, Claim()),
    ):
        with pytest.raises(StoreFull):
            await attempt
    assert store.stats.errors["full"] == 3
    assert same(await store.read(id_of(kept), "default"), kept)
    assert await store.read(id_of(refused), "default") is None
    with redis.client() as client:
        client.config_set("maxmemory", 0)
    assert receipt.version is not None
    await store.commit(moved, receipt.version.digest)
    await store.insert(refused)
    for record in (moved, refused):
        assert same(await store.read(id_of(record), "default"), record)


async def test_a_commit_that_was_copied_says_so(redis: RunningRedis, tmp_path: Path) -> None:
    alone = await opened(redis.url, replicas=1)
    alone.timeout = 0.05
    await alone.insert(numbered(1))
    receipt = await alone.commit(numbered(1))
    assert receipt.durability is Durability.PROCESS_CRASH
    await alone.close()
    copy = ("--replicaof", "127.0.0.1", str(redis.listen()))
    with running_redis(tmp_path, *copy):
        store = await opened(redis.url, replicas=1)
        levels = {(await store.commit(numbered(1))).durability for _ in range(3)}
        assert levels == {Durability.REPLICATED}
        await store.close()


async def test_a_redis_that_is_gone_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as redis:
        store = await opened(redis.url)
        await asyncio.gather(*(store.insert(numbered(number)) for number in range(20)))
        redis.end()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.read(id_of(numbered(1)), "default")
        assert not await store.ping()
        redis.start()
        # Every one of them, over connections that were closed meanwhile.
        reading = (store.read(id_of(numbered(number)), "default") for number in range(20))
        found = await asyncio.gather(*reading)
        assert all(same(record, numbered(number)) for number, record in enumerate(found))
        await store.close()


async def test_what_was_given_up_is_not_carried_out_later(
    store: RedisStore, redis: RunningRedis
) -> None:
    record, claimed, new = numbered(1), numbered(2), numbered(3)
    await store.insert(record)
    receipt = await store.insert(claimed)
    hasty = RedisStore(redis.url, timeout=3.0)
    await hasty.open()
    # There are connections and Redis has the scripts from now on: the late ones come whole.
    elsewhere = Claim(expected_position=99)
    await asyncio.gather(
        hasty.commit(record),
        hasty.look(id_of(claimed), "default", None, elsewhere),
        hasty.insert(numbered(4)),
    )
    redis.stop()
    try:
        given_up = await asyncio.gather(
            hasty.commit(replace(record, answers=b"late")),
            hasty.look(id_of(claimed), "default", None, Claim()),
            hasty.insert(new),
            return_exceptions=True,
        )
    finally:
        redis.go_on()
    assert [type(error) for error in given_up] == [StoreUnavailable] * 3
    await hasty.close()
    # What waited in its socket comes before what is asked now, or at the latest with it.
    for _ in range(3):
        found = await store.read(id_of(record), "default")
        assert found is not None
        assert found.answers == record.answers
        sight = await store.look(id_of(claimed), "default", receipt.version, Claim())
        assert sight is not None
        assert sight.version == receipt.version
        assert await store.read(id_of(new), "default") is None


# Opening it


async def test_a_redis_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/no.sock", timeout=5.0)
    with pytest.raises(StoreOpenError, match=r"unix:\S*/no.sock: .*No such file"):
        await store.open()
    await store.close()


def test_a_wrong_password_is_no_secret_revealed(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--user", "u", "on", ">right", "~*", "&*", "+@all") as redis:
        url = redis.url.replace("unix://", "unix://u:wr0ng@")
        flags = ("--models", str(tmp_path), "--port", "0", "--metrics-port", "0")
        ended = subprocess.run(
            [sys.executable, "-m", "unrolled_server", *flags, "--store", url],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert ended.returncode == 1
    assert "--store unix://u:***@" in ended.stderr
    assert "invalid username-password pair" in ended.stderr
    assert "wr0ng" not in ended.stderr


async def test_a_redis_that_may_evict_is_warned_of(
    redis: RunningRedis, caplog: pytest.LogCaptureFixture
) -> None:
    for policy, warned in (("noeviction", False), ("allkeys-lru", True), ("volatile-ttl", True)):
        with redis.client() as client:
            client.config_set("maxmemory-policy", policy)
        caplog.clear()
        await (await opened(redis.url)).close()
        assert ("store_may_evict_sessions" in caplog.text) == warned
    with redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("idle_ttl", [0.0, 3600.0])
async def test_a_turn_keeps_its_session_past_its_end_and_is_no_use_of_it(
    store: RedisStore, redis: RunningRedis, idle_ttl: float
) -> None:
    record = numbered(1, idle_ttl)
    soon = time.time() + 20.0
    record = replace(record, facts=replace(record.facts, latest=soon))
    await store.insert(record)
    await store.hold([id_of(record)])
    key = f"unrolled:{{{id_of(record).hex()}}}"
    with redis.client() as client:
        assert client.pexpiretime(key) >= (soon + 5.0) * 1000
        used = client.hget(key, "used")
    assert used is not None
    assert float(cast("bytes", used)) == record.facts.used


async def test_no_use_moves_a_session_past_its_latest_end(
    store: RedisStore, redis: RunningRedis
) -> None:
    record = numbered(1)
    soon = time.time() + 20.0
    record = replace(record, facts=replace(record.facts, latest=soon))
    await store.insert(record)
    await store.note_uses({id_of(record): time.time() + 10.0})
    with redis.client() as client:
        end = client.pexpiretime(f"unrolled:{{{id_of(record).hex()}}}")
    assert abs(end / 1000 - soon) < 0.01

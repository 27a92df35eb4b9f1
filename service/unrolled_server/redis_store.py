"""Sessions in Redis, which several servers share.

Every change of a session is one script on its key; `redis_scripts` has them, and what lies where.
Insertions, claims and commits carry a deadline in Redis's own time: one that was sent, given up
here, and carried out late, because Redis stood still meanwhile, changes nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from redis.asyncio import Redis

from unrolled_server import redis_scripts as scripts
from unrolled_server.errors import Fenced, RecordCorrupt, SessionNotFound, StoreUnavailable
from unrolled_server.failpoints import FailpointError, reach
from unrolled_server.logs import log_event
from unrolled_server.redis_connection import TlsSource
from unrolled_server.redis_link import NAME, Argument, RedisLink
from unrolled_server.session_names import name_of, session_id
from unrolled_server.session_record import (
    DIGEST_BYTES,
    RecordDamaged,
    SessionFacts,
    SessionRecord,
    decode,
    decode_facts,
    encode,
)
from unrolled_server.store import Claim, Receipt, Sight, StorePage, StoreSpace, StoreStats, Version
from unrolled_server.types import Durability

logger = logging.getLogger(__name__)

HOLD_SECONDS = 30.0
"""How long a session outlives its idle time after a server has said that a turn is under way."""
CHUNK = 500
"""Uses that are noted at once."""
PERSISTENT, GONE = -1, -2
"""What PEXPIRETIME answers for keys that do not expire, and for none."""
ENDS = "unrolled:{index}:ends"
INDEXES = (ENDS, "unrolled:{index}:sessions", "unrolled:{index}:models")


class RedisStore:
    """A SharedStore in one Redis server, with or without replicas. To be opened first."""

    name = NAME
    durability = Durability.PROCESS_CRASH

    def __init__(
        self, url: str, timeout: float, replicas: int = 0, tls: TlsSource | None = None
    ) -> None:
        """With `replicas`, commits wait for so many to confirm; rediss:// needs `tls`.

        Raises StoreOpenError.
        """
        self.timeout = self.lateness = timeout
        self._replicas = replicas
        self._link = RedisLink(url, timeout, tls)
        self._counts: dict[str, int] = {}
        script = self._link.script
        self._look, self._insert = script(scripts.LOOK), script(scripts.INSERT)
        self._commit, self._use = script(scripts.COMMIT), script(scripts.USE)
        self._put_aside = script(scripts.PUT_ASIDE)
        self._leave, self._discard = script(scripts.LEAVE), script(scripts.DISCARD)

    @property
    def stats(self) -> StoreStats:
        """What was counted."""
        return self._link.stats

    async def open(self) -> None:
        """See whether Redis is there, and such that it can keep sessions. Raises StoreOpenError."""
        await self._link.open()
        await self._count()

    def count(self) -> Mapping[str, int]:
        """Sessions by model, name/version, as of the last `over`; some may have ended since."""
        return self._counts

    def space(self) -> StoreSpace | None:
        """None: what Redis takes, and what is left to it, are its own metrics."""
        return None

    async def insert(self, record: SessionRecord) -> Receipt:
        """Keep a new session."""
        facts, id_ = record.facts, _id(record)
        known, body = encode(record)
        arguments = [self._link.deadline(), *_fields(facts, known, body), id_, facts.model]
        keys = [_key(id_), *INDEXES, _tenant_key(facts.tenant)]
        if await self._link.run(self._insert, keys, arguments) != b"done":
            raise StoreUnavailable(NAME)
        return Receipt(self.durability, Version(facts.epoch, known[-DIGEST_BYTES:]))

    async def commit(self, record: SessionRecord, since: bytes = b"") -> Receipt:
        """Replace a session's record, if this one follows it. Raises SessionNotFound, Fenced."""
        began = time.perf_counter()
        facts = record.facts
        known, body = encode(record)
        arguments = [self._link.deadline(), *_fields(facts, known, body), since]
        _reach("store.before_write")
        _reach("store.before_commit")
        outcome, level = await self._committed(_key(_id(record)), arguments)
        if outcome == b"gone":
            raise SessionNotFound(facts.name)
        if outcome == b"fenced":
            raise Fenced(facts.name)
        if outcome != b"done":
            raise StoreUnavailable(NAME)
        reach("store.after_commit")
        self.stats.commit.observe(time.perf_counter() - began)
        return Receipt(level, Version(facts.epoch, known[-DIGEST_BYTES:]))

    async def read(self, id_: bytes, tenant: str) -> SessionRecord | None:
        """A tenant's session's record; None: there is none. Raises RecordCorrupt."""
        sight = await self.look(id_, tenant, None)
        return None if sight is None else sight.record

    async def look(
        self, id_: bytes, tenant: str, known: Version | None, claim: Claim | None = None
    ) -> Sight | None:
        """A tenant's session as it is now; None: there is none. Raises RecordCorrupt."""
        keys = [_key(id_), _damaged_key(id_)]
        arguments = [tenant, *_known(known), *self._claim(claim)]
        state, *seen = await self._link.run(self._look, keys, arguments)
        if state == b"none":
            return None
        if state == b"late":
            raise StoreUnavailable(NAME)
        if state == b"damaged":
            raise RecordCorrupt(name_of(id_))
        epoch, used, *parts = seen
        digest = parts[0][-DIGEST_BYTES:] if parts or known is None else known.digest
        try:
            record = _decoded(id_, used, *parts) if parts else None
        except RecordDamaged as error:
            await self._quarantine(id_, parts[0], error)
            raise RecordCorrupt(name_of(id_)) from error
        return Sight(Version(int(epoch), digest), float(used), record)

    async def delete(self, id_: bytes) -> bool:
        """End a session, readable or not; whether there was one."""
        async with self._link.answering() as redis:
            ended = await redis.delete(_key(id_), _damaged_key(id_))
        await self._drop_entries([id_])
        return bool(ended)

    async def discard(self, id_: bytes, facts: bytes) -> bool:
        """End a session that is as it was inserted with these facts; whether there was one."""
        known = decode_facts(facts)
        arguments: list[Argument] = [id_, facts, known.epoch, known.used]
        return bool(await self._link.run(self._discard, [*INDEXES, _key(id_)], arguments))

    async def note_uses(self, uses: Mapping[bytes, float]) -> None:
        """Sessions were used, in seconds since the epoch; those that have ended are ignored."""
        await self._note([(id_, used, "") for id_, used in uses.items()])

    async def hold(self, ids: list[bytes]) -> None:
        """Turns of these sessions are under way: they are used, and do not end meanwhile."""
        until = self._held_until()
        await self._note([(id_, 0, until) for id_ in ids])

    async def page(self, tenant: str, after: bytes, most: int) -> StorePage:
        """Up to `most` of a tenant's sessions behind an ID, without those that cannot be read."""
        beyond = b"(" + after if after else b"-"
        async with self._link.answering() as redis:
            in_order = await redis.zrangebylex(_tenant_key(tenant), beyond, b"+", 0, most)
            ids = cast("list[bytes]", in_order)
            rows = await _facts_of(redis, ids)
        found, gone = [], []
        for id_, (facts, used) in zip(ids, rows, strict=True):
            if facts is None:
                gone.append(id_)
                continue
            try:
                found.append(_with_use(id_, decode_facts(facts), used))
            except RecordDamaged as error:
                await self._quarantine(id_, facts, error)
        await self._drop_entries(gone)
        return StorePage(found, ids[-1] if len(ids) == most else None)

    async def over(self, now: float, most: int) -> list[bytes]:
        """IDs of up to `most` sessions that were to end by now, as the index has it."""
        await self._count()
        async with self._link.answering() as redis:
            ids = await redis.zrangebyscore(ENDS, "-inf", now, 0, most)
        return cast("list[bytes]", ids)

    async def expire(self, ids: list[bytes], now: float) -> int:
        """Take those of these sessions that have ended from the index; how many that were.

        Redis ends them, by its own clock.
        """
        async with self._link.answering() as redis:
            ends = await _ends_of(redis, ids)
            later = {id_: end for id_, end in ends.items() if end is not None}
            if later:
                await redis.zadd(ENDS, later, xx=True)
        return await self._drop_entries([id_ for id_, end in ends.items() if end is None])

    async def ping(self) -> bool:
        """Whether the store answers in time."""
        return await self._link.ping()

    async def close(self) -> None:
        """Close all connections; nothing is to be asked for any more."""
        await self._link.close()

    def _claim(self, claim: Claim | None) -> tuple[Argument, Argument, Argument, Argument]:
        """What LOOK takes of a claim."""
        if claim is None:
            return "", "", "", ""
        expected = claim.expected_position
        position = "" if expected is None else expected
        as_known = 1 if claim.as_known else ""
        return self._link.deadline(claim.until), self._held_until(), position, as_known

    def _held_until(self) -> str:
        """Until when a session is held that is said now to be: in Redis's time, in ms."""
        return _ms(self._link.now() + HOLD_SECONDS)

    async def _committed(self, key: str, arguments: Sequence[Argument]) -> tuple[bytes, Durability]:
        """What became of a commit, and how durable it is if it was done."""
        if not self._replicas:
            return await self._link.run(self._commit, [key], arguments), self.durability
        began = time.monotonic()
        # WAIT is about the writes of its own connection.
        one = self._link.client.client()
        try:
            async with self._link.answering():
                outcome = await self._commit(keys=[key], args=arguments, client=one)
            left = self.timeout - (time.monotonic() - began)
            is_done = outcome == b"done"
            is_copied = is_done and await self._link.is_copied(one, self._replicas, left)
            return outcome, Durability.REPLICATED if is_copied else self.durability
        finally:
            await one.aclose()

    async def _note(self, uses: list[tuple[bytes, float, str]]) -> None:
        """Note uses, with the times in ms until which turns hold the sessions, or ""."""
        for start in range(0, len(uses), CHUNK):
            async with self._link.answering() as redis, redis.pipeline(transaction=False) as pipe:
                for id_, used, held_until in uses[start : start + CHUNK]:
                    await self._use(keys=[_key(id_)], args=[used, held_until], client=pipe)
                await pipe.execute()

    async def _quarantine(self, id_: bytes, facts: bytes, error: RecordDamaged) -> None:
        """Put a record aside, for whoever wants to see what happened to it, and count it."""
        keys = [_key(id_), _damaged_key(id_)]
        # Of several that find it, one does.
        if await self._link.run(self._put_aside, keys, [facts]):
            self.stats.damaged += 1
            problem = str(error)
            log_event(
                logger, logging.ERROR, "record_corrupt", session=name_of(id_), problem=problem
            )
            await self._drop_entries([id_])

    async def _drop_entries(self, ids: list[bytes]) -> int:
        """Take sessions that have ended from the indexes; how many were in them."""
        left: int = await self._link.run(self._leave, INDEXES, ids) if ids else 0
        return left

    async def _count(self) -> None:
        async with self._link.answering() as redis:
            counts = cast("dict[bytes, bytes]", await redis.hgetall(INDEXES[-1]))
        self._counts = {model.decode(): int(number) for model, number in counts.items()}


def _id(record: SessionRecord) -> bytes:
    id_ = session_id(record.facts.name)
    if id_ is None:
        raise ValueError(f"{record.facts.name} is not a session's name")
    return id_


def _key(id_: bytes) -> str:
    return f"unrolled:{{{id_.hex()}}}"


def _damaged_key(id_: bytes) -> str:
    return f"{_key(id_)}:damaged"


def _tenant_key(tenant: str) -> str:
    return f"unrolled:{{index}}:tenant:{tenant}"


def _ms(seconds: float) -> str:
    """A time in seconds since the epoch as Redis takes it, not before it."""
    return str(math.ceil(seconds * 1000))


def _fields(facts: SessionFacts, known: bytes, body: bytes) -> list[Argument]:
    """What INSERT and COMMIT take of a record whose parts are `known` and `body`."""
    ends = "" if facts.ends is None else _ms(facts.ends)
    at = facts.position, facts.epoch
    return [known, body, facts.tenant, *at, facts.used, facts.idle_ttl, facts.latest, ends]


def _known(version: Version | None) -> tuple[Argument, Argument]:
    return ("", "") if version is None else (version.epoch, version.digest)


def _decoded(id_: bytes, used: bytes, facts: bytes, body: bytes) -> SessionRecord:
    """The record with these parts. Raises RecordDamaged."""
    record = decode(facts, body)
    return replace(record, facts=_with_use(id_, record.facts, used))


def _with_use(id_: bytes, facts: SessionFacts, used: bytes) -> SessionFacts:
    """The facts of this session with its last use. Raises RecordDamaged."""
    if session_id(facts.name) != id_:
        raise RecordDamaged("the record is that of another session")
    return replace(facts, used=max(facts.used, float(used)))


async def _facts_of(redis: Redis, ids: Iterable[bytes]) -> list[tuple[bytes | None, bytes]]:
    """Facts and last uses of these sessions."""
    async with redis.pipeline(transaction=False) as pipe:
        for id_ in ids:
            pipe.hmget(_key(id_), "facts", "used")
        rows: list[tuple[bytes | None, bytes]] = await pipe.execute()
    return rows


async def _ends_of(redis: Redis, ids: Iterable[bytes]) -> dict[bytes, float | None]:
    """When Redis ends these sessions, in seconds since the epoch; None: they have ended."""
    ids = list(ids)
    async with redis.pipeline(transaction=False) as pipe:
        for id_ in ids:
            pipe.pexpiretime(_key(id_))
        ends = await pipe.execute()
    never_or_gone = {PERSISTENT: math.inf, GONE: None}
    return {id_: never_or_gone.get(end, end / 1000) for id_, end in zip(ids, ends, strict=True)}


def _reach(place: str) -> None:
    """Raises StoreUnavailable where a test lets the store fail."""
    try:
        reach(place)
    except FailpointError as error:
        raise StoreUnavailable(NAME) from error

"""Sessions in a store that several servers share; memory is what this one remembers of them.

Before each turn the server claims the session, and before each read it asks whether what it
remembers still holds: one round trip, in which no state travels unless somebody else has moved the
session. Whatever leaves it unknown where a session stands makes memory forget the session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from weakref import WeakValueDictionary

from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.errors import Fenced, ServerError, SessionNotFound, StoreUnavailable
from unrolled_server.models import Models
from unrolled_server.session import Session
from unrolled_server.session_keeper import Check
from unrolled_server.session_names import session_id
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.store import Claim, SharedStore, Version
from unrolled_server.stored_keeper import CHUNK, StoredKeeper
from unrolled_server.tenants import tenant
from unrolled_server.types import Durability, SessionView


class SharedKeeper(StoredKeeper):
    """Sessions in memory and in a shared store."""

    def __init__(
        self,
        memory: CachedSessions,
        models: Models,
        store: SharedStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(memory, models, store, clock)
        self._shared = store
        self._looks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        """Who asks for a session waits for those that do so already, or two turns of this very
        server would fence each other."""
        self._taken_over: str | None = None
        """The session that another server has taken over, while its turn here is being ended."""

    async def load(
        self, name: str, claim: Claim | None = None, check: Check | None = None
    ) -> Session:
        """The session of this name as the store has it now, claimed or not.

        A claim is not made for a session that has a turn under way here. Raises SessionNotFound,
        ModelNotServed, RecordCorrupt, StoreUnavailable, and StoreFull for a claim.
        """
        id_ = session_id(name)
        if id_ is None:
            raise SessionNotFound(name)
        lock = self._looks.setdefault(id_, asyncio.Lock())
        try:
            async with asyncio.timeout(self._shared.timeout) as limit, lock:
                if claim is None:
                    return await self._seen(name, id_, None)
                if check is None:
                    return await self._seen(name, id_, _within(claim, limit))
                return await self._checked(name, id_, claim, check, limit)
        except TimeoutError as error:
            self.stats.errors["unavailable"] += 1
            raise StoreUnavailable(self._shared.name) from error

    def why_ended(self, name: str) -> ServerError:
        """What a turn fails with whose session ends now."""
        return Fenced(name) if name == self._taken_over else super().why_ended(name)

    async def is_reachable(self) -> bool:
        """Whether the store answers."""
        return await self._shared.ping()

    async def expire(self) -> bool:
        """Forget what is over; count what the store has ended. Of very many, some: whether so."""
        more_in_memory = self.memory.expire()
        await self._shared.hold(self.memory.held())
        await self._write_uses()
        now = self._clock()
        over = await self._shared.over(now, CHUNK)
        ended = await self._shared.expire(over, now) if over else 0
        self.memory.ended["expired"] += ended
        await self._end_unheard(now)
        return more_in_memory or ended >= CHUNK

    async def _checked(
        self, name: str, id_: bytes, claim: Claim, check: Check, limit: asyncio.Timeout
    ) -> Session:
        """The session, claimed if `check` raises nothing of it as it is in the store just then.

        It is not claimed where it stands elsewhere than it is to. What was claimed last by this
        server is likely as memory has it, and then the claim is all that the store is asked for.
        """
        is_checked = self._passes(name, id_, check, limit)
        while True:
            wanted = replace(_within(claim, limit), as_known=True) if is_checked else None
            session = await self._seen(name, id_, wanted)
            is_elsewhere = claim.expected_position not in (None, session.position)
            if is_checked and (is_elsewhere or self._is_claimed(id_)):
                return session
            with _standing_still(limit):
                check(session)
            is_checked = True

    def _passes(self, name: str, id_: bytes, check: Check, limit: asyncio.Timeout) -> bool:
        """Whether `check` raises nothing of the session as memory has it, claimed by this server.

        What it raises may be over: the store is to say so.
        """
        if self._is_claimed(id_):
            with suppress(ServerError), _standing_still(limit):
                check(self.memory.get(name))
                return True
        return False

    def _is_claimed(self, id_: bytes) -> bool:
        """Whether the last claim, as far as is known here, was this server's."""
        version = self.memory.version(id_)
        return version is not None and version.epoch > 0

    async def _seen(self, name: str, id_: bytes, claim: Claim | None) -> Session:
        """The session as it is, once nothing changes while it is asked for."""
        while (session := await self._look(name, id_, claim)) is None:
            pass
        return session

    async def _look(self, name: str, id_: bytes, claim: Claim | None) -> Session | None:
        """Ask for the session once; None: things have changed meanwhile, so ask again."""
        if (commit := self._commits.get(name)) is not None:
            await asyncio.wait([commit])
        known = self.memory.version(id_)
        is_held = self.memory.is_held(id_)
        with self._awaited(id_):
            sight = await self._shared.look(id_, tenant.get(), known, None if is_held else claim)
            is_deleted = id_ in self._deleted
        if name in self._commits or self.memory.version(id_) != known:
            return None
        if sight is None or is_deleted:
            self.memory.drop(name)
            raise SessionNotFound(name)
        if is_held and not sight.version.epoch:
            self._end_turn(name)
            return None
        if sight.record is not None:
            return self._admit(name, sight.version, sight.record)
        self.memory.note_use(id_, sight.used)
        session = self.memory.get(name)
        self.memory.set_version(session, sight.version)
        return session

    def _admit(self, name: str, version: Version, record: SessionRecord) -> Session:
        """Take the session into memory, in place of what was there."""
        self.memory.drop(name)
        facts = self._current(record.facts)
        if not self._is_open(facts):
            raise SessionNotFound(name)
        session = self.memory.admit(replace(record, facts=facts), self._model(facts))
        self.memory.set_version(session, version)
        return session

    def _end_turn(self, name: str) -> None:
        """End a session's turn, whose commit would be refused, and forget the session."""
        self._taken_over = name
        self.memory.drop(name)
        self._taken_over = None

    async def _write(self, session: Session, record: SessionRecord) -> Durability:
        """Replace the session's record if nobody else has; if that is not known, forget it."""
        id_ = session_id(session.name)
        since = None if id_ is None else self.memory.version(id_)
        try:
            receipt = await self._shared.commit(record, b"" if since is None else since.digest)
        except BaseException:
            self.memory.drop(session.name)
            raise
        if receipt.version is not None and not session.has_ended:
            self.memory.set_version(session, receipt.version)
        return receipt.durability

    def _newest_view(self, facts: SessionFacts) -> SessionView | None:
        """The session as it was stored; None where it is over."""
        return self._stored_view(self._current(facts)) if self._is_open(facts) else None


@contextmanager
def _standing_still(limit: asyncio.Timeout) -> Iterator[None]:
    """Time that passes meanwhile does not count."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        yield
    finally:
        when = limit.when()
        limit.reschedule(None if when is None else when + clock() - begun)


def _within(claim: Claim, limit: asyncio.Timeout) -> Claim:
    """The claim, not to be made once its time is over."""
    until = limit.when()
    return claim if until is None else replace(claim, until=until)

"""Sessions that a store has all of, and memory those that are in use.

Whatever changes a session is in the store before it is in memory, and there before anybody hears of
it: so memory may let go of any session that is idle. A session comes back under its name when it is
asked for. One server has the store to itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.errors import (
    ModelNotFound,
    ModelNotServed,
    ServerError,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from unrolled_server.failpoints import FailpointError, reach
from unrolled_server.logs import log_event
from unrolled_server.models import Models, ServedModel
from unrolled_server.page_tokens import id_of, token_behind
from unrolled_server.session import Session
from unrolled_server.session_keeper import Check, SessionKeeper
from unrolled_server.session_names import KEY_BYTES, name_of, session_id
from unrolled_server.session_record import SessionFacts, SessionRecord, encode
from unrolled_server.standing import Standing
from unrolled_server.store import Claim, Receipt, Store, StoreSpace, StoreStats
from unrolled_server.tenants import tenant
from unrolled_server.types import Durability, Past, SessionView

logger = logging.getLogger(__name__)

CHUNK = 500
"""Sessions that are asked of the store at once, for a page or to end them."""
MAX_CHUNKS = 16
"""Of one page: it may be short where many sessions do not match."""
MAX_UNHEARD = 10_000
"""Sessions to be ended that are remembered at once: a store that fails for long makes them many."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """A session that the store may have, though nobody was told its name."""

    facts: bytes
    """As they were to be inserted."""
    due: float
    """When it is known whether the store has it: in seconds since the epoch."""


class StoredKeeper(SessionKeeper):
    """Sessions in memory and in a store."""

    memory: CachedSessions

    def __init__(
        self,
        memory: CachedSessions,
        models: Models,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(memory)
        self.durability: Durability = store.durability
        self._models = models
        self._store = store
        self._clock = clock
        self._commits: dict[str, asyncio.Task[Durability]] = {}
        """Commits under way by session."""
        self._uses: dict[bytes, float] = {}
        """Uses that the store does not know of yet, by ID."""
        self._deleted: set[bytes] = set()
        """IDs of sessions that ended while somebody waits for their records."""
        self._inserts: set[asyncio.Future[Receipt]] = set()
        """Under way."""
        self._unheard: dict[bytes, Unheard] = {}
        """By ID, the first ones first."""

    @property
    def stats(self) -> StoreStats:
        """What the store counts."""
        return self._store.stats

    @property
    def spilled(self) -> int:
        """Sessions that left memory to make room."""
        return self.memory.spilled

    def space(self) -> StoreSpace | None:
        """What the store takes of its volume; None where nobody can tell."""
        return self._store.space()

    def stored(self) -> Mapping[str, int]:
        """Sessions in the store by model, name/version."""
        return self._store.count()

    async def load(
        self, name: str, claim: Claim | None = None, check: Check | None = None
    ) -> Session:
        """The session of this name, in memory from now on.

        Raises SessionNotFound, ModelNotServed, RecordCorrupt, StoreUnavailable.
        """
        with suppress(SessionNotFound):
            return self.memory.get(name)
        id_ = session_id(name)
        if id_ is None:
            raise SessionNotFound(name)
        with self._awaited(id_):
            record = await self._store.read(id_, tenant.get())
            is_deleted = id_ in self._deleted
        # Somebody else may have waited for it too, and gone on.
        with suppress(SessionNotFound):
            return self.memory.get(name)
        if record is None or is_deleted or not self._is_open(record.facts):
            raise SessionNotFound(name)
        facts = self._current(record.facts)
        # What memory still has is over by what memory knows, and not by what the store does.
        self.memory.drop(name)
        return self.memory.admit(replace(record, facts=facts), self._model(facts))

    async def create(
        self,
        model: ServedModel,
        seed: int | None = None,
        idle_ttl: float | None = None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session at the zero state. Raises StoreFull, StoreUnavailable."""
        session = self.memory.create(model, seed, idle_ttl, undo=undo, max_age=max_age)
        await self._keep(session)
        return session

    async def restore(
        self,
        model: ServedModel,
        past: Past,
        seed: int,
        idle_ttl: float | None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session that stands where another one stood. Raises StoreFull, StoreUnavailable."""
        session = self.memory.restore(model, past, seed, idle_ttl, undo=undo, max_age=max_age)
        await self._keep(session)
        return session

    async def fork(self, name: str, seed: int | None) -> Session:
        """A new session with the same past. Raises what `load` and `restore` do."""
        await self.load(name)
        child = self.memory.fork(name, seed)
        self._use(name)
        await self._keep(child)
        return child

    async def delete(self, name: str) -> None:
        """End a session, and the turn it has under way, whether or not it can be read.

        Raises SessionNotFound, StoreFull, StoreUnavailable.
        """
        id_ = session_id(name)
        if id_ is None or not await self._is_there(name, id_):
            raise SessionNotFound(name)
        ended = await asyncio.shield(asyncio.ensure_future(self._delete(id_)))
        if not ended:
            raise SessionNotFound(name)

    async def page(self, model: str, size: int, token: str) -> tuple[list[SessionView], str]:
        """Up to `size` sessions in the order of names, from where `token` says.

        As `Sessions.page`. Raises InvalidField, StoreUnavailable.
        """
        after = id_of(token)
        views: list[SessionView] = []
        for _ in range(MAX_CHUNKS):
            chunk = await self._store.page(tenant.get(), after, CHUNK)
            views += filter(None, (self._view(facts, model) for facts in chunk.sessions))
            if len(views) > size:
                return views[:size], token_behind(views[size - 1].name)
            if chunk.after is None:
                return views, ""
            after = chunk.after
        return views, token_behind(name_of(after))

    async def _move(self, session: Session, standing: Standing) -> Durability:
        """Replace all that changes of a session that is held: in the store, then in memory."""
        name = session.name
        commit = asyncio.ensure_future(self._commit(session, standing))
        self._commits[name] = commit
        commit.add_done_callback(lambda _: self._commits.pop(name))
        return await asyncio.shield(commit)

    def release(self, session: Session) -> None:
        """End a turn once its commit, if it came to that, is through."""
        commit = self._commits.get(session.name)
        if commit is None or commit.done():
            self.memory.release(session)
        else:
            commit.add_done_callback(lambda _: self.memory.release(session))

    def touch(self, session: Session) -> None:
        """Count a read of the session's state as a use of it, if it has not ended."""
        if not session.has_ended:
            self._use(session.name)

    async def expire(self) -> bool:
        """End sessions whose time is over; of very many, some: whether that may be so."""
        more_in_memory = self.memory.expire()
        await self._write_uses()
        now = self._clock()
        over = await self._store.over(now, CHUNK + self.memory.busy)
        # What is still in memory is busy, or comes next.
        gone = [id_ for id_ in over if not self._is_wanted(id_)]
        ended = await self._store.expire(gone, now) if gone else 0
        self.memory.ended["expired"] += ended
        await self._end_unheard(now)
        return more_in_memory or ended >= CHUNK

    def _is_wanted(self, id_: bytes) -> bool:
        """Whether a session is in memory, on its way there, or was used just now."""
        is_awaited = id_[-KEY_BYTES:] in self.memory.awaited
        return is_awaited or id_ in self._uses or self.memory.has(id_)

    async def close(self) -> None:
        """Tell the store what it does not know yet, and close it whatever comes of that.

        Nothing is to be asked for any more. Raises StoreFull, StoreUnavailable.
        """
        try:
            while self._inserts:
                await asyncio.wait(self._inserts)
            await self._write_uses()
            # Nobody waits for what may come late.
            await self._end_unheard(math.inf)
        finally:
            await self._store.close()

    async def _keep(self, session: Session) -> None:
        """Store a new session, of which nobody knows yet; if that fails, there is none.

        Where the store has it nevertheless, or will have it, since the call was cancelled or the
        store's answer was lost, it ends with an expiry, unless somebody has found it meanwhile.
        """
        self.memory.hold(session, lambda: None)
        record = self.memory.record(session, self.memory.standing(session))
        insert = asyncio.ensure_future(self._store.insert(record))
        self._inserts.add(insert)
        insert.add_done_callback(self._inserts.discard)
        try:
            receipt = await asyncio.shield(insert)
        except BaseException:
            self.memory.drop(session.name)
            insert.add_done_callback(lambda _: self._note_unheard(record, insert.exception()))
            raise
        if receipt.version is not None and not session.has_ended:
            self.memory.set_version(session, receipt.version)
        self.memory.release(session)

    def _note_unheard(self, record: SessionRecord, error: BaseException | None) -> None:
        """Nobody was told of this session, whose insertion ended so."""
        name = record.facts.name
        id_ = session_id(name)
        if id_ is None or isinstance(error, StoreFull):
            return
        if len(self._unheard) >= MAX_UNHEARD:
            log_event(logger, logging.WARNING, "session_perhaps_left_in_store", session=name)
            return
        facts, _ = encode(record)
        late = 0.0 if error is None else self._store.lateness
        self._unheard[id_] = Unheard(facts, self._clock() + late)

    async def _end_unheard(self, now: float) -> None:
        """End sessions that nobody knows of. Raises StoreFull, StoreUnavailable: not all yet.

        Whoever lists sessions finds them too: those that anybody has used since are kept.
        """
        due = takewhile(lambda each: each[1].due <= now, self._unheard.items())
        for id_, unheard in list(islice(due, CHUNK)):
            if not self._is_wanted(id_) and await self._store.discard(id_, unheard.facts):
                self._forget(id_)
                self.memory.ended["deleted"] += 1
            self._unheard.pop(id_, None)

    async def _commit(self, session: Session, standing: Standing) -> Durability:
        record = self.memory.record(session, standing)
        try:
            reach("commit.before_write")
        except FailpointError as error:
            raise StoreUnavailable("failpoint") from error
        level = await self._write(session, record)
        reach("commit.before_memory")
        self.memory.move(session, standing)
        reach("commit.before_reply")
        return level

    async def _write(self, session: Session, record: SessionRecord) -> Durability:
        """Replace the session's record in the store."""
        return (await self._store.commit(record)).durability

    async def _is_there(self, name: str, id_: bytes) -> bool:
        """Whether there is a session to be ended: not where its time is over."""
        with suppress(SessionNotFound):
            self.memory.get(name)
            return True
        try:
            record = await self._store.read(id_, tenant.get())
        except ServerError as error:
            if error.code != "DATA_LOSS":
                raise
            return True
        return record is not None and self._is_open(record.facts)

    async def _delete(self, id_: bytes) -> bool:
        ended = await self._store.delete(id_)
        self._forget(id_)
        self.memory.ended["deleted"] += ended
        return ended

    def _forget(self, id_: bytes) -> None:
        """Let go of what there is here of a session that the store has no longer."""
        if id_[-KEY_BYTES:] in self.memory.awaited:
            self._deleted.add(id_)
        self.memory.drop(name_of(id_))
        self._uses.pop(id_, None)

    @contextmanager
    def _awaited(self, id_: bytes) -> Iterator[None]:
        """Somebody waits for this session's record: until then it is not spilled."""
        key, awaited = id_[-KEY_BYTES:], self.memory.awaited
        awaited[key] += 1
        try:
            yield
        finally:
            awaited[key] -= 1
            if not awaited[key]:
                del awaited[key]
                self._deleted.discard(id_)

    def _is_open(self, facts: SessionFacts) -> bool:
        """Whether a stored session is the calling tenant's, and its time is not over."""
        return facts.tenant == tenant.get() and not self._current(facts).is_over(self._clock())

    def _current(self, facts: SessionFacts) -> SessionFacts:
        """The facts, with uses that the store does not know of yet."""
        id_ = session_id(facts.name)
        used = facts.used if id_ is None else self._uses.get(id_, facts.used)
        return replace(facts, used=max(used, facts.used))

    def _model(self, facts: SessionFacts) -> ServedModel:
        """The model that goes on with this session. Raises ModelNotServed."""
        try:
            return self._models.with_fingerprint(facts.fingerprint, facts.model)
        except ModelNotFound as error:
            raise ModelNotServed(facts.name, facts.model, facts.fingerprint) from error

    def _view(self, facts: SessionFacts, wanted: str) -> SessionView | None:
        """The session as callers see it; None where it is over, or of another model."""
        view = self._newest_view(facts)
        if view is None:
            return None
        return view if wanted in ("", view.model, view.model.rpartition("/")[0]) else None

    def _newest_view(self, facts: SessionFacts) -> SessionView | None:
        """The session as memory has it, or else as it was stored; None where it is over."""
        with suppress(SessionNotFound):
            return self.memory.get(facts.name).view
        return self._stored_view(self._current(facts)) if self._is_open(facts) else None

    def _stored_view(self, facts: SessionFacts) -> SessionView:
        label = facts.model
        with suppress(ModelNotServed):
            label = self._model(facts).label
        return SessionView(
            name=facts.name,
            model=label,
            fingerprint=facts.fingerprint,
            position=facts.position,
            seed=facts.seed,
            state_bytes=4 * facts.state_size,
            created=facts.created,
            used=facts.used,
            expires=facts.ends,
            undo=facts.undo,
            checkpoints=facts.checkpoints,
            latest=None if facts.latest == math.inf else facts.latest,
        )

    def _use(self, name: str) -> None:
        """The session is used now, in memory or not; the store hears of it at the next expiry."""
        id_ = session_id(name)
        if id_ is not None:
            self._uses[id_] = self._clock()
        with suppress(SessionNotFound):
            self.memory.touch(self.memory.get(name))

    async def _write_uses(self) -> None:
        if not (uses := dict(self._uses)):
            return
        await self._store.note_uses(uses)
        for id_, used in uses.items():
            if self._uses.get(id_) == used:
                del self._uses[id_]

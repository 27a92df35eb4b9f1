"""Sessions in memory: named states that turns advance.

Here is which sessions there are, whose, until when, and which are busy; where each of them stands
is in `standings`. Everything runs in the event loop's thread. A session changes in one place only,
`move`, which replaces state, position, pending token and what is kept of its past together.

An idle session is a row of `Records` and what `Standings` has of that row, no object. `Session` is
made to talk of one.

Where a store has all sessions too, memory may let go of idle ones and take them back.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np

from unrolled_server import checkpoints
from unrolled_server.answers import Answer, find
from unrolled_server.errors import (
    AnswerNotKept,
    InvalidField,
    SessionBusy,
    SessionNotFound,
    TooManySessions,
)
from unrolled_server.homes import Homes
from unrolled_server.idle_sessions import IdleSessions
from unrolled_server.models import ServedModel
from unrolled_server.numbering import Numbering
from unrolled_server.records import NEVER, Records
from unrolled_server.session import Session
from unrolled_server.session_names import KEY_BYTES, row_and_key, session_id, session_name
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.standing import Standing
from unrolled_server.standings import Standings
from unrolled_server.store import Version
from unrolled_server.tenants import tenant
from unrolled_server.types import Checkpoint, RequestKey

MAX_ENDED = 500
"""Sessions that one round of expiry ends: the event loop waits for it."""
MAX_BLOCKS = 64
"""Blocks of rows that one page looks at."""
NOWHERE = (0, b"")
"""A row and a key that no session has."""
PAGE_TOKEN = re.compile(r"[0-9a-f]{1,8}")


class Sessions:
    """The sessions in memory, at most `limit`; `idle_ttl` and `max_age` seconds are their defaults.

    With `spills`, a store has them all: what leaves memory has not ended, and above the limit
    the least recently used that are idle leave rather than new ones being refused.
    """

    def __init__(
        self,
        limit: int,
        idle_ttl: float,
        clock: Callable[[], float] = time.time,
        *,
        spills: bool = False,
        max_age: float = 0,
    ) -> None:
        self.limit = limit
        self.spills = spills
        self.spilled = 0
        """Sessions that left memory to make room."""
        self.awaited: Counter[bytes] = Counter()
        """Keys of sessions that are not to be spilled."""
        self.ended: Counter[str] = Counter({"deleted": 0, "expired": 0})
        self.replays = 0
        """Turns answered from the record."""
        self._idle_ttl = idle_ttl
        self._max_age = max_age
        self._clock = clock
        self._count = 0
        """Of all models."""
        self._counts: Counter[ServedModel] = Counter()
        self._models: Numbering[ServedModel] = Numbering()
        self._tenants: Numbering[str] = Numbering()
        self._records = Records()
        self._standings = Standings()
        self._homes = Homes()
        self._holders: dict[int, Callable[[], None]] = {}
        """How to end the turns under way, by row."""
        self._versions: dict[int, Version] = {}
        """By row; only of sessions that other servers may advance too."""
        self._idle = IdleSessions(self._records, self._holders, self.awaited)

    def count(self, model: ServedModel) -> int:
        """Sessions of one model."""
        return self._counts[model]

    @property
    def checkpoint_bytes(self) -> int:
        """Of all that sessions can be taken back to."""
        return self._standings.mark_bytes

    def create(
        self,
        model: ServedModel,
        seed: int | None = None,
        idle_ttl: float | None = None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session at the zero state; without a seed it gets a random one.

        With `undo` it keeps where it stood before its last turn. `max_age` seconds from now it
        ends, however it is used; 0: use keeps it. Raises TooManySessions.
        """
        self._make_room()
        row = self._records.take()
        block, index = self._records.find(row)
        block.tenants[index] = self._tenants.number(tenant.get())
        block.set_key(index, secrets.token_bytes(KEY_BYTES))
        block.seeds[index] = secrets.randbits(64) if seed is None else seed
        block.created[index] = block.used[index] = self._clock()
        block.idle_ttls[index] = self._idle_ttl if idle_ttl is None else idle_ttl
        max_age = self._max_age if max_age is None else max_age
        block.set_latest(index, block.created[index] + max_age if max_age else NEVER)
        self._begin(row, model, undo=undo)
        return self._session(row)

    def admit(self, record: SessionRecord, model: ServedModel) -> Session:
        """The session of this record, which is not in memory, goes on in it."""
        self._make_room()
        row = self._records.take()
        block, index = self._records.find(row)
        facts = record.facts
        home, key = row_and_key(facts.name) or NOWHERE
        block.tenants[index] = self._tenants.number(facts.tenant)
        block.set_key(index, key)
        block.seeds[index] = facts.seed
        block.created[index], block.used[index] = facts.created, facts.used
        block.idle_ttls[index] = facts.idle_ttl
        block.set_latest(index, facts.latest)
        self._begin(row, model)
        self._homes.enter(row, home, key)
        session = self._session(row)
        self._standings.replace(
            session,
            Standing(session.name, record.past, record.answers, record.marks, facts.era),
        )
        return session

    def get(self, name: str) -> Session:
        """The session of this name, if it is the calling tenant's. Raises SessionNotFound."""
        id_ = session_id(name)
        row = None if id_ is None else self._row(id_)
        if row is None:
            raise SessionNotFound(name)
        session = self._session(row)
        block, index = session.block, session.index
        owner = self._tenants.find(tenant.get())
        if block.tenants[index] != owner or block.end(index) <= self._clock():
            raise SessionNotFound(name)
        return session

    def page(self, model: str, size: int, token: str) -> tuple[list[Session], str]:
        """Up to `size` sessions of the calling tenant, in the order of names, from `token` on.

        `model` is a name, a name/version, or empty for all; an empty token is the beginning.
        Also the token to go on with, empty at the end; a page may be short where many
        sessions do not match. Raises InvalidField for a token that no page came with.
        """
        wanted = [model in ("", each.name, each.label) for each in self._models.all]
        first = _row_of(token)
        owner = self._tenants.find(tenant.get())
        blocks = self._records.matching(first, np.array(wanted, np.bool_), owner, self._clock())
        page: list[Session] = []
        for rows, following in islice(blocks, MAX_BLOCKS):
            room = size - len(page)
            page.extend(map(self._session, rows[:room].tolist()))
            if len(rows) > room:
                return page, f"{rows[room]:x}"
            first = following
        return page, f"{first:x}" if first < self._records.end else ""

    def fork(self, name: str, seed: int | None) -> Session:
        """A new session with the same past. Raises SessionNotFound, TooManySessions."""
        parent = self.get(name)
        past, latest = self.checkpoint(parent), parent.block.latest(parent.index)
        seed = parent.seed if seed is None else seed
        child = self.restore(parent.model, past, seed, parent.idle_ttl, undo=parent.marks.undo)
        child.block.set_latest(child.index, latest)
        child.block.let_end(child.index)
        self.touch(parent)
        return child

    def restore(
        self,
        model: ServedModel,
        past: Checkpoint,
        seed: int,
        idle_ttl: float | None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session that stands where another one stood. Raises TooManySessions."""
        session = self.create(model, seed, idle_ttl, undo=undo, max_age=max_age)
        self._standings.replace(session, replace(self.standing(session), past=past))
        return session

    def delete(self, name: str) -> None:
        """End a session, and the turn it has under way. Raises SessionNotFound."""
        self._drop(self.get(name).row)
        self.ended["deleted"] += 1

    def drop(self, name: str) -> None:
        """Let go of what there is of a session that has ended elsewhere, and end its turn."""
        id_ = session_id(name)
        if id_ is not None and (row := self._row(id_)) is not None:
            self._drop(row)

    def has(self, id_: bytes) -> bool:
        """Whether the session with this ID is in memory, over or not."""
        return self._row(id_) is not None

    @property
    def busy(self) -> int:
        """Sessions that have a turn under way."""
        return len(self._holders)

    def held(self) -> list[bytes]:
        """IDs of the sessions that have a turn under way."""
        names = (self._session(row).name for row in self._holders)
        return [id_ for name in names if (id_ := session_id(name)) is not None]

    def is_held(self, id_: bytes) -> bool:
        """Whether the session with this ID has a turn under way."""
        return self._row(id_) in self._holders

    def version(self, id_: bytes) -> Version | None:
        """Which state of a shared session is in memory; None: none is, or it is not shared."""
        row = self._row(id_)
        return None if row is None else self._versions.get(row)

    def set_version(self, session: Session, version: Version) -> None:
        """What is in memory of a shared session is this state of it."""
        session.living()
        self._versions[session.row] = version

    def note_use(self, id_: bytes, used: float) -> None:
        """The session was used then, perhaps by another server."""
        if (row := self._row(id_)) is not None:
            block, index = self._records.find(row)
            self._use(row, max(block.used[index], used))

    def record(self, session: Session, standing: Standing) -> SessionRecord:
        """What is to be stored of a session that moves there now. Raises SessionNotFound."""
        session.living()
        marks = checkpoints.decode(standing.marks)
        version = self._versions.get(session.row)
        facts = SessionFacts(
            name=session.name,
            tenant=self._tenants.all[session.block.tenants[session.index]],
            model=session.model.label,
            fingerprint=session.model.fingerprint,
            epoch=1 if version is None else version.epoch,
            era=standing.era,
            seed=session.seed,
            position=standing.past.position,
            state_size=session.model.state_size,
            created=session.created,
            used=self._clock(),
            idle_ttl=session.idle_ttl,
            undo=marks.undo,
            places=marks.places,
            latest=session.block.latest(session.index),
        )
        return SessionRecord(facts, standing.past, standing.answers, standing.marks)

    def hold(self, session: Session, end_turn: Callable[[], None]) -> None:
        """Begin a turn; `end_turn` is called if the session ends meanwhile.

        Raises SessionBusy, SessionNotFound.
        """
        session.living()
        if session.row in self._holders:
            raise SessionBusy(session.name)
        self._holders[session.row] = end_turn
        session.block.keep(session.index)

    def release(self, session: Session) -> None:
        """End a turn, committed or not; the session may have ended before."""
        if not session.has_ended:
            del self._holders[session.row]
            session.block.let_end(session.index)

    def checkpoint(self, session: Session) -> Checkpoint:
        """Where the session stands, apart from it from now on. Raises SessionNotFound."""
        return self._standings.checkpoint(session)

    def standing(self, session: Session) -> Standing:
        """All that changes of the session, as it is, apart from it. Raises SessionNotFound."""
        return self._standings.read(session)

    def answer(self, session: Session, key: RequestKey) -> Answer | None:
        """The answer on record to this request; None: its turn is not on record.

        Raises RequestIdReused, AnswerNotKept, SessionNotFound.
        """
        answer = find(self._standings.answers(session), key)
        if answer is not None:
            if not answer.is_kept:
                raise AnswerNotKept(session.name, session.position)
            self.replays += 1
        return answer

    def has_answer(self, session: Session, key: RequestKey) -> bool:
        """Whether this request's turn is on record. Raises RequestIdReused, SessionNotFound."""
        return find(self._standings.answers(session), key) is not None

    def commit(
        self, session: Session, checkpoint: Checkpoint, answer: Answer | None = None
    ) -> None:
        """Move a session to where its turn ended, and record the answer if there is to be one.

        Raises SessionNotFound where it has ended.
        """
        self.move(session, self.standing(session).after_turn(checkpoint, answer))

    def move(self, session: Session, standing: Standing) -> None:
        """Replace all that changes of a session. Raises SessionNotFound where it has ended."""
        session.living()
        self._standings.replace(session, standing)
        self.touch(session)

    def touch(self, session: Session) -> None:
        """Count a read of the session's state as a use of it, if it has not ended."""
        if not session.has_ended:
            self._use(session.row, self._clock())

    def expire(self) -> bool:
        """End sessions whose time is over; of very many, some: whether that may be so.

        Where a store has them too, they leave memory, and the store is to end them.
        """
        rows = self._records.over(self._clock(), MAX_ENDED)
        for row in rows:
            self._remove(row)
        if not self.spills:
            self.ended["expired"] += len(rows)
        return len(rows) == MAX_ENDED

    def _make_room(self) -> None:
        """Let sessions go until there is room. Raises TooManySessions."""
        if self.spills:
            self._spill()
            return
        more = True
        while self._count >= self.limit:
            if not more:
                raise TooManySessions(self.limit)
            more = self.expire()

    def _spill(self) -> None:
        """Let go of the least recently used idle sessions; where all are busy, there are more."""
        while self._count >= self.limit:
            row = self._idle.first(self.limit)
            if row is None:
                return
            self._remove(row)
            self.spilled += 1

    def _begin(self, row: int, model: ServedModel, *, undo: bool = False) -> None:
        """A session of this model is in the row, at the zero state; the rest is set."""
        block, index = self._records.find(row)
        self._standings.begin(row, block, index, undo=undo)
        block.models[index] = self._models.number(model)
        block.let_end(index)
        self._counts[model] += 1
        self._count += 1

    def _use(self, row: int, used: float) -> None:
        """The session in this row was used then: where no turn is under way, it is over later."""
        block, index = self._records.find(row)
        block.used[index] = used
        if row not in self._holders:
            block.let_end(index)

    def _row(self, id_: bytes) -> int | None:
        """Where the session with this ID lies; None where it is not in memory."""
        key = id_[-KEY_BYTES:]
        row = self._homes.row(int.from_bytes(id_[:-KEY_BYTES]), key)
        return None if row is None or self._records.search(row, key) is None else row

    def _drop(self, row: int) -> None:
        """Let go of the session in this row, and end its turn."""
        end_turn = self._holders.pop(row, None)
        if end_turn is not None:
            end_turn()
        self._remove(row)

    def _session(self, row: int) -> Session:
        """The session in this row, which has one."""
        block, index = self._records.find(row)
        name = session_name(self._homes.home(row), block.key(index))
        model = self._models.all[block.models[index]]
        return Session(
            name, row, block.generations[index], model, block, index, self._standings.marks
        )

    def _remove(self, row: int) -> None:
        """Let go of the session in this row, which has no turn under way."""
        block, index = self._records.find(row)
        self._standings.forget(row, block, index)
        self._homes.leave(row, bytes(block.key(index)))
        self._versions.pop(row, None)
        self._counts[self._models.all[block.models[index]]] -= 1
        self._records.free(row)
        self._count -= 1


def _row_of(token: str) -> int:
    """The row that a page token says to go on with. Raises InvalidField."""
    if not token:
        return 0
    if not PAGE_TOKEN.fullmatch(token):
        raise InvalidField("page_token", "is not one that a page came with")
    return int(token, 16)

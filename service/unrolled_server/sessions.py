"""Sessions in memory: named states that turns advance.

Everything here runs in the event loop's thread. A session changes in one place only,
`move`, which replaces state, position, pending token and what is kept of its past together.

An idle session is a row of `Records` and a slot of `StateSlabs`, no object. `Session` is made
to talk of one.

Where a store has all sessions too, memory may let go of idle ones and take them back.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from unrolled_server import checkpoints
from unrolled_server.answers import Answer, find
from unrolled_server.checkpoints import Marks
from unrolled_server.errors import (
    AnswerNotKept,
    InvalidField,
    SessionBusy,
    SessionNotFound,
    TooManySessions,
)
from unrolled_server.models import ServedModel
from unrolled_server.records import NEVER, NONE, Block, Records
from unrolled_server.session_names import KEY_BYTES, row_and_key, session_id, session_name
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.standing import Standing
from unrolled_server.states import StateSlabs
from unrolled_server.store import Version
from unrolled_server.tenants import tenant
from unrolled_server.types import Checkpoint, Floats, RequestKey, SessionView

MAX_ENDED = 500
"""Sessions that one round of expiry ends: the event loop waits for it."""
MAX_BLOCKS = 64
"""Blocks of rows that one page looks at."""
MAX_IDLE = 4096
"""Sessions that one search for the least recently used finds at most."""
STRANGER = -1
"""The number of tenants that have none."""
FIRST_ERA = 1
NOWHERE = (0, b"")
"""A row and a key that no session has."""
PAGE_TOKEN = re.compile(r"[0-9a-f]{1,8}")


@dataclass(slots=True)
class Session:
    """One session, to be asked where it stands now; equal if it is the same session.

    What is asked of it raises SessionNotFound once the session has ended.
    """

    name: str
    """sessions/ID"""
    row: int = field(compare=False)
    generation: int = field(compare=False)
    model: ServedModel = field(compare=False)
    block: Block = field(compare=False)
    index: int = field(compare=False)
    """The row's place in its block."""
    all_marks: Mapping[int, bytes] = field(compare=False, repr=False)
    """Of all sessions that have any, by row."""

    @property
    def marks(self) -> Marks:
        """Where it can be taken back to."""
        self.living()
        return checkpoints.decode(self.all_marks.get(self.row, b""))

    @property
    def position(self) -> int:
        return self.living().positions[self.index]

    @property
    def seed(self) -> int:
        return self.living().seeds[self.index]

    @property
    def created(self) -> float:
        """Seconds since the epoch."""
        return self.living().created[self.index]

    @property
    def used(self) -> float:
        """Seconds since the epoch."""
        return self.living().used[self.index]

    @property
    def idle_ttl(self) -> float:
        """Seconds; 0: it never expires."""
        return self.living().idle_ttls[self.index]

    @property
    def expires(self) -> float | None:
        """Seconds since the epoch; None: never."""
        return _time(self.living().expires(self.index))

    @property
    def latest(self) -> float | None:
        """When it ends however it is used, in seconds since the epoch; None: use keeps it."""
        return _time(self.living().latest(self.index))

    @property
    def view(self) -> SessionView:
        """As callers see it."""
        marks = self.marks
        return SessionView(
            name=self.name,
            model=self.model.label,
            fingerprint=self.model.fingerprint,
            position=self.position,
            seed=self.seed,
            state_bytes=self.model.state_bytes,
            created=self.created,
            used=self.used,
            expires=self.expires,
            undo=marks.undo,
            places=marks.places,
            latest=self.latest,
        )

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, or has left memory."""
        return self.block.generations[self.index] != self.generation

    def living(self) -> Block:
        """The block it lies in. Raises SessionNotFound."""
        if self.has_ended:
            raise SessionNotFound(self.name)
        return self.block


class ModelSessions:
    """What the sessions of one model share."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.slabs = StateSlabs(model.state_size)
        self.count = 0


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
        self._records = Records()
        self._models: list[ModelSessions] = []
        self._numbers: dict[ServedModel, int] = {}
        self._tenants: dict[str, int] = {}
        self._tenant_names: list[str] = []
        """Numbers of those that have, or had, sessions."""
        # By row, and only of those rows that have any.
        self._partials: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._marks: dict[int, bytes] = {}
        self._eras: dict[int, int] = {}
        """Of those that are not in their first."""
        self._holders: dict[int, Callable[[], None]] = {}
        # Only of sessions that do not lie in the row that their names say: rows by key, and the
        # rows that the names say by row.
        self._rows: dict[bytes, int] = {}
        self._homes: dict[int, int] = {}
        # Only of sessions that other servers may advance too.
        self._versions: dict[int, Version] = {}
        # Rows, their generations and times of last use: idle sessions, the longest first.
        self._idle: deque[tuple[int, int, float]] = deque()

    def count(self, model: ServedModel) -> int:
        """Sessions of one model."""
        number = self._numbers.get(model)
        return 0 if number is None else self._models[number].count

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
        block.tenants[index] = self._tenant_number(tenant.get())
        block.set_key(index, secrets.token_bytes(KEY_BYTES))
        block.seeds[index] = secrets.randbits(64) if seed is None else seed
        block.created[index] = block.used[index] = self._clock()
        block.idle_ttls[index] = self._idle_ttl if idle_ttl is None else idle_ttl
        max_age = self._max_age if max_age is None else max_age
        block.set_latest(index, block.created[index] + max_age if max_age else NEVER)
        self._begin(row, model)
        self._note(self._marks, row, checkpoints.encode(Marks(undo)))
        return self._session(row)

    def admit(self, record: SessionRecord, model: ServedModel) -> Session:
        """The session of this record, which is not in memory, goes on in it."""
        self._make_room()
        row = self._records.take()
        block, index = self._records.find(row)
        facts = record.facts
        home, key = row_and_key(facts.name) or NOWHERE
        block.tenants[index] = self._tenant_number(facts.tenant)
        block.set_key(index, key)
        block.seeds[index] = facts.seed
        block.created[index], block.used[index] = facts.created, facts.used
        block.idle_ttls[index] = facts.idle_ttl
        block.set_latest(index, facts.latest)
        self._begin(row, model)
        if home != row:
            self._rows[key], self._homes[row] = row, home
        session = self._session(row)
        self._replace(
            session,
            Standing(session.name, record.past, record.answers, record.marks, facts.era),
        )
        return session

    def get(self, name: str) -> Session:
        """The session of this name, if it is the calling tenant's. Raises SessionNotFound."""
        row, key = row_and_key(name) or NOWHERE
        if self._rows:
            row = self._rows.get(key, row)
        place = self._records.search(row, key)
        if place is None:
            raise SessionNotFound(name)
        block, index = place
        if block.tenants[index] != self._tenant() or block.end(index) <= self._clock():
            raise SessionNotFound(name)
        model = self._models[block.models[index]].model
        return Session(name, row, block.generations[index], model, block, index, self._marks)

    def page(self, model: str, size: int, token: str) -> tuple[list[Session], str]:
        """Up to `size` sessions of the calling tenant, in the order of names, from `token` on.

        `model` is a name, a name/version, or empty for all; an empty token is the beginning.
        Also the token to go on with, empty at the end; a page may be short where many
        sessions do not match. Raises InvalidField for a token that no page came with.
        """
        wanted = [model in ("", of.model.name, of.model.label) for of in self._models]
        first = _row_of(token)
        blocks = self._records.matching(
            first, np.array(wanted, np.bool_), self._tenant(), self._clock()
        )
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
        self._replace(session, replace(self.standing(session), past=past))
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
            block.used[index] = max(block.used[index], used)
            if row not in self._holders:
                block.let_end(index)

    def record(self, session: Session, standing: Standing) -> SessionRecord:
        """What is to be stored of a session that moves there now. Raises SessionNotFound."""
        session.living()
        marks = checkpoints.decode(standing.marks)
        version = self._versions.get(session.row)
        facts = SessionFacts(
            name=session.name,
            tenant=self._tenant_names[session.block.tenants[session.index]],
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
        block, index = session.living(), session.index
        slot, pending, previous = block.slots[index], block.pending[index], block.previous[index]
        return Checkpoint(
            None if slot == NONE else self._slabs(session).read(slot),
            None if pending == NONE else pending,
            block.positions[index],
            self._partials.get(session.row, b""),
            None if previous == NONE else previous,
        )

    def standing(self, session: Session) -> Standing:
        """All that changes of the session, as it is, apart from it. Raises SessionNotFound."""
        row = session.row
        return Standing(
            session.name,
            self.checkpoint(session),
            self._answers.get(row, b""),
            self._marks.get(row, b""),
            self._eras.get(row, FIRST_ERA),
        )

    def answer(self, session: Session, key: RequestKey) -> Answer | None:
        """The answer on record to this request; None: its turn is not on record.

        Raises RequestIdReused, AnswerNotKept, SessionNotFound.
        """
        session.living()
        answer = find(self._answers.get(session.row, b""), key)
        if answer is not None:
            if not answer.is_kept:
                raise AnswerNotKept(session.name, session.position)
            self.replays += 1
        return answer

    def has_answer(self, session: Session, key: RequestKey) -> bool:
        """Whether this request's turn is on record. Raises RequestIdReused, SessionNotFound."""
        session.living()
        return find(self._answers.get(session.row, b""), key) is not None

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
        self._replace(session, standing)
        self.touch(session)

    def touch(self, session: Session) -> None:
        """Count a read of the session's state as a use of it, if it has not ended."""
        if session.has_ended:
            return
        session.block.used[session.index] = self._clock()
        if session.row not in self._holders:
            session.block.let_end(session.index)

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
            row = self._idle_row()
            if row is None:
                return
            self._remove(row)
            self.spilled += 1

    def _idle_row(self) -> int | None:
        """The row of the session that was idle for longest; None: all are busy."""
        if (row := self._next_idle()) is None:
            most = min(MAX_IDLE, 1 + self.limit // 16)
            self._idle.extend(self._records.oldest(most, self._holders))
            row = self._next_idle()
        return row

    def _next_idle(self) -> int | None:
        """The first of those found idle that still is."""
        while self._idle:
            row, generation, used = self._idle.popleft()
            block, index = self._records.find(row)
            is_same = (block.generations[index], block.used[index]) == (generation, used)
            is_wanted = row in self._holders or bytes(block.key(index)) in self.awaited
            if is_same and not is_wanted and block.models[index] != NONE:
                return row
        return None

    def _begin(self, row: int, model: ServedModel) -> None:
        """A session of this model is in the row, at the zero state; the rest is set."""
        number = self._number(model)
        block, index = self._records.find(row)
        block.positions[index] = 0
        block.pending[index] = block.previous[index] = block.slots[index] = NONE
        block.models[index] = number
        block.let_end(index)
        self._models[number].count += 1
        self._count += 1

    def _row(self, id_: bytes) -> int | None:
        """Where the session with this ID lies; None where it is not in memory."""
        key = id_[-KEY_BYTES:]
        row = self._rows.get(key, int.from_bytes(id_[:-KEY_BYTES]))
        return None if self._records.search(row, key) is None else row

    def _drop(self, row: int) -> None:
        """Let go of the session in this row, and end its turn."""
        end_turn = self._holders.pop(row, None)
        if end_turn is not None:
            end_turn()
        self._remove(row)

    def _session(self, row: int) -> Session:
        """The session in this row, which has one."""
        block, index = self._records.find(row)
        name = session_name(self._homes.get(row, row), block.key(index))
        model = self._models[block.models[index]].model
        return Session(name, row, block.generations[index], model, block, index, self._marks)

    def _replace(self, session: Session, standing: Standing) -> None:
        checkpoint, row = standing.past, session.row
        block, index = session.block, session.index
        if checkpoint.state is not None:
            self._store(session, checkpoint.state)
        elif block.slots[index] != NONE:
            self._slabs(session).free(block.slots[index])
            block.slots[index] = NONE
        block.positions[index] = checkpoint.position
        block.pending[index] = NONE if checkpoint.pending is None else checkpoint.pending
        block.previous[index] = NONE if checkpoint.previous is None else checkpoint.previous
        self._note(self._partials, row, checkpoint.partial)
        self._note(self._answers, row, standing.answers)
        self._note(self._marks, row, standing.marks)
        if standing.era != FIRST_ERA:
            self._eras[row] = standing.era

    @staticmethod
    def _note(column: dict[int, bytes], row: int, value: bytes) -> None:
        """Set a value that is kept only where it is not empty."""
        if value:
            column[row] = value
        else:
            column.pop(row, None)

    def _store(self, session: Session, state: Floats) -> None:
        slabs, slots = self._slabs(session), session.block.slots
        slot = slots[session.index]
        if slot == NONE:
            slots[session.index] = slot = slabs.allocate()
        slabs.write(slot, state)

    def _remove(self, row: int) -> None:
        """Let go of the session in this row, which has no turn under way."""
        block, index = self._records.find(row)
        of = self._models[block.models[index]]
        if block.slots[index] != NONE:
            of.slabs.free(block.slots[index])
        of.count -= 1
        for column in (self._partials, self._answers, self._marks, self._eras, self._versions):
            column.pop(row, None)
        key = bytes(block.key(index))
        if self._homes.pop(row, None) is not None and self._rows.get(key) == row:
            del self._rows[key]
        self._records.free(row)
        self._count -= 1

    def _slabs(self, session: Session) -> StateSlabs:
        return self._models[session.block.models[session.index]].slabs

    def _tenant_number(self, name: str) -> int:
        """A tenant's place among those that have, or had, sessions."""
        if name not in self._tenants:
            self._tenants[name] = len(self._tenant_names)
            self._tenant_names.append(name)
        return self._tenants[name]

    def _tenant(self) -> int:
        """The calling tenant's number; STRANGER without sessions, ever."""
        return self._tenants.get(tenant.get(), STRANGER)

    def _number(self, model: ServedModel) -> int:
        """The model's place among those that have, or had, sessions."""
        if model not in self._numbers:
            self._models.append(ModelSessions(model))
            self._numbers[model] = len(self._models) - 1
        return self._numbers[model]


def _time(end: float) -> float | None:
    """A time, None where that is never."""
    return None if end == NEVER else end


def _row_of(token: str) -> int:
    """The row that a page token says to go on with. Raises InvalidField."""
    if not token:
        return 0
    if not PAGE_TOKEN.fullmatch(token):
        raise InvalidField("page_token", "is not one that a page came with")
    return int(token, 16)

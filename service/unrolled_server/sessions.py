"""Sessions in memory: named states that turns advance.

Here is which sessions there are, whose, until when, and which are busy; where each of them stands
is in `standings`. Everything runs in the event loop's thread. A session changes in one place only,
`move`, which replaces state, position, pending token and what is kept of its past together.

An idle session is a row of `Records` and what `Standings` has of that row, no object. `Session` is
made to talk of one.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np

from unrolled_server.answers import Answer, find
from unrolled_server.errors import (
    AnswerNotKept,
    SessionBusy,
    SessionNotFound,
    TooManySessions,
)
from unrolled_server.models import ServedModel
from unrolled_server.numbering import Numbering
from unrolled_server.page_tokens import row_of, row_token
from unrolled_server.records import NEVER, Records
from unrolled_server.session import Session
from unrolled_server.session_names import KEY_BYTES, session_id, session_name
from unrolled_server.standing import Standing
from unrolled_server.standings import Standings
from unrolled_server.tenants import tenant
from unrolled_server.types import Past, RequestKey

MAX_ENDED = 500
"""Sessions that one round of expiry ends: the event loop waits for it."""
MAX_BLOCKS = 64
"""Blocks of rows that one page looks at."""


class Sessions:
    """All sessions, at most `limit`; `idle_ttl` and `max_age` seconds are their defaults."""

    def __init__(
        self,
        limit: int,
        idle_ttl: float,
        clock: Callable[[], float] = time.time,
        *,
        max_age: float = 0,
    ) -> None:
        self.limit = limit
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
        self._holders: dict[int, Callable[[], None]] = {}
        """How to end the turns under way, by row."""

    def count(self, model: ServedModel) -> int:
        """Sessions of one model."""
        return self._counts[model]

    def state_bytes(self, model: ServedModel) -> int:
        """Of the states of one model's sessions; a session without a turn has none yet."""
        return self._standings.state_bytes(self._models.find(model))

    @property
    def checkpoint_bytes(self) -> int:
        """Of all that sessions can be taken back to."""
        return self._standings.checkpoint_bytes

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
        first = row_of(token)
        owner = self._tenants.find(tenant.get())
        blocks = self._records.matching(first, np.array(wanted, np.bool_), owner, self._clock())
        page: list[Session] = []
        for rows, following in islice(blocks, MAX_BLOCKS):
            room = size - len(page)
            page.extend(map(self._session, rows[:room].tolist()))
            if len(rows) > room:
                return page, row_token(rows[room])
            first = following
        return page, row_token(first) if first < self._records.end else ""

    def fork(self, name: str, seed: int | None) -> Session:
        """A new session with the same past. Raises SessionNotFound, TooManySessions."""
        parent = self.get(name)
        past, latest = self.past(parent), parent.block.latest(parent.index)
        seed = parent.seed if seed is None else seed
        child = self.restore(
            parent.model, past, seed, parent.idle_ttl, undo=parent.checkpoints.undo
        )
        child.block.set_latest(child.index, latest)
        child.block.let_end(child.index)
        self.touch(parent)
        return child

    def restore(
        self,
        model: ServedModel,
        past: Past,
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

    def past(self, session: Session) -> Past:
        """Where the session stands, apart from it from now on. Raises SessionNotFound."""
        return self._standings.past(session)

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
        """End sessions whose time is over; of very many, some: whether that may be so."""
        rows = self._records.over(self._clock(), MAX_ENDED)
        for row in rows:
            self._remove(row)
        self._count_over(len(rows))
        return len(rows) == MAX_ENDED

    def _count_over(self, number: int) -> None:
        """So many sessions have been let go of since their time is over."""
        self.ended["expired"] += number

    def _make_room(self) -> None:
        """Let sessions go until there is room. Raises TooManySessions."""
        more = True
        while self._count >= self.limit:
            if not more:
                raise TooManySessions(self.limit)
            more = self.expire()

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
        home, key = int.from_bytes(id_[:-KEY_BYTES]), id_[-KEY_BYTES:]
        row = self._row_at(home, key)
        return None if row is None or self._records.search(row, key) is None else row

    def _row_at(self, home: int, key: bytes) -> int | None:
        """Where the session whose name says this row lies, if there is one; None: there is none."""
        return home

    def _home(self, row: int) -> int:
        """Which row the name of the session in this row says."""
        return row

    def _drop(self, row: int) -> None:
        """Let go of the session in this row, and end its turn."""
        end_turn = self._holders.pop(row, None)
        if end_turn is not None:
            end_turn()
        self._remove(row)

    def _session(self, row: int) -> Session:
        """The session in this row, which has one."""
        block, index = self._records.find(row)
        name = session_name(self._home(row), block.key(index))
        model = self._models.all[block.models[index]]
        return Session(
            name, row, block.generations[index], model, block, index, self._standings.checkpoints
        )

    def _remove(self, row: int) -> None:
        """Let go of the session in this row, which has no turn under way."""
        block, index = self._records.find(row)
        self._standings.forget(row, block, index)
        self._counts[self._models.all[block.models[index]]] -= 1
        self._records.free(row)
        self._count -= 1

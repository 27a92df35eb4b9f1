"""Sessions in memory of which a store has all: those in use, for as long as there is room.

What leaves memory has not ended. It comes back as a record of the store's, into any row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from unrolled_server import checkpoints
from unrolled_server.homes import Homes
from unrolled_server.idle_sessions import IdleSessions
from unrolled_server.models import ServedModel
from unrolled_server.session import Session
from unrolled_server.session_names import row_and_key, session_id
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.sessions import Sessions
from unrolled_server.standing import Standing
from unrolled_server.store import Version

NO_HOME = (0, b"")
"""A row and a key that no session has."""


class CachedSessions(Sessions):
    """The sessions in memory, at most `limit` if not more are busy.

    Above it the least recently used that are idle leave rather than new ones being refused.
    """

    def __init__(
        self,
        limit: int,
        idle_ttl: float,
        clock: Callable[[], float] = time.time,
        *,
        max_age: float = 0,
    ) -> None:
        super().__init__(limit, idle_ttl, clock, max_age=max_age)
        self.spilled = 0
        """Sessions that left memory to make room."""
        self.awaited: Counter[bytes] = Counter()
        """Keys of sessions that are not to be spilled."""
        self._homes = Homes()
        self._versions: dict[int, Version] = {}
        """By row; only of sessions that other servers may advance too."""
        self._idle = IdleSessions(self._records, self._holders, self.awaited)

    def admit(self, record: SessionRecord, model: ServedModel) -> Session:
        """The session of this record, which is not in memory, goes on in it."""
        self._make_room()
        row = self._records.take()
        block, index = self._records.find(row)
        facts = record.facts
        home, key = row_and_key(facts.name) or NO_HOME
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
            Standing(session.name, record.past, record.answers, record.checkpoints, facts.era),
        )
        return session

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
        kept = checkpoints.decode(standing.checkpoints)
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
            undo=kept.undo,
            checkpoints=kept.views,
            latest=session.block.latest(session.index),
        )
        return SessionRecord(facts, standing.past, standing.answers, standing.checkpoints)

    def _count_over(self, number: int) -> None:
        """They have not ended yet: the store is to end them."""

    def _make_room(self) -> None:
        """Let go of the least recently used idle sessions; where all are busy, there are more."""
        while self._count >= self.limit:
            row = self._idle.first(self.limit)
            if row is None:
                return
            self._remove(row)
            self.spilled += 1

    def _row_at(self, home: int, key: bytes) -> int | None:
        return self._homes.row(home, key)

    def _home(self, row: int) -> int:
        return self._homes.home(row)

    def _remove(self, row: int) -> None:
        block, index = self._records.find(row)
        self._homes.leave(row, bytes(block.key(index)))
        self._versions.pop(row, None)
        super()._remove(row)

"""Sessions in memory: named states that turns advance.

Everything here runs in the event loop's thread. A session changes in one place only,
`commit`, which replaces state, position and pending token together.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections import Counter
from collections.abc import Callable

from sortedcontainers import SortedDict

from unrolled_server.errors import SessionBusy, SessionNotFound, TooManySessions
from unrolled_server.models import ServedModel
from unrolled_server.states import StateSlabs
from unrolled_server.types import Checkpoint

SPARE_EXPIRIES = 1024


MAX_LOOKED_AT = 5000
"""Sessions that one page, or one round of expiry, looks at: the event loop waits for it."""


class Session:
    """One session's record; its state lies in a slot of its model's slabs."""

    __slots__ = (
        "created",
        "holder",
        "idle_ttl",
        "model",
        "name",
        "partial",
        "pending",
        "position",
        "previous",
        "seed",
        "slot",
        "used",
    )

    def __init__(
        self, name: str, model: ServedModel, seed: int, idle_ttl: float, now: float
    ) -> None:
        self.name = name
        """sessions/ID"""
        self.model = model
        self.seed = seed
        self.idle_ttl = idle_ttl
        """Seconds; 0: it never expires."""
        self.created = self.used = now
        """Seconds since the epoch."""
        self.position = 0
        self.pending: int | None = None
        self.partial = b""
        self.previous: int | None = None
        self.slot: int | None = None
        """None while the state is zero."""
        self.holder: Callable[[], None] | None = None
        """Set while a turn is under way: ends that turn."""

    @property
    def expires(self) -> float | None:
        """Seconds since the epoch; None: never."""
        return self.used + self.idle_ttl if self.idle_ttl else None


class Sessions:
    """All sessions of the server, at most `limit`; `idle_ttl` seconds is their default."""

    def __init__(self, limit: int, idle_ttl: float, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.ended: Counter[str] = Counter({"deleted": 0, "expired": 0})
        self._idle_ttl = idle_ttl
        self._clock = clock
        # In the order of names, so that a page of a listing can begin after any name.
        self._sessions: SortedDict[str, Session] = SortedDict()
        self._slabs: dict[ServedModel, StateSlabs] = {}
        self._counts: Counter[ServedModel] = Counter()
        # One entry a session that can expire, its time never later than the session's; entries
        # of sessions that were deleted stay behind until there are too many.
        self._expiries: list[tuple[float, str]] = []

    def count(self, model: ServedModel) -> int:
        """Sessions of one model."""
        return self._counts[model]

    def create(
        self, model: ServedModel, seed: int | None = None, idle_ttl: float | None = None
    ) -> Session:
        """A new session at the zero state; without a seed it gets a random one.

        Raises TooManySessions.
        """
        self.expire()
        while len(self._sessions) >= self.limit and self._is_any_due():
            self.expire()
        if len(self._sessions) >= self.limit:
            raise TooManySessions(self.limit)
        session = Session(
            f"sessions/{secrets.token_urlsafe(16)}",
            model,
            secrets.randbits(64) if seed is None else seed,
            self._idle_ttl if idle_ttl is None else idle_ttl,
            self._clock(),
        )
        self._sessions[session.name] = session
        self._counts[model] += 1
        if session.expires is not None:
            heapq.heappush(self._expiries, (session.expires, session.name))
        return session

    def get(self, name: str) -> Session:
        """The session of this name. Raises SessionNotFound."""
        session: Session | None = self._sessions.get(name)
        if session is None or self._is_over(session):
            raise SessionNotFound(name)
        return session

    def page(self, model: str, size: int, after: str) -> tuple[list[Session], str]:
        """Up to `size` sessions in the order of names, from behind the name `after`.

        `model` is a name, a name/version, or empty for all. Also the name to go on behind,
        empty at the end; a page may be short where many sessions do not match.
        """
        names = self._sessions.irange(minimum=after, inclusive=(False, True))
        page: list[Session] = []
        for looked, name in enumerate(names):
            if len(page) == size or looked == MAX_LOOKED_AT:
                return page, after
            session = self._sessions[name]
            matches = model in ("", session.model.name, session.model.label)
            if matches and not self._is_over(session):
                page.append(session)
            after = name
        return page, ""

    def fork(self, name: str, seed: int | None) -> Session:
        """A new session with the same past. Raises SessionNotFound, TooManySessions."""
        parent = self.get(name)
        past = self.checkpoint(parent)
        child = self.create(parent.model, parent.seed if seed is None else seed, parent.idle_ttl)
        self._replace(child, past)
        self.touch(parent)
        return child

    def delete(self, name: str) -> None:
        """End a session, and the turn it has under way. Raises SessionNotFound."""
        session = self.get(name)
        if session.holder is not None:
            session.holder()
        self._remove(session, "deleted")

    def hold(self, session: Session, end_turn: Callable[[], None]) -> None:
        """Begin a turn; `end_turn` is called if the session ends meanwhile.

        Raises SessionBusy.
        """
        if session.holder is not None:
            raise SessionBusy(session.name)
        session.holder = end_turn

    def release(self, session: Session) -> None:
        """End a turn, committed or not."""
        session.holder = None

    def checkpoint(self, session: Session) -> Checkpoint:
        """Where the session stands, apart from the session from now on."""
        state = None
        if session.slot is not None:
            state = self._slabs_of(session.model).read(session.slot)
        return Checkpoint(
            state, session.pending, session.position, session.partial, session.previous
        )

    def commit(self, session: Session, checkpoint: Checkpoint) -> None:
        """Move a session to where its turn ended. Raises SessionNotFound where it has ended."""
        if self._sessions.get(session.name) is not session:
            raise SessionNotFound(session.name)
        self._replace(session, checkpoint)
        session.used = self._clock()

    def touch(self, session: Session) -> None:
        """Count a read of the session's state as a use of it."""
        session.used = self._clock()

    def expire(self) -> None:
        """End sessions whose idle time is over; of very many, some."""
        now = self._clock()
        for _ in range(MAX_LOOKED_AT):
            if not self._is_any_due():
                return
            _, name = heapq.heappop(self._expiries)
            session: Session | None = self._sessions.get(name)
            if session is None or session.expires is None:
                continue
            if self._is_over(session):
                self._remove(session, "expired")
            else:
                # Past its time only while it is held: another look in a second.
                again = session.expires if session.expires > now else now + 1.0
                heapq.heappush(self._expiries, (again, name))

    def _is_any_due(self) -> bool:
        """Whether there is a session whose idle time may be over."""
        return bool(self._expiries) and self._expiries[0][0] <= self._clock()

    def _is_over(self, session: Session) -> bool:
        expires = session.expires
        return session.holder is None and expires is not None and expires <= self._clock()

    def _replace(self, session: Session, checkpoint: Checkpoint) -> None:
        if checkpoint.state is not None:
            slabs = self._slabs_of(session.model)
            if session.slot is None:
                session.slot = slabs.allocate()
            slabs.write(session.slot, checkpoint.state)
        session.position = checkpoint.position
        session.pending = checkpoint.pending
        session.partial = checkpoint.partial
        session.previous = checkpoint.previous

    def _remove(self, session: Session, reason: str) -> None:
        del self._sessions[session.name]
        self._counts[session.model] -= 1
        self.ended[reason] += 1
        if session.slot is not None:
            self._slabs_of(session.model).free(session.slot)
        if len(self._expiries) > 2 * len(self._sessions) + SPARE_EXPIRIES:
            self._expiries = [entry for entry in self._expiries if entry[1] in self._sessions]
            heapq.heapify(self._expiries)

    def _slabs_of(self, model: ServedModel) -> StateSlabs:
        return self._slabs.setdefault(model, StateSlabs(model.state_size))

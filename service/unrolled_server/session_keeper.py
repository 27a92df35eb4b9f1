"""All sessions of the server, wherever they are: what services and turns ask for them.

This is how they are kept in memory alone; `stored_keeper` keeps them in a store as well. Both run
in the event loop's thread, and a session that a method returns is in memory until the next await.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from unrolled_server.answers import Answer
from unrolled_server.errors import PositionMismatch, ServerError, SessionNotFound
from unrolled_server.models import ServedModel
from unrolled_server.session import Session
from unrolled_server.sessions import Sessions
from unrolled_server.standing import Change, Standing
from unrolled_server.store import Claim, StoreSpace, StoreStats
from unrolled_server.types import Durability, Past, SessionView


def check_position(session: Session, expected: int | None) -> None:
    """Raises PositionMismatch where the session is to stand somewhere else."""
    if expected is not None and expected != session.position:
        raise PositionMismatch(session.name, session.position, expected)


Check: TypeAlias = Callable[[Session], None]
"""Raises what keeps a session from being advanced."""


class SessionKeeper:
    """Sessions that live as long as the process."""

    durability = Durability.MEMORY

    def __init__(self, memory: Sessions) -> None:
        self.memory = memory

    @property
    def stats(self) -> StoreStats | None:
        """What the store counts; None: there is none."""
        return None

    @property
    def spilled(self) -> int:
        """Sessions that left memory to make room."""
        return 0

    def space(self) -> StoreSpace | None:
        """What the store takes of its volume; None: there is none, or nobody can tell."""
        return None

    def stored(self) -> Mapping[str, int]:
        """Sessions in the store by model, name/version."""
        return {}

    async def load(
        self, name: str, claim: Claim | None = None, check: Check | None = None
    ) -> Session:
        """The session of this name, with a claim if a turn is to advance it.

        Before a claim takes it from another server, whose turn on it ends then, `check` is called:
        what it raises is raised, and nothing is taken. Raises SessionNotFound.
        """
        return self.memory.get(name)

    async def create(
        self,
        model: ServedModel,
        seed: int | None = None,
        idle_ttl: float | None = None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session at the zero state. Raises TooManySessions."""
        return self.memory.create(model, seed, idle_ttl, undo=undo, max_age=max_age)

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
        """A new session that stands where another one stood. Raises TooManySessions."""
        return self.memory.restore(model, past, seed, idle_ttl, undo=undo, max_age=max_age)

    async def fork(self, name: str, seed: int | None) -> Session:
        """A new session with the same past. Raises SessionNotFound, TooManySessions."""
        return self.memory.fork(name, seed)

    async def delete(self, name: str) -> None:
        """End a session, and the turn it has under way. Raises SessionNotFound."""
        self.memory.delete(name)

    async def page(self, model: str, size: int, token: str) -> tuple[list[SessionView], str]:
        """Up to `size` sessions in the order of names; see `Sessions.page`."""
        page, after = self.memory.page(model, size, token)
        return [session.view for session in page], after

    async def commit(
        self, session: Session, past: Past, answer: Answer | None = None
    ) -> Durability:
        """Move a session that is held to where its turn ended; how durably, `durability` at least.

        Either it has moved when this returns, or nothing has changed. Cancelling the call
        does not stop it. Raises SessionNotFound where the session has ended.
        """
        return await self._move(session, self.memory.standing(session).after_turn(past, answer))

    async def change(
        self, name: str, expected_position: int | None, change: Change
    ) -> tuple[SessionView, Durability]:
        """Do to a session what is no turn, as atomically; how it is then, and how durably.

        Raises PositionMismatch, SessionBusy, and what `load`, `change` and `commit` do.
        """

        def check(session: Session) -> None:
            change(self.memory.standing(session))

        session = await self.load(name, Claim(expected_position), check)
        check_position(session, expected_position)
        self.hold(session, lambda: None)
        try:
            level = await self._move(session, change(self.memory.standing(session)))
        finally:
            self.release(session)
        return session.view, level

    async def _move(self, session: Session, standing: Standing) -> Durability:
        """Replace all that changes of a session that is held; see `commit`."""
        self.memory.move(session, standing)
        return self.durability

    def why_ended(self, name: str) -> ServerError:
        """What a turn fails with whose session ends now."""
        return SessionNotFound(name)

    async def is_reachable(self) -> bool:
        """Whether sessions can be got at; if not, that may be over soon."""
        return True

    def hold(self, session: Session, end_turn: Callable[[], None]) -> None:
        """Begin a turn; `end_turn` is called if the session ends meanwhile.

        Raises SessionBusy, SessionNotFound.
        """
        self.memory.hold(session, end_turn)

    def release(self, session: Session) -> None:
        """End a turn once its commit, if it came to that, is through."""
        self.memory.release(session)

    def touch(self, session: Session) -> None:
        """Count a read of the session's state as a use of it, if it has not ended."""
        self.memory.touch(session)

    async def expire(self) -> bool:
        """End sessions whose time is over; of very many, some: whether that may be so."""
        return self.memory.expire()

    async def close(self) -> None:
        """Finish what is under way; nothing is to be asked for any more."""

"""Turns of sessions in memory, without an engine."""

from __future__ import annotations

from unrolled_server.session import Session
from unrolled_server.sessions import Sessions
from unrolled_server.types import Past


def advance(sessions: Sessions, session: Session, past: Past) -> None:
    """A turn of the session ends there. Raises SessionNotFound where the session has ended."""
    sessions.move(session, sessions.standing(session).after_turn(past, None))

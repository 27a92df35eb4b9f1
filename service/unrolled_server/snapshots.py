"""Snapshots of sessions, sealed for their owners to keep, and sessions made of them again.

Whatever is wrong with a snapshot, its holder gets one answer: which check failed is nobody's
business who cannot make a snapshot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from unrolled_server.errors import InvalidField, SnapshotsDisabled
from unrolled_server.models import Models, ServedModel
from unrolled_server.sealing import OVERHEAD, BrokenSeal, Sealer
from unrolled_server.session import Session
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.snapshot_layout import (
    FORMAT,
    MAX_FACTS_BYTES,
    LayoutError,
    Snapshot,
    decode,
    encode,
)
from unrolled_server.tenants import tenant
from unrolled_server.text import partial_of
from unrolled_server.types import Past, SessionView

UNUSABLE = (
    "cannot be imported: it is damaged or no snapshot, has expired, is somebody else's, or was "
    "sealed with a key that this server lacks"
)


@dataclass(frozen=True, slots=True)
class Export:
    """A sealed snapshot, and what it is of."""

    sealed: bytes
    session: SessionView
    expires: float | None
    """Seconds since the epoch; None: never."""


class Snapshots:
    """Exports and imports sessions; without a sealer it refuses to."""

    def __init__(
        self,
        sessions: SessionKeeper,
        models: Models,
        sealer: Callable[[], Sealer | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`sealer`: the one that has the keys of now."""
        self._sessions = sessions
        self._models = models
        self._sealer = sealer
        self._clock = clock

    async def export(self, name: str, ttl: float | None) -> Export:
        """Seal where a session stands, to be imported within `ttl` seconds; None: at any time.

        Raises SnapshotsDisabled, and what `SessionKeeper.load` does.
        """
        sealer = self._needed_sealer()
        session = await self._sessions.load(name)
        expires = None if ttl is None else self._clock() + ttl
        snapshot = Snapshot(
            tenant.get(),
            session.model.label,
            session.model.fingerprint,
            math.inf if expires is None else expires,
            session.seed,
            self._sessions.memory.past(session),
        )
        self._sessions.touch(session)
        return Export(sealer.seal(FORMAT, encode(snapshot)), session.view, expires)

    async def restore(
        self,
        sealed: bytes,
        idle_ttl: float | None,
        *,
        undo: bool = False,
        max_age: float | None = None,
    ) -> Session:
        """A new session that stands where the exported one stood.

        Raises SnapshotsDisabled, InvalidField, ModelNotFound, TooManySessions.
        """
        snapshot = self._opened(self._needed_sealer(), sealed)
        model = self._models.with_fingerprint(snapshot.fingerprint, snapshot.model)
        if not _fits(snapshot.past, model):
            raise InvalidField("snapshot", UNUSABLE)
        past, seed = snapshot.past, snapshot.seed
        return await self._sessions.restore(model, past, seed, idle_ttl, undo=undo, max_age=max_age)

    def _needed_sealer(self) -> Sealer:
        sealer = self._sealer()
        if sealer is None:
            raise SnapshotsDisabled
        return sealer

    def _opened(self, sealer: Sealer, sealed: bytes) -> Snapshot:
        """What a snapshot says that may be imported now. Raises InvalidField."""
        if len(sealed) > self._largest():
            raise InvalidField("snapshot", UNUSABLE)
        try:
            snapshot = decode(sealer.open(FORMAT, sealed))
        except (BrokenSeal, LayoutError) as error:
            raise InvalidField("snapshot", UNUSABLE) from error
        if snapshot.tenant != tenant.get() or not self._clock() < snapshot.expires:
            raise InvalidField("snapshot", UNUSABLE)
        return snapshot

    def _largest(self) -> int:
        """Bytes of a sealed snapshot at most."""
        state_bytes = max((model.state_bytes for model in self._models.ready()), default=0)
        return len(FORMAT) + OVERHEAD + MAX_FACTS_BYTES + state_bytes


def _fits(past: Past, model: ServedModel) -> bool:
    """Whether a session of the model can stand there."""
    tokens = [token for token in (past.pending, past.previous) if token is not None]
    return (
        past.position >= 0
        and all(0 <= token < model.vocabulary.size for token in tokens)
        and partial_of(past.partial) == past.partial
        and (past.state is None or model.bears(past.state))
    )

"""One session in memory: its name, and where it lies, to be asked where it stands now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unrolled_server import checkpoints
from unrolled_server.checkpoints import Checkpoints
from unrolled_server.errors import SessionNotFound
from unrolled_server.models import ServedModel
from unrolled_server.records import NEVER, Block
from unrolled_server.types import SessionView


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
    all_checkpoints: Mapping[int, bytes] = field(compare=False, repr=False)
    """Of all sessions that have any, by row."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Where it can be taken back to."""
        self.living()
        return checkpoints.decode(self.all_checkpoints.get(self.row, b""))

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
        kept = self.checkpoints
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
            undo=kept.undo,
            checkpoints=kept.views,
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


def _time(end: float) -> float | None:
    """A time, None where that is never."""
    return None if end == NEVER else end

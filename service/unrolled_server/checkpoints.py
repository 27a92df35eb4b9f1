"""Where a session stood before: places that it can be taken back to.

What a session keeps is one `bytes`, empty where it keeps nothing and is not asked to; nothing
here knows where it lies. Tokens and states are as `layout_parts` has them.

    UNDO or NO_UNDO, then for each checkpoint, in the order of ids,
    HEADER, id, partial character, state
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unrolled_server.layout_parts import past_of, state_of, token_numbers
from unrolled_server.types import CheckpointView, Past

MAX_CHECKPOINTS = 16
"""Of a session, the place before its last turn not counted."""
LAST_TURN = ""
"""Stands for the name of the place before the last turn."""

UNDO, NO_UNDO = b"\1", b"\0"
HEADER = struct.Struct("<BBIQQii")
"""Bytes of the id, of the partial character and of the state; era; position; pending and
previous token."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where a session stood."""

    id: str
    """What its caller named it, or LAST_TURN."""
    era: int
    """The session's when it stood there."""
    past: Past


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """All that a session keeps of where it stood."""

    undo: bool = False
    """Whether each turn leaves one where it began."""
    all: tuple[Checkpoint, ...] = ()
    """In the order of ids."""

    @property
    def views(self) -> tuple[CheckpointView, ...]:
        """As callers see them."""
        return tuple(CheckpointView(one.id, one.past.position) for one in self.all)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another checkpoint."""
        return sum(one.id != LAST_TURN for one in self.all) >= MAX_CHECKPOINTS

    def find(self, id_: str) -> Checkpoint | None:
        """The checkpoint of this id; None: there is none."""
        return next((one for one in self.all if one.id == id_), None)

    def having(self, checkpoint: Checkpoint) -> Checkpoints:
        """With this checkpoint, in place of one of the same id."""
        others = self.without(checkpoint.id).all
        return replace(self, all=tuple(sorted((*others, checkpoint), key=lambda one: one.id)))

    def without(self, id_: str) -> Checkpoints:
        """Without the checkpoint of this id."""
        return replace(self, all=tuple(one for one in self.all if one.id != id_))


def encode(kept: Checkpoints) -> bytes:
    """Their bytes."""
    if not kept.undo and not kept.all:
        return b""
    return b"".join((UNDO if kept.undo else NO_UNDO, *map(_packed, kept.all)))


def decode(record: bytes) -> Checkpoints:
    """The checkpoints with these bytes. States are views of them."""
    return Checkpoints(record[:1] == UNDO, tuple(_read(record)))


def _packed(checkpoint: Checkpoint) -> bytes:
    past, id_ = checkpoint.past, checkpoint.id.encode()
    state = state_of(past)
    header = HEADER.pack(
        len(id_),
        len(past.partial),
        len(state),
        checkpoint.era,
        past.position,
        *token_numbers(past),
    )
    return b"".join((header, id_, past.partial, state))


def _read(record: bytes) -> Iterator[Checkpoint]:
    start = 1
    while start < len(record):
        header = HEADER.unpack_from(record, start)
        id_bytes, partial_bytes, state_bytes, era, position, *tokens = header
        partial_at = start + HEADER.size + id_bytes
        state_at = partial_at + partial_bytes
        id_ = record[start + HEADER.size : partial_at].decode()
        start = state_at + state_bytes
        past = past_of(record[state_at:start], tokens, position, record[partial_at:state_at])
        yield Checkpoint(id_, era, past)

"""Where a session stood before: places that it can be taken back to.

What a session keeps is one `bytes`, empty where it keeps nothing and is not asked to; nothing
here knows where it lies. Tokens and states are as `layout_parts` has them.

    UNDO or NO_UNDO, then for each mark, in the order of ids,
    HEADER, id, partial character, state
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unrolled_server.layout_parts import past_of, state_of, token_numbers
from unrolled_server.types import Past, Place

MAX_CHECKPOINTS = 16
"""Of a session, the place before its last turn not counted."""
LAST_TURN = ""
"""Stands for the name of the place before the last turn."""

UNDO, NO_UNDO = b"\1", b"\0"
HEADER = struct.Struct("<BBIQQii")
"""Bytes of the id, of the partial character and of the state; era; position; pending and
previous token."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place where a session stood."""

    id: str
    """The checkpoint's, or LAST_TURN."""
    era: int
    """The session's when it stood there."""
    past: Past


@dataclass(frozen=True, slots=True)
class Marks:
    """All that a session keeps of where it stood."""

    undo: bool = False
    """Whether each turn leaves a mark of where it began."""
    all: tuple[Mark, ...] = ()
    """In the order of ids."""

    @property
    def places(self) -> tuple[Place, ...]:
        """As callers see them."""
        return tuple(Place(mark.id, mark.past.position) for mark in self.all)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another checkpoint."""
        return sum(mark.id != LAST_TURN for mark in self.all) >= MAX_CHECKPOINTS

    def find(self, id_: str) -> Mark | None:
        """The mark of this id; None: there is none."""
        return next((mark for mark in self.all if mark.id == id_), None)

    def having(self, mark: Mark) -> Marks:
        """With this mark, in place of one of the same id."""
        others = self.without(mark.id).all
        return replace(self, all=tuple(sorted((*others, mark), key=lambda one: one.id)))

    def without(self, id_: str) -> Marks:
        """Without the mark of this id."""
        return replace(self, all=tuple(mark for mark in self.all if mark.id != id_))


def encode(marks: Marks) -> bytes:
    """The marks' bytes."""
    if not marks.undo and not marks.all:
        return b""
    return b"".join((UNDO if marks.undo else NO_UNDO, *map(_packed, marks.all)))


def decode(record: bytes) -> Marks:
    """The marks with these bytes. States are views of them."""
    return Marks(record[:1] == UNDO, tuple(_marks(record)))


def _packed(mark: Mark) -> bytes:
    past, id_ = mark.past, mark.id.encode()
    state = state_of(past)
    header = HEADER.pack(
        len(id_),
        len(past.partial),
        len(state),
        mark.era,
        past.position,
        *token_numbers(past),
    )
    return b"".join((header, id_, past.partial, state))


def _marks(record: bytes) -> Iterator[Mark]:
    start = 1
    while start < len(record):
        header = HEADER.unpack_from(record, start)
        id_bytes, partial_bytes, state_bytes, era, position, *tokens = header
        partial_at = start + HEADER.size + id_bytes
        state_at = partial_at + partial_bytes
        id_ = record[start + HEADER.size : partial_at].decode()
        start = state_at + state_bytes
        past = past_of(record[state_at:start], tokens, position, record[partial_at:state_at])
        yield Mark(id_, era, past)

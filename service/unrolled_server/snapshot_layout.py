"""What a snapshot says of a session, and its bytes.

FACTS, then three texts, each behind its length in two bytes, then the state as float32, nothing
of it where it is still what it is before any token. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unrolled_server.checkpoint_parts import checkpoint, state_of, tokens_of
from unrolled_server.types import Checkpoint

FORMAT = b"unrolled snapshot 1\n"
"""What a snapshot begins with, in the clear. Another layout gets another number."""
FACTS = struct.Struct("<32sdQqii")
"""Fingerprint; expiry; seed; position; pending and previous token."""
LENGTH = struct.Struct("<H")
MAX_FACTS_BYTES = 1000
"""All but the state, at most: a model's name is the name of a folder."""


class LayoutError(Exception):
    """These bytes are no snapshot."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session at rest, and who may import it until when."""

    tenant: str
    model: str
    """name/version"""
    fingerprint: str
    """64 lower-case hexadecimal digits."""
    expires: float
    """Seconds since the epoch; infinity: never."""
    seed: int
    past: Checkpoint


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot's bytes."""
    past = snapshot.past
    facts = FACTS.pack(
        bytes.fromhex(snapshot.fingerprint),
        snapshot.expires,
        snapshot.seed,
        past.position,
        *tokens_of(past),
    )
    texts = (snapshot.tenant.encode(), snapshot.model.encode(), past.partial)
    return facts + b"".join(LENGTH.pack(len(text)) + text for text in texts) + state_of(past)


def decode(body: bytes) -> Snapshot:
    """The snapshot with these bytes; its values are not checked. Raises LayoutError."""
    try:
        fingerprint, expires, seed, position, *tokens = FACTS.unpack_from(body)
        tenant, at = _text(body, FACTS.size)
        model, at = _text(body, at)
        partial, at = _text(body, at)
        past = checkpoint(body[at:], tokens, position, partial)
        return Snapshot(tenant.decode(), model.decode(), fingerprint.hex(), expires, seed, past)
    except (struct.error, ValueError) as error:
        raise LayoutError from error


def _text(body: bytes, at: int) -> tuple[bytes, int]:
    """The text that begins here, and where it ends. Raises struct.error, ValueError."""
    (length,) = LENGTH.unpack_from(body, at)
    start = at + LENGTH.size
    end = start + length
    if end > len(body):
        raise ValueError("ends within a text")
    return body[start:end], end

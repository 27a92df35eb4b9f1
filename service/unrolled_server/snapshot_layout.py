"""What a snapshot says of a session, and its bytes.

FACTS, then three texts, then the state, all as `layout_parts` has them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unrolled_server.layout_parts import packed_text, past_of, state_of, text_at, token_numbers
from unrolled_server.types import Past

FORMAT = b"unrolled snapshot 1\n"
"""What a snapshot begins with, in the clear. Another layout gets another number."""
FACTS = struct.Struct("<32sdQqii")
"""Fingerprint; expiry; seed; position; pending and previous token."""
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
    past: Past


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot's bytes."""
    past = snapshot.past
    facts = FACTS.pack(
        bytes.fromhex(snapshot.fingerprint),
        snapshot.expires,
        snapshot.seed,
        past.position,
        *token_numbers(past),
    )
    texts = (snapshot.tenant.encode(), snapshot.model.encode(), past.partial)
    return b"".join((facts, *map(packed_text, texts), state_of(past)))


def decode(body: bytes) -> Snapshot:
    """The snapshot with these bytes; its values are not checked. Raises LayoutError."""
    try:
        fingerprint, expires, seed, position, *tokens = FACTS.unpack_from(body)
        tenant, at = text_at(body, FACTS.size)
        model, at = text_at(body, at)
        partial, at = text_at(body, at)
        past = past_of(body[at:], tokens, position, partial)
        return Snapshot(tenant.decode(), model.decode(), fingerprint.hex(), expires, seed, past)
    except (struct.error, ValueError) as error:
        raise LayoutError from error

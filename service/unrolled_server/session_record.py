"""What a store keeps of a session, and its bytes.

Two parts, so that a listing reads no states: facts, which say what the session is and hold a
digest of the other part, and the body, which holds what its next turn starts from. Facts end
with a digest of themselves. Texts, tokens and states are as `layout_parts` has them.

    facts   FACTS, tenant and model, for each checkpoint its POSITION and id, digest
    body    BODY, partial character, recorded answers, checkpoints, state
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from unrolled_server.layout_parts import packed_text, past_of, state_of, text_at, token_numbers
from unrolled_server.session_names import ID_BYTES, name_of, session_id
from unrolled_server.types import CheckpointView, Past

VERSION = 2
DIGEST_BYTES = 16
FACTS = struct.Struct(f"<B{ID_BYTES}s32sQQQqIddd{DIGEST_BYTES}s?Bd")
"""Version; ID; fingerprint; epoch; era; seed; position; numbers of a state; created, used,
idle TTL; digest of the body; whether it keeps the place before its last turn; how many places
there are; latest end."""
POSITION = struct.Struct("<Q")
BODY = struct.Struct("<iiHII")
"""Pending and previous token; bytes of the partial character, the answers and the checkpoints."""


class RecordDamaged(Exception):
    """These bytes are not what was written."""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as a listing shows it."""

    name: str
    """sessions/ID"""
    tenant: str
    model: str
    """name/version"""
    fingerprint: str
    """64 lower-case hexadecimal digits."""
    epoch: int
    """Goes up whenever another server takes the session over."""
    era: int
    """Goes up with every commit that does not move it on: (era, position) grows with each."""
    seed: int
    position: int
    state_size: int
    """Numbers of a state of the model."""
    created: float
    """Seconds since the epoch."""
    used: float
    """Seconds since the epoch."""
    idle_ttl: float
    """Seconds; 0: it never expires."""
    undo: bool = False
    """Whether it keeps where it stood before its last turn."""
    checkpoints: tuple[CheckpointView, ...] = ()
    latest: float = math.inf
    """When it ends however it is used, in seconds since the epoch; infinity: use keeps it."""

    @property
    def ends(self) -> float | None:
        """Seconds since the epoch; None: it never expires."""
        end = min(self.used + self.idle_ttl if self.idle_ttl else math.inf, self.latest)
        return None if end == math.inf else end

    def is_over(self, now: float) -> bool:
        """Whether its time is over."""
        return self.ends is not None and self.ends <= now


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """All of a session."""

    facts: SessionFacts
    past: Past
    answers: bytes
    """As `answers` has them."""
    checkpoints: bytes = b""
    """As `checkpoints` has them."""


def encode(record: SessionRecord) -> tuple[bytes, bytes]:
    """The record's facts and body."""
    past = record.past
    head = BODY.pack(
        *token_numbers(past),
        len(past.partial),
        len(record.answers),
        len(record.checkpoints),
    )
    body = b"".join((head, past.partial, record.answers, record.checkpoints, state_of(past)))
    return _facts(record.facts, _digest(body)), body


def decode(facts: bytes, body: bytes) -> SessionRecord:
    """The record with these bytes. Raises RecordDamaged."""
    known, digest = _read(facts)
    if _digest(body) != digest:
        raise RecordDamaged("the body is not what its digest says")
    *tokens, partial_bytes, answers_bytes, checkpoint_bytes = BODY.unpack_from(body)
    answers_at = BODY.size + partial_bytes
    checkpoints_at = answers_at + answers_bytes
    state_at = checkpoints_at + checkpoint_bytes
    past = past_of(body[state_at:], tokens, known.position, body[BODY.size : answers_at])
    return SessionRecord(
        known, past, body[answers_at:checkpoints_at], body[checkpoints_at:state_at]
    )


def decode_facts(facts: bytes) -> SessionFacts:
    """What these facts say. Raises RecordDamaged."""
    return _read(facts)[0]


def with_use(facts: bytes, used: float) -> tuple[bytes, SessionFacts]:
    """The same facts of a session that was used then, if it was not later. Raises RecordDamaged."""
    known, digest = _read(facts)
    known = replace(known, used=max(known.used, used))
    return _facts(known, digest), known


def _facts(facts: SessionFacts, body_digest: bytes) -> bytes:
    head = FACTS.pack(
        VERSION,
        session_id(facts.name),
        bytes.fromhex(facts.fingerprint),
        facts.epoch,
        facts.era,
        facts.seed,
        facts.position,
        facts.state_size,
        facts.created,
        facts.used,
        facts.idle_ttl,
        body_digest,
        facts.undo,
        len(facts.checkpoints),
        facts.latest,
    )
    owner = packed_text(facts.tenant.encode()), packed_text(facts.model.encode())
    places = (
        POSITION.pack(each.position) + packed_text(each.id.encode()) for each in facts.checkpoints
    )
    whole = b"".join((head, *owner, *places))
    return whole + _digest(whole)


def _read(facts: bytes) -> tuple[SessionFacts, bytes]:
    """What facts say, and the digest of their body. Raises RecordDamaged."""
    whole, digest = facts[:-DIGEST_BYTES], facts[-DIGEST_BYTES:]
    if not whole or _digest(whole) != digest:
        raise RecordDamaged("the facts are not what their digest says")
    if whole[0] != VERSION:
        raise RecordDamaged(f"version {whole[0]} of the layout is unknown")
    _, id_, fingerprint, epoch, era, seed, position, *rest = FACTS.unpack_from(whole)
    state_size, created, used, idle_ttl, body_digest, undo, count, latest = rest
    tenant, at = text_at(whole, FACTS.size)
    model, at = text_at(whole, at)
    known = SessionFacts(
        name_of(id_), tenant.decode(), model.decode(), fingerprint.hex(), epoch, era, seed,
        position, state_size, created, used, idle_ttl, undo, tuple(_checkpoints(whole, at, count)),
        latest,
    )  # fmt: skip
    return known, body_digest


def _checkpoints(whole: bytes, at: int, count: int) -> Iterator[CheckpointView]:
    """Those that begin here."""
    for _ in range(count):
        (position,) = POSITION.unpack_from(whole, at)
        id_, at = text_at(whole, at + POSITION.size)
        yield CheckpointView(id_.decode(), position)


def _digest(part: bytes) -> bytes:
    return blake2b(part, digest_size=DIGEST_BYTES).digest()

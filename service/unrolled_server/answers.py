"""Answers on record, so that a turn can be repeated without being run again.

What a session keeps is one `bytes`, oldest answer first; nothing here knows where it lies. A turn
whose answer has no room leaves its key alone: it is known to have been run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unrolled_server.errors import RequestIdReused
from unrolled_server.types import RequestKey

MAX_ANSWERS = 4
MAX_BYTES = 64 << 10
"""Of a session's answers together, their keys not counted."""

HEADER = struct.Struct("<H32sIIQQ")
"""Bytes of the request id, the payload's hash, bytes of `said` and of `outcome`, era, position;
id, `said` and `outcome` follow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a committed turn was answered, as serialised messages of the contract."""

    key: RequestKey
    said: bytes = b""
    """What came before the outcome; empty where nothing did."""
    outcome: bytes = b""
    """Empty where there was no room for the answer."""
    era: int = 0
    """The session's when the turn was committed."""
    position: int = 0
    """The session's after the turn."""

    @property
    def is_kept(self) -> bool:
        return bool(self.outcome)

    @property
    def size(self) -> int:
        """Bytes that count against MAX_BYTES."""
        return len(self.said) + len(self.outcome)


def with_answer(record: bytes, answer: Answer) -> bytes:
    """The record with one more answer: the newest stay, and where there is no room, their keys."""
    if answer.size > MAX_BYTES:
        answer = _key_alone(answer)
    answers = [*_answers(record), answer][-MAX_ANSWERS:]
    excess = sum(kept.size for kept in answers) - MAX_BYTES
    for place, kept in enumerate(answers):
        if excess <= 0:
            break
        excess -= kept.size
        answers[place] = _key_alone(kept)
    return b"".join(map(_packed, answers))


def committed_by(record: bytes, era: int, position: int) -> bytes:
    """The record without answers to turns that were committed later than this."""
    answers = _answers(record)
    stand = (one for one in answers if (one.era, one.position) <= (era, position))
    return b"".join(map(_packed, stand))


def find(record: bytes, key: RequestKey) -> Answer | None:
    """The answer to this request; None where its turn is not on record.

    Raises RequestIdReused where the id is that of another request.
    """
    for answer in _answers(record):
        if answer.key.request_id == key.request_id:
            if answer.key.payload != key.payload:
                raise RequestIdReused(key.request_id)
            return answer
    return None


def _key_alone(answer: Answer) -> Answer:
    return replace(answer, said=b"", outcome=b"")


def _packed(answer: Answer) -> bytes:
    request_id = answer.key.request_id.encode()
    sizes = len(answer.said), len(answer.outcome)
    committed = answer.era, answer.position
    header = HEADER.pack(len(request_id), answer.key.payload, *sizes, *committed)
    return header + request_id + answer.said + answer.outcome


def _answers(record: bytes) -> Iterator[Answer]:
    start = 0
    while start < len(record):
        id_bytes, payload, said, outcome, *committed = HEADER.unpack_from(record, start)
        id_start = start + HEADER.size
        said_start = id_start + id_bytes
        outcome_start = said_start + said
        start = outcome_start + outcome
        key = RequestKey(record[id_start:said_start].decode(), payload)
        parts = record[said_start:outcome_start], record[outcome_start:start]
        yield Answer(key, *parts, *committed)

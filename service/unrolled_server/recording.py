"""What a turn says, joined for its session's record; and what is on record, said again."""

from __future__ import annotations

from unrolled.v1 import completion_pb2

from unrolled_server.answers import MAX_BYTES, Answer
from unrolled_server.types import Outcome, RequestKey
from unrolled_server.wire import outcome_message

PART_HEADERS = 8
"""Bytes at most of the tags and lengths of a delta's text and token_ids, which two deltas joined
have once."""


class Recording:
    """The deltas of a turn, joined.

    Unless they are wanted whole, none are kept of a turn without a key, and no more once they are
    too large for a record.
    """

    def __init__(self, key: RequestKey | None, *, whole: bool = False) -> None:
        self._key = key
        self._whole = whole
        self._texts: list[str] = []
        self._said = completion_pb2.Delta()
        self._size = 0
        """Bytes of the deltas joined, at least."""

    def add(self, part: completion_pb2.Delta) -> None:
        """Take one delta."""
        if not self._whole and (self._key is None or self._size > MAX_BYTES):
            return
        self._size += max(len(part.token_ids), part.ByteSize() - PART_HEADERS)
        self._texts.append(part.text)
        self._said.token_ids.extend(part.token_ids)
        self._said.logprobs.extend(part.logprobs)

    def said(self) -> completion_pb2.Delta:
        """One delta in place of all."""
        self._said.text = "".join(self._texts)
        return self._said

    def answer(self, outcome: Outcome) -> Answer | None:
        """What goes on record when the turn ends so; None without a key."""
        if self._key is None:
            return None
        if self._size > MAX_BYTES:
            return Answer(self._key)
        said = self.said().SerializeToString()
        return Answer(self._key, said, outcome_message(outcome).SerializeToString())


def response(
    said: completion_pb2.Delta, outcome: completion_pb2.Outcome
) -> completion_pb2.CompleteResponse:
    """A completion as it is sent whole."""
    return completion_pb2.CompleteResponse(
        text=said.text, token_ids=said.token_ids, logprobs=said.logprobs, outcome=outcome
    )


def recorded_deltas(answer: Answer) -> list[completion_pb2.Delta]:
    """One delta in place of all that the turn said; none where it said nothing."""
    return [completion_pb2.Delta.FromString(answer.said)] if answer.said else []


def recorded_outcome(answer: Answer) -> completion_pb2.Outcome:
    """The outcome of a turn that was committed before."""
    outcome = completion_pb2.Outcome.FromString(answer.outcome)
    outcome.replayed = True
    return outcome


def recorded_response(answer: Answer) -> completion_pb2.CompleteResponse:
    """The whole of a completion that was committed before."""
    return response(completion_pb2.Delta.FromString(answer.said), recorded_outcome(answer))

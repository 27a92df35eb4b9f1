"""The log-probabilities of a told text, gathered into one answer."""

from __future__ import annotations

import math

from unrolled.v1 import completion_pb2

from unrolled_server.answers import Answer
from unrolled_server.types import Delta, Outcome, RequestKey
from unrolled_server.vocabulary import Vocabulary
from unrolled_server.wire import logprob_messages, outcome_message


class Scores:
    """Adds up deltas of a scoring turn; keeps the tokens only where they are wanted."""

    def __init__(self, wants_tokens: bool, key: RequestKey | None = None) -> None:
        self._wants_tokens = wants_tokens
        self._key = key
        self._response = completion_pb2.ScoreResponse()
        self._logprobs: list[float] = []

    def add(self, delta: Delta, vocabulary: Vocabulary) -> None:
        """Take one delta."""
        if delta.logprobs is None:
            return
        self._logprobs += delta.logprobs.chosen[~delta.logprobs.unset].tolist()
        if self._wants_tokens:
            messages = logprob_messages(delta.token_ids, delta.logprobs, vocabulary)
            self._response.tokens.extend(messages)

    def response(self, model: str) -> completion_pb2.ScoreResponse:
        """The answer; the total is in nats, over the tokens that something precedes."""
        # Rounded once, so that it does not depend on how the deltas were cut.
        self._response.total_logprob = math.fsum(self._logprobs)
        self._response.model = model
        return self._response

    def answer(self, outcome: Outcome) -> Answer | None:
        """What goes on record when the turn ends so; None without a key."""
        if self._key is None:
            return None
        said = self.response(outcome.model).SerializeToString()
        return Answer(self._key, said, outcome_message(outcome).SerializeToString())


def recorded_scores(answer: Answer) -> completion_pb2.ScoreResponse:
    """The scores of a turn that was committed before."""
    return completion_pb2.ScoreResponse.FromString(answer.said)

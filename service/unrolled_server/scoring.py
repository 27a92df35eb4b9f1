"""The log-probabilities of a told text, gathered into one answer."""

from __future__ import annotations

import numpy as np
from unrolled.v1 import completion_pb2

from unrolled_server.types import Delta
from unrolled_server.vocabulary import Vocabulary
from unrolled_server.wire import logprob_messages


class Scores:
    """Adds up deltas of a scoring turn; keeps the tokens only where they are wanted."""

    def __init__(self, wants_tokens: bool) -> None:
        self._wants_tokens = wants_tokens
        self._tokens: list[completion_pb2.TokenLogprob] = []
        self._total = 0.0

    def add(self, delta: Delta, vocabulary: Vocabulary) -> None:
        """Take one delta."""
        if delta.logprobs is None:
            return
        self._total += float(np.nansum(delta.logprobs.chosen, dtype=np.float64))
        if self._wants_tokens:
            self._tokens.extend(logprob_messages(delta.token_ids, delta.logprobs, vocabulary))

    def response(self, model: str) -> completion_pb2.ScoreResponse:
        """The answer; the total is in nats, over the tokens that something precedes."""
        return completion_pb2.ScoreResponse(
            tokens=self._tokens, total_logprob=self._total, model=model
        )

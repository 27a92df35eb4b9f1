"""Log-probabilities on their way from the runs that made them to the deltas that carry them."""

from __future__ import annotations

import numpy as np

from unrolled_server.types import Floats, Logprobs, Tokens


class LogprobTape:
    """Log-probabilities of one turn's tokens, first in first out.

    Beside each are the `top` likeliest, at most the whole vocabulary.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._parts: list[Logprobs] = []

    def record(self, tokens: list[int], logprobs: Floats) -> None:
        """Append N tokens and the distributions [N, V] that they were taken from."""
        places = np.arange(len(tokens))
        # A stable sort of the negated values puts the lower id first where two are equal.
        order = np.argsort(-logprobs, axis=1, kind="stable")[:, : self.top] if self.top else None
        ids = np.zeros((len(tokens), 0), np.int32) if order is None else order.astype(np.int32)
        chosen, top_logprobs = logprobs[places, tokens], logprobs[places[:, None], ids]
        unset = np.zeros(len(tokens), np.bool_)
        self._parts.append(Logprobs(chosen, unset, ids, top_logprobs))

    def record_first(self) -> None:
        """Append the token that nothing precedes."""
        ids = np.full((1, self.top), -1, np.int32)
        top = np.zeros((1, self.top), np.float32)
        self._parts.append(Logprobs(np.zeros(1, np.float32), np.ones(1, np.bool_), ids, top))

    def take(self, count: int) -> Logprobs:
        """Remove and return the first `count` tokens' log-probabilities."""
        chosen = np.concatenate([part.chosen for part in self._parts])
        unset = np.concatenate([part.unset for part in self._parts])
        ids: Tokens = np.concatenate([part.top_ids for part in self._parts])
        top = np.concatenate([part.top for part in self._parts])
        self._parts = [Logprobs(chosen[count:], unset[count:], ids[count:], top[count:])]
        return Logprobs(chosen[:count], unset[:count], ids[:count], top[:count])

"""Log-probabilities on their way from the runs that made them to the deltas that carry them."""

from __future__ import annotations

import numpy as np

from unrolled_server.types import Floats, Logprobs, Tokens

SORTED_WHOLE = 256
"""Tokens up to which it is faster to sort all of them than to look for the likeliest first."""


def likeliest(logprobs: Floats, top: int) -> Tokens:
    """Ids of the `top` likeliest tokens of N distributions, [N, top], the likeliest first.

    The lower id comes first where two are equal. logprobs: [N, V]; of a row with what is no
    number, the ids mean nothing.
    """
    count, size = logprobs.shape
    if not top:
        return np.zeros((count, 0), np.int32)
    if size <= SORTED_WHOLE:
        return np.argsort(-logprobs, axis=1, kind="stable")[:, :top].astype(np.int32)
    rows = [_likeliest(row, min(top, size)) for row in logprobs]
    return np.array(rows, np.int32).reshape(count, min(top, size))


def _likeliest(logprobs: Floats, top: int) -> Tokens:
    """Ids of the `top` likeliest of one distribution [V], without a sort of all."""
    worst = np.partition(logprobs, -top)[-top]
    # What is no number compares as neither less nor more, and is a candidate.
    candidates = np.flatnonzero(~(logprobs < worst))
    order = np.argsort(-logprobs[candidates], kind="stable")[:top]
    return candidates[order].astype(np.int32)


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
        ids = likeliest(logprobs, self.top)
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

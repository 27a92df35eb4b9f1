"""How well graphs predict a text: the usual figures, with the state carried from end to end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unrolled_export.encoding import Part
from unrolled_export.errors import TextError
from unrolled_export.reference import States, Tokens
from unrolled_export.runners import EngineRunner

LARGEST_RUN = 1 << 20
"""Log-probabilities that one run returns, at most."""
LONGEST_RUN = 128
"""Steps of one run, at most."""


@dataclass(frozen=True)
class Evaluation:
    """What a text costs a model. The first token, which nothing precedes, does not count."""

    tokens: int
    """Scored, at least 1."""
    characters: int
    """Of the whole text, at least 1."""
    nats: float
    """Minus the sum of the tokens' log-probabilities."""

    @property
    def nats_per_character(self) -> float:
        return self.nats / self.characters

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)

    @property
    def perplexity(self) -> float:
        """Of a token: the exponential of its mean cost in nats."""
        return math.exp(self.nats / self.tokens)


@dataclass(frozen=True)
class Comparison:
    """What a text costs each of several graphs of one model."""

    evaluations: tuple[Evaluation, ...]
    agreement: float
    """Share of the steps at which all graphs have the same likeliest token."""


def evaluate(engines: Sequence[EngineRunner], initial: States, parts: Iterator[Part]) -> Comparison:
    """Feed a text to every graph, from the states `initial` of one row.

    Raises TextError where the text has fewer than two tokens.
    """
    states = [dict(initial) for _ in engines]
    nats = np.zeros(len(engines))
    steps = agreed = characters = 0
    for window, count in _windows(parts):
        characters += count
        choices = []
        for index, engine in enumerate(engines):
            for start, stop in _runs(window, engine.vocabulary_size):
                logprobs, states[index] = engine.advance(window[:, start : stop + 1], states[index])
                told = window[0, start + 1 : stop + 1, None]
                nats[index] -= np.take_along_axis(logprobs[0], told, 1).sum(dtype=np.float64)
                choices.append(logprobs[0].argmax(axis=1))
        length = window.shape[1] - 1
        by_engine = np.concatenate([np.zeros(0, int), *choices]).reshape(len(engines), length)
        agreed += int((by_engine == by_engine[0]).all(axis=0).sum())
        steps += length
    if not steps:
        raise TextError("the text is too short: two tokens are the least that can be evaluated")
    evaluations = tuple(Evaluation(steps, characters, float(total)) for total in nats)
    return Comparison(evaluations, agreed / steps)


def _windows(parts: Iterator[Part]) -> Iterator[tuple[Tokens, int]]:
    """Every part behind the last token before it, [1, T + 1], and its number of characters."""
    last = np.zeros(0, np.int64)
    for part in parts:
        ids = np.concatenate([last, part.ids])
        last = ids[-1:]
        if len(ids):
            yield ids[None], part.characters


def _runs(window: Tokens, vocabulary_size: int) -> Iterator[tuple[int, int]]:
    """First and last step (exclusive) of every run through a window of T steps."""
    steps = max(1, min(LONGEST_RUN, LARGEST_RUN // vocabulary_size))
    length = window.shape[1] - 1
    for start in range(0, length, steps):
        yield start, min(start + steps, length)

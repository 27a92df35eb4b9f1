"""The random numbers behind draws: token n of a sequence depends on (seed, n) alone.

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) is a
counter passed through a mixing function, so that any place of its stream costs the same.
A sequence's stream starts at its mixed seed, which keeps neighbouring seeds apart.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]
Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


def stream(seed: int) -> np.uint64:
    """Where the stream of a seed starts."""
    (start,) = _mixed(np.array([seed], np.uint64))
    return np.uint64(start)


def uniforms(starts: Words, positions: NDArray[np.int64], steps: int) -> Uniforms:
    """The numbers of the next `steps` tokens of B sequences at `positions` [B]: [K, B].

    Multiples of 2**-52 in [0, 1), from the streams that begin at `starts` [B]. 52 bits rather
    than 53: times the sum of a distribution, the largest still rounds to less than that sum.
    """
    # Words wrap around: (position + step) * gamma is the sum of the products.
    bits = _mixed(starts + positions.view(np.uint64) * _GAMMA + _steps(steps))
    bits >>= np.uint64(12)
    return np.multiply(bits, 2.0**-52, dtype=np.float64)


@lru_cache
def _steps(steps: int) -> Words:
    """What the next `steps` places add to a stream's counter, [K, 1]."""
    return np.arange(1, steps + 1, dtype=np.uint64)[:, None] * _GAMMA


def _mixed(words: Words) -> Words:
    """`words`, mixed in place."""
    for shift, factor in _MIXING:
        words ^= words >> shift
        words *= factor
    words ^= words >> _LAST_SHIFT
    return words

"""The random numbers behind draws: token n of a sequence depends on (seed, n) alone.

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) is a
counter passed through a mixing function, so that any place of its stream costs the same.
A sequence's stream starts at its mixed seed, which keeps neighbouring seeds apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]
Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stream(seed: int) -> np.uint64:
    """Where the stream of a seed starts."""
    (start,) = _mix(np.array([seed], np.uint64))
    return np.uint64(start)


def uniforms(starts: Words, positions: NDArray[np.int64], steps: int) -> Uniforms:
    """The numbers of the next `steps` tokens of B sequences at `positions` [B]: [K, B].

    Multiples of 2**-52 in [0, 1), from the streams that begin at `starts` [B]. 52 bits rather
    than 53: times the sum of a distribution, the largest still rounds to less than that sum.
    """
    places = positions.astype(np.uint64) + np.arange(1, steps + 1, dtype=np.uint64)[:, None]
    bits = _mix(starts + places * _GAMMA)
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed

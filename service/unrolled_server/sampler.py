"""The random numbers behind draws: token n of a sequence depends on (seed, n) alone.

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) is a
counter passed through a mixing function, so that any place of its stream costs the same.
A sequence's stream starts at its mixed seed, which keeps neighbouring seeds apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, first: int, count: int) -> Uniforms:
    """The numbers for tokens `first` to `first + count`, multiples of 2**-52 in [0, 1).

    52 bits rather than 53: times the sum of a distribution, the largest still rounds to
    less than that sum.
    """
    start = _mix(np.array([seed], np.uint64))
    places = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    bits = _mix(start + places * _GAMMA)
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed

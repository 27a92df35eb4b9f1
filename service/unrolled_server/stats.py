"""What a lane counts: written by its thread, read by the metrics endpoint."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

LATENCY = (
    20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
"""Bounds in seconds: a small model's step takes tens of microseconds."""

BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Tally:
    """A histogram that takes many equal observations at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value` `count` times."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def add(self, other: Tally) -> None:
        """Count what `other`, with the same bounds, has counted."""
        self._counts = [sum(both) for both in zip(self._counts, other._counts, strict=True)]
        self.sum += other.sum

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of upper bound and observations up to it, +Inf last, as Prometheus has them."""
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class Unasked(Tally):
    """A histogram that nobody reads: it stays empty."""

    def observe(self, value: float, count: int = 1) -> None:
        """Count nothing."""


class EngineStats:
    """Counters of one lane, or of several together."""

    def __init__(self, tally: Callable[[tuple[float, ...]], Tally] = Tally) -> None:
        """`tally`: what makes its histograms."""
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.active = 0
        self.waiting = 0
        self.parked = 0
        self.failures = 0
        self.first_token = tally(LATENCY)
        self.inter_token = tally(LATENCY)
        self.batch = tally(BATCH)
        self.parts = {part: tally(LATENCY) for part in ("run", "host", "delivery")}

    def add(self, other: EngineStats) -> None:
        """Count what `other` has counted."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            elif isinstance(value, Tally):
                mine.add(value)
        for part, tally in other.parts.items():
            self.parts[part].add(tally)


def total(each: Iterable[EngineStats]) -> EngineStats:
    """What several have counted together."""
    stats = EngineStats()
    for one in each:
        stats.add(one)
    return stats

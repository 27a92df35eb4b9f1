"""A histogram as Prometheus has it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Histogram:
    """How many observations were at most each bound; the last bound is infinite."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]

    @property
    def count(self) -> int:
        """Of all observations."""
        return int(self.cumulative[-1])

    def percentile(self, percentile: float) -> float:
        """As Prometheus' histogram_quantile: evenly spread within a bucket, at most the last bound.

        NaN without observations.
        """
        rank = self.count * percentile / 100
        buckets = pairwise((0.0, *self.bounds)), pairwise((0.0, *self.cumulative))
        for (low, high), (fewer, more) in zip(*buckets, strict=True):
            if more >= rank and more > fewer:
                share = (rank - fewer) / (more - fewer)
                return low if high == float("inf") else low + (high - low) * share
        return float("nan")


def histogram(page: str, name: str) -> Histogram:
    """The one histogram of this name on a page of metrics."""
    samples = [
        (float(sample.labels["le"]), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"{name}_bucket"
    ]
    bounds, cumulative = zip(*samples, strict=True)
    return Histogram(bounds, cumulative)

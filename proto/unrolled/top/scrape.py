"""Pages of a metrics endpoint: fetched, read, and one subtracted from another."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]

MAX_PAGE_BYTES = 16 * 1024 * 1024
_START = "process_start_time_seconds"
_OURS = "unrolled_sessions_limit"


class Unreachable(Exception):
    """There is no page of metrics at the URL; the message says why."""


@dataclass(frozen=True)
class Samples:
    """Values by name and labels."""

    values: Mapping[str, Mapping[Labels, float]]

    def series(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The series of a name that have these labels, each with all of its labels."""
        for key, value in self.values.get(name, {}).items():
            if labels.items() <= key:
                yield dict(key), value

    def total(self, name: str, **labels: str) -> float:
        """Their sum; 0 without any."""
        return sum(value for _, value in self.series(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Their sums by the values of one label."""
        sums: dict[str, float] = {}
        for key, value in self.series(name, **labels):
            sums[key.get(label, "")] = sums.get(key.get(label, ""), 0.0) + value
        return sums

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """A histogram: upper bounds, ascending, and how many observations are not above them."""
        counts = self.by("le", f"{name}_bucket", **labels)
        return sorted((float(bound), count) for bound, count in counts.items())


@dataclass(frozen=True)
class Scrape:
    """What a page said."""

    at: float
    """Seconds of a clock that only rises."""
    samples: Samples


def parse(page: str) -> Samples:
    """Read the text that Prometheus reads. Raises ValueError where it is none."""
    values: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            values.setdefault(sample.name, {})[labels] = float(sample.value)
    return Samples(values)


def difference(before: Samples, after: Samples) -> Samples:
    """What every counter and bucket rose by; of no meaning for gauges.

    As in Prometheus, one that fell began again at 0, and one that is new began there. A process
    with another time of start began with all of them at 0.
    """
    restarted = before.values.get(_START) != after.values.get(_START)
    known = {} if restarted else before.values
    return Samples(
        {
            name: {
                labels: _rise(known.get(name, {}).get(labels, 0.0), value)
                for labels, value in series.items()
            }
            for name, series in after.values.items()
        }
    )


def _rise(before: float, after: float) -> float:
    return after - before if after >= before else after


def fetch(url: str, timeout: float, clock: Callable[[], float] = time.monotonic) -> Scrape:
    """The page at `url`, within `timeout` seconds of silence. Raises Unreachable."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 - checked by the command
            page: bytes = answer.read(MAX_PAGE_BYTES)
        scrape = Scrape(clock(), parse(page.decode()))
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(f"{url} answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise Unreachable(f"{url}: {_reason(error.reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {_reason(error)}") from error
    except ValueError as error:
        raise Unreachable(f"{url} has no metrics in Prometheus' format") from error
    if _OURS not in scrape.samples.values:
        raise Unreachable(f"{url} has metrics, but not those of an unrolled server")
    return scrape


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

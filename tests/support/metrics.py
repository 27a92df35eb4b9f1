"""What a server's metrics endpoint says, and waiting until it says something."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

WAIT_SECONDS = 60.0


class Metrics:
    """The metrics of one server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def text(self) -> str:
        """The page as Prometheus gets it."""
        with urllib.request.urlopen(self._url, timeout=WAIT_SECONDS) as answer:  # noqa: S310
            page: bytes = answer.read()
        return page.decode()

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels; 0 without any."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Return once the metric has this value."""
        eventually(lambda: self.value(name, **labels) == value, f"{name}{labels} == {value}")


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition`, which asks a server, holds; fail where it does not come to."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {WAIT_SECONDS} s: {what}"

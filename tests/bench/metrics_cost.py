"""What metrics cost: a server that records them and is scraped, over one that does neither."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from support.server import RunningServer

from bench.figure import Bench, Figure, Group, Result
from bench.load import sample
from bench.progress import in_turns
from bench.rate import Rate
from bench.ratios import ratio
from bench.subjects import LARGE, load, serving

STREAMS = 64
TIMES = 4
"""Rounds as many, and each as many times as long, as of other figures: what is looked for is small,
and prompts are counted whole, so that what a short round counts depends on where it ends."""
SCRAPE_SECONDS = 1.0
LIKE_PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "Accept-Encoding": "gzip",
}

ON_OVER_OFF = Figure(
    "metrics_on_over_off_64",
    "ratio",
    f"served tokens per CPU-second at {STREAMS} streams, int8, "
    "metrics recorded and scraped every second over off",
    0.98,
    0.995,
)


def groups() -> Iterator[Group]:
    """The only one."""
    yield Group((ON_OVER_OFF,), _on_over_off)


def _on_over_off(bench: Bench) -> Iterator[Result]:
    """In int8: a token costs least there, and metrics most beside it.

    Each round has servers of its own: two processes of one program differ by several per cent for
    as long as they live, by where their memory lies.
    """
    models, seconds = bench.models.models(LARGE), TIMES * bench.settings.seconds

    def rate(server: RunningServer) -> Rate:
        turns = load(server, models.name("int8"), STREAMS)
        return bench.generator.run(sample, turns, seconds).rate

    def recorded_rate() -> Rate:
        with serving(models) as server, _scraped(server.metrics_url):
            return rate(server)

    def bare_rate() -> Rate:
        with serving(models, "--metrics-port", "off") as server:
            return rate(server)

    rounds = in_turns(
        "metrics on over off", TIMES * bench.settings.rounds, recorded_rate, bare_rate
    )
    yield ratio(
        ON_OVER_OFF,
        [recorded.per_cpu_second for recorded, _ in rounds],
        [bare.per_cpu_second for _, bare in rounds],
    )


@contextmanager
def _scraped(url: str) -> Iterator[None]:
    """While the block runs, the page is asked for as Prometheus does."""
    over = threading.Event()

    def scrape() -> None:
        request = urllib.request.Request(url, headers=LIKE_PROMETHEUS)  # noqa: S310 - our own server
        while not over.wait(SCRAPE_SECONDS):
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                answer.read()

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        try:
            yield
        finally:
            over.set()
        scraping.result()

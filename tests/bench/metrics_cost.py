"""What metrics cost: a server that records them and is scraped, over one that does neither."""

from __future__ import annotations

import statistics
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from support.server import RunningServer

from bench.figure import Bench, Figure, Group, Result
from bench.generator import Generator
from bench.load import Load, sample
from bench.models import Models
from bench.progress import say
from bench.ratios import ratio
from bench.subjects import LARGE, load, serving

STREAMS = 64
TIMES = 4
"""Rounds as many, each as many times as long as of other figures: a small thing is looked for."""
SIDES = ("on", "off")
FLAGS: Mapping[str, tuple[str, ...]] = {"on": (), "off": ("--metrics-port", "off")}
SCRAPE_SECONDS = 1.0
"""deploy/prometheus scrapes every 15."""
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
    """Both servers are under load at the same time, which costs them CPU time alike.

    From one quarter of a minute to the next, a server's tokens a CPU-second change by a tenth.
    Each round has servers of its own, for two processes of one program differ as well. In int8: a
    token costs least there, and metrics most beside it.
    """
    models, settings = bench.models.models(LARGE), bench.settings
    count, rounds = TIMES * settings.rounds, []
    with Generator() as other:
        for number in range(1, count + 1):
            say(f"metrics on over off: round {number} of {count}")
            order = SIDES if number % 2 else SIDES[::-1]
            with _servers(models, order) as servers:
                loads = [load(servers[side], models.name("int8"), STREAMS) for side in SIDES]
                seconds = TIMES * settings.seconds
                rounds.append(_rates((bench.generator, other), loads, seconds))
    on, off = zip(*rounds, strict=True)
    ratios = [one / without for one, without in rounds]
    mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / count**0.5
    yield ratio(ON_OVER_OFF, on, off, mean=round(mean, 4), standard_error=round(error, 4))


@contextmanager
def _servers(models: Models, order: Sequence[str]) -> Iterator[Mapping[str, RunningServer]]:
    """One of each side, started in this order; the one with metrics is scraped."""
    with ExitStack() as stack:
        servers = {side: stack.enter_context(serving(models, *FLAGS[side])) for side in order}
        stack.enter_context(_scraped(servers["on"].metrics_url))
        yield servers


def _rates(
    generators: Sequence[Generator], loads: Sequence[Load], seconds: float
) -> tuple[float, ...]:
    """Tokens a CPU-second of each server, all under load together."""
    with ThreadPoolExecutor(len(loads)) as pool:
        taken = pool.map(
            lambda generator, turns: generator.run(sample, turns, seconds), generators, loads
        )
        return tuple(one.rate.per_cpu_second for one in taken)


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

"""What durable sessions cost: turns in them over turns in sessions that memory alone has."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.metrics import Metrics
from support.programs import found
from support.redis import running_redis
from support.server import RunningServer

from bench.disk import Disk, disk
from bench.figure import Bench, Figure, Group, Result
from bench.histogram import Histogram, histogram
from bench.load import Load, sample
from bench.models import Recipe
from bench.progress import in_turns, say
from bench.rate import Sample
from bench.ratios import ratio
from bench.subjects import LARGE, SMALL, serving

STREAMS = 64
TOLD = DRAWN = 8
"""Of each turn: short ones, so that there are many commits."""
COMMIT = "unrolled_commit_duration_seconds"
STORES: Mapping[str, tuple[str, ...]] = {
    "sqlite": ("--store", "sqlite:{folder}/full.db"),
    "sqlite_normal": ("--store", "sqlite:{folder}/normal.db", "--store-sync", "normal"),
    # As `running_redis` starts it: on the same machine, and nothing goes to its disk.
    "redis": ("--store", "unix://{folder}/redis.sock?db=0"),
}
"""Flags of the servers that are compared with one that has memory alone."""


@dataclass(frozen=True)
class Figures:
    """Of one store and one size of state."""

    store: str
    turns: Figure
    commits: Mapping[int, Figure]
    """By percentile."""


def groups() -> Iterator[Group]:
    """One for each size of state."""
    for size, recipe in (("1k", SMALL), ("8k", LARGE)):
        figures = [_figures(store, size) for store in STORES]
        flat = [figure for of in figures for figure in (of.turns, *of.commits.values())]
        yield Group(tuple(flat), partial(_measure, figures, recipe))


def _figures(store: str, size: str) -> Figures:
    of = f"{STREAMS} streams of 16 tokens a turn, states of {size[:-1]} KB"
    return Figures(
        store,
        Figure(
            f"durable_turns_{store}_{size}", "ratio", f"turns a second, {store} over memory, {of}"
        ),
        {
            percentile: Figure(
                f"commit_p{percentile}_{store}_{size}",
                "ms",
                f"commit in {store}, {percentile}th percentile, {of}",
            )
            for percentile in (50, 99)
        },
    )


@dataclass(frozen=True)
class Served:
    """A server with one of the stores."""

    server: RunningServer
    load: Load

    def commits(self) -> Histogram:
        """Seconds of all its commits so far."""
        return histogram(Metrics(self.server.metrics_url).text(), COMMIT)


def _measure(figures: list[Figures], recipe: Recipe, bench: Bench) -> Iterator[Result]:
    models = bench.models.models(recipe)
    if found("redis-server") is None:
        say("redis-server is not installed: nothing is measured with it")
        figures = [of for of in figures if of.store != "redis"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(dir=bench.folder)))
        if any(of.store == "redis" for of in figures):
            stack.enter_context(running_redis(folder))

        def served(flags: tuple[str, ...]) -> Served:
            given = [flag.format(folder=folder) for flag in flags]
            server = stack.enter_context(serving(models, *given))
            return Served(
                server,
                Load(
                    server.address,
                    server.process.pid,
                    models.name("fp32"),
                    STREAMS,
                    told=TOLD,
                    drawn=DRAWN,
                ),
            )

        each = [served(()), *(served(STORES[of.store]) for of in figures)]
        rounds = in_turns(
            f"durable turns, {recipe.name}",
            bench.settings.rounds,
            *(partial(_sample, bench, one.load) for one in each),
        )
        commits, where = [one.commits() for one in each[1:]], disk(folder)
    memory, *others = ([one[place] for one in rounds] for place in range(len(each)))
    for of, samples, tally in zip(figures, others, commits, strict=True):
        yield from _results(of, memory, samples, tally, where)


def _sample(bench: Bench, load: Load) -> Sample:
    return bench.generator.run(sample, load, bench.settings.seconds)


def _results(
    figures: Figures, memory: list[Sample], stored: list[Sample], commits: Histogram, where: Disk
) -> Iterator[Result]:
    over, under = ([one.turns_per_second for one in side] for side in (stored, memory))
    ms = {
        f"turn_p{percentile}_ms": [
            round(1e3 * statistics.median(one.turn(percentile) for one in side), 2)
            for side in (stored, memory)
        ]
        for percentile in (50, 99)
    }
    yield ratio(figures.turns, over, under, disk=where.text, flush_ms=where.flush_ms, **ms)
    for percentile, figure in figures.commits.items():
        value = round(1e3 * commits.percentile(percentile), 3)
        detail = {"commits": commits.count, "disk": where.text, "flush_ms": where.flush_ms}
        yield Result(figure, value, detail)

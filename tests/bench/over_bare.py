"""Served tokens over those of the bare loop, by CPU time and by wall time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from support.server import RunningServer

from bench.bare import MEASURED_SECONDS, BareLoop, candidates, fastest
from bench.figure import Bench, Figure, Group, Result
from bench.load import sample
from bench.models import Models
from bench.progress import in_turns
from bench.rate import Rate, per_cpu_second, per_second
from bench.ratios import ratio
from bench.subjects import LARGE, load, serving

BY_CPU = "tokens per CPU-second of the server over the bare loop's"
BY_WALL = "tokens per second of wall time, served over the bare loop's"
ALSO_STREAMS = 8
"""In the detail of 256 streams."""


def groups() -> Iterator[Group]:
    """One for each precision and number of streams."""
    for precision, wall_reach, wall_goal in (("fp32", 0.80, 0.92), ("int8", 0.60, 0.85)):
        wall = _figure("wall_64", precision, BY_WALL, wall_reach, wall_goal)
        yield _group(precision, 64, 0.85, 0.95, wall)
        yield _group(precision, 1, 0.75, 0.90)
        yield _group(precision, 256, 0.85, 0.95)


def _group(
    precision: str, streams: int, reach: float, goal: float, wall: Figure | None = None
) -> Group:
    cpu = _figure(str(streams), precision, BY_CPU, reach, goal)
    figures = (cpu,) if wall is None else (cpu, wall)
    return Group(figures, partial(_measure, cpu, wall, precision, streams))


def _figure(name: str, precision: str, what: str, reach: float, goal: float) -> Figure:
    return Figure(f"served_over_bare_{name}_{precision}", "ratio", what, reach, goal)


@dataclass(frozen=True)
class Comparison:
    """The server and bare loops in their fastest settings, measured in turns."""

    loops: list[BareLoop]
    rounds: list[tuple[Rate, ...]]
    """Of the server, and of each loop."""

    def over_fastest(self, figure: Figure, speed: Callable[[Rate], float], **detail: Any) -> Result:
        """Tokens of the server over those of the loop that has most of them."""
        served, *bare = zip(*self.rounds, strict=True)
        loop, rates = fastest(list(zip(self.loops, bare, strict=True)), speed)
        over, under = [speed(rate) for rate in served], [speed(rate) for rate in rates]
        entropy = round(loop.entropy(), 2)
        return ratio(figure, over, under, bare=loop.name, entropy_nats=entropy, **detail)


def _measure(
    cpu: Figure, wall: Figure | None, precision: str, streams: int, bench: Bench
) -> Iterator[Result]:
    models = bench.models.models(LARGE)
    detail: dict[str, Any] = {}
    with serving(models) as server:
        comparison = _compare(bench, models, server, precision, streams)
        if streams == 256:
            also = _compare(bench, models, server, precision, ALSO_STREAMS)
            detail = {f"at_{ALSO_STREAMS}_streams": also.over_fastest(cpu, per_cpu_second).value}
    yield comparison.over_fastest(cpu, per_cpu_second, **detail)
    if wall is not None:
        yield comparison.over_fastest(wall, per_second)


def _compare(
    bench: Bench, models: Models, server: RunningServer, precision: str, streams: int
) -> Comparison:
    loops = candidates(models.version(precision), streams)
    turns, seconds = load(server, models.name(precision), streams), bench.settings.seconds
    rounds = in_turns(
        f"served over bare, {streams} streams, {precision}",
        bench.settings.rounds,
        lambda: bench.generator.run(sample, turns, seconds).rate,
        *(partial(loop.measure, min(seconds, MEASURED_SECONDS)) for loop in loops),
    )
    return Comparison(loops, rounds)

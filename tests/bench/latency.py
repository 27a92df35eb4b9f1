"""How long readers wait: time to first token, and between tokens."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.figure import Bench, Figure, Group, Result
from bench.load import sample
from bench.progress import in_turns
from bench.ratios import median
from bench.subjects import LARGE, load, serving

STREAMS = 64
PERCENTILES = (50, 99)


def groups() -> Iterator[Group]:
    """All of them at once."""
    yield Group((*FIRST.values(), *BETWEEN.values()), _measure)


def _figures(name: str, what: str) -> dict[int, Figure]:
    return {
        percentile: Figure(
            f"{name}_p{percentile}_{STREAMS}",
            "ms",
            f"{what}, {percentile}th percentile at {STREAMS} streams, fp32",
        )
        for percentile in PERCENTILES
    }


FIRST = _figures("ttft", "time to first token after 64 told")
BETWEEN = _figures("inter_token", "inter-token latency")


def _measure(bench: Bench) -> Iterator[Result]:
    models, settings = bench.models.models(LARGE), bench.settings
    with serving(models) as server:
        turns = load(server, models.name("fp32"), STREAMS)
        rounds = in_turns(
            "latency",
            settings.rounds,
            lambda: bench.generator.run(sample, turns, settings.seconds),
        )
    samples = [one for (one,) in rounds]
    for percentile in PERCENTILES:
        first = [1e3 * one.first_token(percentile) for one in samples]
        yield median(FIRST[percentile], first)
        between = [1e3 * one.inter_token(percentile) for one in samples]
        messages = [1e3 * one.between_messages(percentile) for one in samples]
        apart = round(statistics.median(messages), 3)
        yield median(BETWEEN[percentile], between, ms_between_messages=apart)

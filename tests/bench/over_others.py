"""Served tokens per second over those of another server, or in another precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.figure import Bench, Figure, Group, Result
from bench.load import Load, sample
from bench.naive_process import THREADS, running_naive
from bench.progress import in_turns
from bench.rate import Sample
from bench.ratios import ratio
from bench.subjects import LARGE, load, serving

STREAMS = 64
NAIVE_SECONDS = 4
"""Times as long, since it does so little in the time."""

OVER_NAIVE = Figure(
    "served_over_naive_64",
    "ratio",
    "tokens per second of wall time at 64 streams, fp32, over a naive PyTorch server's",
    25,
    60,
)
OVER_FP32 = Figure(
    "int8_over_fp32_64",
    "ratio",
    "served tokens per second of wall time at 64 streams, int8 over fp32",
    1.8,
    2.5,
)


def groups() -> Iterator[Group]:
    """One for each figure."""
    yield Group((OVER_NAIVE,), _over_naive)
    yield Group((OVER_FP32,), _int8_over_fp32)


def _over_naive(bench: Bench) -> Iterator[Result]:
    """The naive server feeds prompts a token at a time; in the detail also in one forward."""
    models, seconds = bench.models.models(LARGE), bench.settings.seconds
    checkpoint = models.checkpoint
    with (
        serving(models) as server,
        running_naive(checkpoint) as naive,
        running_naive(checkpoint, "--prompt-at-once") as at_once,
    ):
        served = load(server, models.name("fp32"), STREAMS)
        rounds = in_turns(
            "served over naive",
            bench.settings.rounds,
            lambda: bench.generator.run(sample, served, seconds),
            lambda: _sample_naive(bench, load(naive, "", STREAMS)),
            lambda: _sample_naive(bench, load(at_once, "", STREAMS)),
        )
    ours, other, whole = (
        [one.rate.per_second for one in side] for side in zip(*rounds, strict=True)
    )
    drawn = [one.drawn / one.rate.seconds for _, one, _ in rounds]
    yield ratio(
        OVER_NAIVE,
        ours,
        other,
        naive_drawn_per_second=round(sum(drawn) / len(drawn)),
        where_prompts_are_one_forward=ratio(OVER_NAIVE, ours, whole).value,
    )


def _sample_naive(bench: Bench, turns: Load) -> Sample:
    """It has no sessions; once a turn for each of its threads has ended, all are busy."""
    turns = replace(turns, in_sessions=False, warm_turns=THREADS)
    return bench.generator.run(sample, turns, NAIVE_SECONDS * bench.settings.seconds)


def _int8_over_fp32(bench: Bench) -> Iterator[Result]:
    models, seconds = bench.models.models(LARGE), bench.settings.seconds
    with serving(models) as server:
        int8, fp32 = (load(server, models.name(kind), STREAMS) for kind in ("int8", "fp32"))
        rounds = in_turns(
            "int8 over fp32",
            bench.settings.rounds,
            lambda: bench.generator.run(sample, int8, seconds).rate,
            lambda: bench.generator.run(sample, fp32, seconds).rate,
        )
    by_cpu = ratio(
        OVER_FP32,
        [one.per_cpu_second for one, _ in rounds],
        [two.per_cpu_second for _, two in rounds],
    )
    yield ratio(
        OVER_FP32,
        [one.per_second for one, _ in rounds],
        [two.per_second for _, two in rounds],
        by_cpu_time=by_cpu.value,
    )

"""Prompts of 100,000 characters: how fast they are fed, and what others see of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench.figure import Bench, Figure, Group, Result
from bench.load import feed, sample
from bench.progress import in_turns, say
from bench.ratios import median, ratio
from bench.subjects import LARGE, load, serving

STREAMS = 64
CHARACTERS = 100_000

BESIDE = Figure(
    "p99_beside_long_prompt",
    "ratio",
    f"99th percentile of inter-token latency at {STREAMS} streams, fp32, "
    "beside a prompt of 100,000 characters over without",
    1.5,
    1.1,
)
FED_ALONE = Figure("seconds_per_100k_fed_alone", "s", "100,000 characters told to an idle server")
FED_BESIDE = Figure(
    "seconds_per_100k_fed_beside_64", "s", "100,000 characters told beside 64 streams"
)


def groups() -> Iterator[Group]:
    """One for each figure."""
    yield Group((BESIDE,), _beside)
    yield Group((FED_ALONE,), partial(_fed, FED_ALONE, 0))
    yield Group((FED_BESIDE,), partial(_fed, FED_BESIDE, STREAMS))


def _beside(bench: Bench) -> Iterator[Result]:
    models, settings = bench.models.models(LARGE), bench.settings
    with serving(models) as server:
        turns = load(server, models.name("fp32"), STREAMS)
        rounds = in_turns(
            "inter-token latency beside a long prompt",
            settings.rounds,
            lambda: bench.generator.run(sample, turns, settings.seconds, fed_beside=CHARACTERS),
            lambda: bench.generator.run(sample, turns, settings.seconds),
        )
    messages = [beside.between_messages(99) / lone.between_messages(99) for beside, lone in rounds]
    yield ratio(
        BESIDE,
        [1e3 * beside.inter_token(99) for beside, _ in rounds],
        [1e3 * lone.inter_token(99) for _, lone in rounds],
        between_messages=round(statistics.median(messages), 4),
    )


def _fed(figure: Figure, streams: int, bench: Bench) -> Iterator[Result]:
    """Beside streams one round is enough: it lasts minutes."""
    models, settings = bench.models.models(LARGE), bench.settings
    characters = settings.prompt_characters
    say(f"{figure.name}: feeding {characters:,} characters a round")
    with serving(models) as server:
        turns = load(server, models.name("fp32"), streams)
        rounds = in_turns(
            figure.name,
            1 if streams else settings.rounds,
            lambda: bench.generator.run(feed, turns, characters),
        )
    seconds = [CHARACTERS / characters * one for (one,) in rounds]
    reduced = "" if characters == CHARACTERS else f"{characters:,} characters"
    yield replace(median(figure, seconds, characters=characters), reduced=reduced)

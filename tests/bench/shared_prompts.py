"""A prompt that begins as another one did, over one of which nothing is known."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from unrolled import AsyncClient

from bench.figure import Bench, Figure, Group, Result
from bench.load import PROMPT, long_prompt
from bench.progress import in_turns
from bench.ratios import median
from bench.subjects import LARGE, serving

CHARACTERS = 10_000

HIT_OVER_MISS = Figure(
    "ttft_shared_prompt_hit_over_miss",
    "ratio",
    f"time to first token, fp32: {CHARACTERS:,} characters told before and {len(PROMPT)} of one's "
    "own, over the same told for the first time",
    0.05,
    0.02,
)


def groups() -> Iterator[Group]:
    """One."""
    yield Group((HIT_OVER_MISS,), _measure)


def _measure(bench: Bench) -> Iterator[Result]:
    models, settings = bench.models.models(LARGE), bench.settings
    with serving(models) as server:
        rounds = in_turns(
            "time to first token of a shared prompt",
            settings.rounds,
            lambda: bench.generator.run(
                pairs, server.address, models.name("fp32"), settings.seconds
            ),
        )
    misses, hits = (
        1e3 * statistics.median(pair[place] for (each,) in rounds for pair in each)
        for place in (0, 1)
    )
    yield median(
        HIT_OVER_MISS,
        [statistics.median(hit / miss for miss, hit in each) for (each,) in rounds],
        pairs=sum(len(each) for (each,) in rounds),
        ms_of_a_miss=round(misses, 3),
        ms_of_a_hit=round(hits, 3),
    )


async def pairs(address: str, model: str, seconds: float) -> list[tuple[float, float]]:
    """Seconds to the first token of a new prompt and of one that begins so, for about `seconds`."""
    found: list[tuple[float, float]] = []
    async with AsyncClient(address) as client:
        end = time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            system = long_prompt(CHARACTERS)
            miss = await _first_token(client, model, system + PROMPT)
            found.append((miss, await _first_token(client, model, system + PROMPT[::-1])))
    return found


async def _first_token(client: AsyncClient, model: str, prompt: str) -> float:
    started = time.perf_counter()
    async with client.stream(prompt, model=model, max_tokens=1) as stream:
        async for delta in stream:
            if delta.token_ids:
                return time.perf_counter() - started
    raise RuntimeError("nothing was drawn")

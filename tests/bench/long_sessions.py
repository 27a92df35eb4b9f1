"""A turn far into a session over one near its beginning."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from unrolled import AsyncClient, AsyncSession

from bench.figure import Bench, Figure, Group, Result
from bench.load import DRAWN, PROMPT, long_prompt
from bench.progress import in_turns, say
from bench.ratios import median
from bench.subjects import TINY, serving

NEAR, FAR = 100, 1_000_000
LONGER = 3
"""Times as long as other measurements: what is looked for is a few per cent."""

LATE_TURN = Figure(
    "turn_at_1m_over_100",
    "ratio",
    "latency of a turn at position 1,000,000 over one at position 100",
    1.05,
    1.00,
)


def groups() -> Iterator[Group]:
    """One."""
    yield Group((LATE_TURN,), _measure)


def _measure(bench: Bench) -> Iterator[Result]:
    models, seconds = bench.models.models(TINY), LONGER * bench.settings.seconds
    with serving(models) as server:
        say(f"feeding {FAR:,} tokens to a session")
        near, far = (
            bench.generator.run(session_at, server.address, models.name("fp32"), position)
            for position in (NEAR, FAR)
        )
        rounds = in_turns(
            "turn at 1,000,000 over 100",
            bench.settings.rounds,
            lambda: bench.generator.run(turn_pairs, server.address, near, far, seconds),
        )
    early, late = (
        1e3 * statistics.median(pair[place] for (pairs,) in rounds for pair in pairs)
        for place in (0, 1)
    )
    yield median(
        LATE_TURN,
        [statistics.median(far / near for near, far in pairs) for (pairs,) in rounds],
        model=TINY.name,
        fed=f"{FAR:,} random characters in one prompt",
        of="turns of forks, 64 told and 128 drawn, in pairs one after the other",
        pairs=sum(len(pairs) for (pairs,) in rounds),
        ms_at_100=round(early, 3),
        ms_at_1m=round(late, 3),
    )


async def session_at(address: str, model: str, position: int) -> str:
    """The name of a new session that was told `position` characters."""
    async with AsyncClient(address) as client:
        session = await client.create_session(model)
        outcome = await session.feed(long_prompt(position))
        if outcome.position != position:
            raise RuntimeError(f"the session is at {outcome.position}, not at {position}")
        return session.name


async def turn_pairs(
    address: str, near: str, far: str, seconds: float
) -> list[tuple[float, float]]:
    """Seconds of a turn on a fork of each session, pair after pair, for about `seconds`."""
    pairs: list[tuple[float, float]] = []
    async with AsyncClient(address) as client:
        early, late = [await client.session(name) for name in (near, far)]
        end = time.perf_counter() + seconds
        while not pairs or time.perf_counter() < end:
            # Each comes first as often.
            pairs.append((await _turn(early), await _turn(late)))
            swapped = (await _turn(late), await _turn(early))
            pairs.append((swapped[1], swapped[0]))
    return pairs


async def _turn(session: AsyncSession) -> float:
    """Seconds of a turn, on a fork that is deleted after it."""
    async with session.fork() as fork:
        started = time.perf_counter()
        await fork.complete(PROMPT, max_tokens=DRAWN)
        return time.perf_counter() - started

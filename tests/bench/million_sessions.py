"""A million sessions in one process: made, spilled, and a sample of them continued."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from support.in_process import InProcess, fill, in_process
from support.oracle import Draw, LoneRun, LoneSequence
from unrolled_server.session_names import session_id

from bench.disk import disk
from bench.figure import Bench, Figure, Group, Result
from bench.models import CHARACTERS
from bench.progress import Counter, say
from bench.rate import resident_bytes
from bench.subjects import SMALL

FULL = 1_000_000
SHARE_IN_MEMORY = 10
"""One session of so many."""
SAMPLE = 1_000
PROMPT = "First Citizen:\n"
DRAWN = 16
NAME = "million_sessions"

WHAT = "a million sessions of 1 KB in one process, a tenth in memory, all in SQLite"
MADE = Figure(f"{NAME}_made", "1/s", f"{WHAT}: made with a turn of two tokens, a second")
RESIDENT = Figure(f"{NAME}_resident", "MB", f"{WHAT}: resident memory they take")
LOAD = Figure(f"{NAME}_load_p99", "ms", f"{WHAT}: loading a spilled one, 99th percentile")
TURN = Figure(f"{NAME}_turn_p99", "ms", f"{WHAT}: a turn of a spilled one, 99th percentile")


def groups() -> Iterator[Group]:
    """One, of a quarter of an hour."""
    yield Group((MADE, RESIDENT, LOAD, TURN), _measure, only_if_named=True)


@dataclass(frozen=True)
class Living:
    """What became of the sessions."""

    made_seconds: float
    resident_before: int
    resident_after: int
    """Bytes of the process, without sessions and with all."""
    store_bytes: int
    spilled: int
    loads: list[float]
    """Seconds, of the sessions of the sample that memory had not."""
    turns: list[float]
    """Seconds, of the same, the load not counted."""


def _measure(bench: Bench) -> Iterator[Result]:
    models, count = bench.models.models(SMALL), min(FULL, bench.settings.sessions)
    with TemporaryDirectory(dir=bench.folder) as folder:
        where = disk(Path(folder))
        name, version = models.name("fp32"), models.version("fp32")
        living = bench.generator.run(live, models.served, version, name, Path(folder), count)
    reduced = "" if count == FULL else f"{count:,} sessions"
    detail = {
        "sessions": count,
        "spilled": living.spilled,
        "resident_bytes_before": living.resident_before,
        "resident_bytes": living.resident_after,
        "store_bytes": living.store_bytes,
        "disk": where.text,
        "flush_ms": where.flush_ms,
        "sample": f"{SAMPLE:,} bit for bit as lone runs, {len(living.loads)} of them spilled",
    }
    mb = (living.resident_after - living.resident_before) / 1e6
    yield Result(MADE, round(count / living.made_seconds), detail, reduced=reduced)
    yield Result(RESIDENT, round(mb, 1), detail, reduced=reduced)
    for figure, seconds in ((LOAD, living.loads), (TURN, living.turns)):
        bars = {f"p{share}": _ms(seconds, share) for share in (50, 90)}
        yield Result(figure, _ms(seconds, 99), {**detail, "ms": bars}, bars, reduced)


def _ms(seconds: list[float], percentile: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percentile)), 3)


async def live(models: Path, version: Path, model: str, folder: Path, count: int) -> Living:
    """Make the sessions, each of a seed of its own, and continue a sample of them."""
    path, run = folder / "sessions.db", LoneRun(version)
    async with in_process(models, path, max(1, count // SHARE_IN_MEMORY)) as here:
        before, started = resident_bytes(os.getpid()), time.perf_counter()
        names = await fill(here, model, range(count), Counter(NAME, count).advance)
        made, after = time.perf_counter() - started, resident_bytes(os.getpid())
        spilled = here.sessions.memory.spilled
        say(f"{NAME}: continuing {SAMPLE:,}")
        loads, turns = [], []
        for seed in random.Random(1).sample(range(count), min(SAMPLE, count)):
            seconds = await _continue(here, names[seed], LoneSequence(run, seed, None))
            if seconds is not None:
                loads.append(seconds[0])
                turns.append(seconds[1])
    return Living(made, before, after, path.stat().st_size, spilled, loads, turns)


async def _continue(here: InProcess, name: str, lone: LoneSequence) -> tuple[float, float] | None:
    """Load a session and have it take a turn; seconds of both, None where memory had it.

    Raises ValueError where it draws anything but what an uninterrupted lone run does.
    """
    id_ = session_id(name)
    is_in_memory = id_ is not None and here.sessions.memory.has(id_)
    started = time.perf_counter()
    await here.sessions.load(name)
    loaded = time.perf_counter()
    drawn = await here.complete(name, PROMPT, DRAWN)
    ended = time.perf_counter()
    if drawn != _expected(lone):
        raise ValueError(f"session of seed {lone.seed}: not what a lone run draws")
    return None if is_in_memory else (loaded - started, ended - loaded)


def _expected(lone: LoneSequence) -> list[tuple[int, float]]:
    """Tokens and log-probabilities of the second turn."""
    lone.tell(CHARACTERS.index("a"))
    lone.draw(Draw())
    for character in PROMPT:
        lone.tell(CHARACTERS.index(character))
    return [lone.draw(Draw()) for _ in range(DRAWN)]

"""The server under load: streams of turns through gRPC. Runs in the load generator's process.

All streams share one connection. Their first turns are of staggered length, so that afterwards
turns end evenly over time and not all at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from unrolled import AsyncClient, AsyncSession

from bench.models import CHARACTERS
from bench.rate import Rate, Sample, cpu_seconds

PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak.\nAll:\n"[:64]
DRAWN = 128


@dataclass(frozen=True)
class Load:
    """`streams` clients that each take one turn after the other."""

    address: str
    pid: int
    """The server's process, whose CPU time is read."""
    model: str
    streams: int
    in_sessions: bool = True
    """Each stream carries its own session on; else every turn starts afresh."""
    warm_turns: int | None = None
    """Turns to end before anything is counted; None: one for each stream."""
    told: int = len(PROMPT)
    drawn: int = DRAWN


async def sample(load: Load, seconds: float, fed_beside: int = 0) -> Sample:
    """What the streams see in `seconds`.

    `fed_beside`: characters of a prompt that one more client sends as it begins, and again
    whenever it has been fed.
    """
    async with _running(load) as streams, AsyncClient(load.address) as client:
        await streams.until(streams.warm.wait())
        streams.forget()
        started, cpu = time.perf_counter(), cpu_seconds(load.pid)
        await streams.until(_feed_on(client, load.model, fed_beside), seconds)
        return streams.taken(time.perf_counter() - started, cpu_seconds(load.pid) - cpu)


async def feed(load: Load, characters: int) -> float:
    """Seconds that a session takes to be told a prompt, beside the streams of `load`."""
    async with _running(load) as streams, AsyncClient(load.address) as client:
        await streams.until(streams.warm.wait())
        async with client.create_session(load.model) as session:
            started = time.perf_counter()
            await streams.until(session.feed(long_prompt(characters)))
            return time.perf_counter() - started


def long_prompt(characters: int) -> str:
    """Random text of the models' vocabulary, each time another: the server remembers prompts."""
    return "".join(random.choices(CHARACTERS, k=characters))


class _Streams:
    """Takes turns, and notes what arrives."""

    def __init__(self, load: Load, client: AsyncClient) -> None:
        self.warm = asyncio.Event()
        self._load, self._client = load, client
        self._turns = 0
        self._turns_to_warm = load.streams if load.warm_turns is None else load.warm_turns
        self.forget()
        self.tasks = [asyncio.create_task(self._stream(place)) for place in range(load.streams)]
        if not self._turns_to_warm:
            self.warm.set()

    def forget(self) -> None:
        """Begin to count anew."""
        self._told = self._drawn = 0
        self._first_tokens: list[float] = []
        self._gaps: list[tuple[float, int]] = []
        self._turn_seconds: list[float] = []

    def taken(self, wall: float, cpu: float) -> Sample:
        """What was counted."""
        rate = Rate(self._told + self._drawn, wall, cpu)
        return Sample(rate, self._drawn, self._first_tokens, self._gaps, self._turn_seconds)

    async def until(self, other: Coroutine[Any, Any, Any], seconds: float | None = None) -> None:
        """Go on until `other` has ended or the time is up; raises where it or a stream fails."""
        ending = asyncio.create_task(other)
        tasks = [ending, *self.tasks]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await _cancel([ending])
        for task in done:
            task.result()

    async def _stream(self, place: int) -> None:
        session = None
        if self._load.in_sessions:
            session = await self._client.create_session(self._load.model)
        await self._turn(session, 1 + place * self._load.drawn // self._load.streams)
        while True:
            await self._turn(session, self._load.drawn)

    async def _turn(self, session: AsyncSession | None, drawn: int) -> None:
        started = before = time.perf_counter()
        is_first, prompt = True, PROMPT[: self._load.told]
        stream = (
            self._client.stream(prompt, model=self._load.model, max_tokens=drawn)
            if session is None
            else session.stream(prompt, max_tokens=drawn)
        )
        async with stream:
            async for delta in stream:
                now, count = time.perf_counter(), len(delta.token_ids)
                if is_first:
                    self._told += len(prompt)
                    self._first_tokens.append(now - before)
                elif count:
                    self._gaps.append((now - before, count))
                self._drawn += count
                before, is_first = now, False
        self._turn_seconds.append(time.perf_counter() - started)
        self._turns += 1
        if self._turns == self._turns_to_warm:
            self.warm.set()


@asynccontextmanager
async def _running(load: Load) -> AsyncIterator[_Streams]:
    async with AsyncClient(load.address) as client:
        streams = _Streams(load, client)
        try:
            yield streams
        finally:
            await _cancel(streams.tasks)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _feed_on(client: AsyncClient, model: str, characters: int) -> None:
    """Tell a session long prompts without end; waits where they have no characters."""
    if not characters:
        await asyncio.Event().wait()
    prompt = long_prompt(characters)
    async with client.create_session(model) as session:
        while True:
            await session.feed(prompt)

"""Outages: a store goes away under all streams, for a while, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.calls import SECONDS, AsyncStubs, async_connected, refusal_of
from support.server import RunningServer
from unrolled_server.health_checks import LIVENESS

from torture.stream import Stream


@dataclass(frozen=True)
class Absence:
    """A way for a store to be gone."""

    name: str
    leave: Callable[[], None]
    come_back: Callable[[], None]


@dataclass
class Outage:
    """What came of one."""

    absence: Absence
    seconds: float
    """That the store was gone, from when all had noticed; or a second less."""
    refusals: list[float] = field(default_factory=list)
    """Seconds after which turns that began meanwhile were refused."""
    ready_after: float = 0.0
    """Seconds from the store's return until the server called itself ready."""
    acknowledged: int = 0
    replayed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.absence.name} for {self.seconds:g} s: {len(self.refusals)} turns refused after"
            f" {max(self.refusals):.3f} s at most, ready {self.ready_after:.3f} s after its return,"
            f" {self.replayed:2} turns replayed, {self.acknowledged - self.replayed:4} taken"
        )


async def live_through(
    outage: Outage,
    server: RunningServer,
    streams: Sequence[Stream],
    under_load: asyncio.Event,
    turns: int,
) -> None:
    """Let the store go away once `under_load` is set; `turns` of each stream when it is back.

    Notes in `outage` what is seen. Raises AssertionError where the server is wrong.
    """
    async with (
        async_connected(server.address) as stubs,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        going_on = [asyncio.create_task(_unavailable(stream.go_on(stubs))) for stream in streams]
        loaded = asyncio.create_task(under_load.wait())
        done, _ = await asyncio.wait([loaded, *going_on], return_when=asyncio.FIRST_COMPLETED)
        for early in done - {loaded}:
            raise AssertionError(f"a turn was refused while there was a store: {early.result()}")
        await asyncio.to_thread(outage.absence.leave)
        await asyncio.gather(*going_on)
        await _readiness(channel, serves=False)
        over = time.perf_counter() + outage.seconds
        await asyncio.gather(*(_ask_in_vain(outage, stream, stubs, over) for stream in streams))
        assert not await _serves(channel, ""), "the server calls itself ready without a store"
        assert await _serves(channel, LIVENESS), "the server does not call itself alive"
        await asyncio.to_thread(outage.absence.come_back)
        returned = time.perf_counter()
        await _readiness(channel, serves=True)
        outage.ready_after = time.perf_counter() - returned
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream.go_on(stubs, turns))


async def _ask_in_vain(outage: Outage, stream: Stream, stubs: AsyncStubs, over: float) -> None:
    """Ask for a turn at least once, and again whenever the server says that it might help."""
    while True:
        began = time.perf_counter()
        retry_after = await _unavailable(stream.ask_blindly(stubs))
        now = time.perf_counter()
        outage.refusals.append(now - began)
        if now + retry_after >= over:
            return
        await asyncio.sleep(retry_after)


async def _unavailable(asking: Coroutine[None, None, None]) -> float:
    """Wait until the server says that it has no store; seconds until it wants to be asked again."""
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE"), refusal
        assert refusal.retry_after is not None, refusal
        return refusal.retry_after
    raise AssertionError("a turn was acknowledged while there was no store")


async def _readiness(channel: grpc.aio.Channel, serves: bool) -> None:
    """Wait until the server says that it is to be asked, or not."""
    status = HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
    async for answer in _health(channel).Watch(HealthCheckRequest(), timeout=SECONDS):
        if answer.status == status:
            return
    raise AssertionError("the server tells no more of its health")


async def _serves(channel: grpc.aio.Channel, service: str) -> bool:
    answer = await _health(channel).Check(HealthCheckRequest(service=service), timeout=SECONDS)
    return bool(answer.status == HealthCheckResponse.SERVING)


def _health(channel: grpc.aio.Channel) -> Any:
    """Its published types know no methods."""
    return HealthStub(channel)

"""The server under load: streams of turns through gRPC, from this process."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from support.server import RunningServer
from unrolled import AsyncClient

from bench.rate import Rate

PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak.\nAll:\n"[:64]
DRAWN = 128


class ServedLoad:
    """`streams` clients that each take one turn after the other: 64 told, 128 drawn."""

    def __init__(self, server: RunningServer, model: str, streams: int) -> None:
        self._server, self._model, self._streams = server, model, streams

    def measure(self, seconds: float) -> Rate:
        """Keep all streams busy for about `seconds`; told and drawn tokens count alike."""
        return asyncio.run(self._measure(seconds))

    async def _measure(self, seconds: float) -> Rate:
        async with AsyncClient(self._server.address) as client:
            await self._turn(client)
            started, cpu = time.perf_counter(), self._cpu_seconds()
            counts = await asyncio.gather(
                *(self._stream(client, started + seconds) for _ in range(self._streams))
            )
            wall = time.perf_counter() - started
            return Rate(sum(counts), wall, self._cpu_seconds() - cpu)

    async def _stream(self, client: AsyncClient, end: float) -> int:
        tokens = 0
        while time.perf_counter() < end:
            tokens += await self._turn(client)
        return tokens

    async def _turn(self, client: AsyncClient) -> int:
        drawn = 0
        stream = client.stream(PROMPT, model=self._model, max_tokens=DRAWN)
        async for delta in stream:
            drawn += len(delta.token_ids)
        return len(PROMPT) + drawn

    def _cpu_seconds(self) -> float:
        """User and system time of the server's process (proc(5), fields 14 and 15)."""
        fields = Path(f"/proc/{self._server.process.pid}/stat").read_text().rsplit(")", 1)[1]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

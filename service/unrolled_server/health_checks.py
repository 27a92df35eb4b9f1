"""What health checks hear: whether the server serves, and that its process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from unrolled_server.models import Models
from unrolled_server.session_keeper import SessionKeeper

WATCH_SECONDS = 0.5
LIVENESS = "liveness"
"""A service for health checks alone, which serves for as long as the process does."""


class Servicer(health.HealthServicer):
    """The library's, with the List that it lacks, and watches that end."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()
        """Set once nobody is to be told of any more changes."""
        self._checks: dict[str, health_pb2.HealthCheckResponse] = {}

    async def set(self, service: str, status: Any) -> None:
        self._checks[service] = health_pb2.HealthCheckResponse(status=status)
        await super().set(service, status)

    async def List(self, request: Message, context: Any) -> Message:
        # The library's stubs lack it too.
        listed: Message = health_pb2.HealthListResponse(statuses=self._checks)  # type: ignore[attr-defined]
        return listed

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        tasks = {
            asyncio.ensure_future(super().Watch(request, context)),
            asyncio.ensure_future(self.over.wait()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()


class HealthChecks:
    """The state of all services, as grpc.health.v1 tells it."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = Servicer()
        self._is_ending = False
        self._services = services

    async def start(self, models: Models) -> None:
        """The server answers calls from now on."""
        await self.servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(any(models.ready()))

    async def set_ready(self, is_ready: bool) -> None:
        """Say whether calls are to be sent here; never again, once the server ends."""
        if self._is_ending and is_ready:
            return
        status = health_pb2.HealthCheckResponse
        for service in ("", *self._services):
            await self.servicer.set(service, status.SERVING if is_ready else status.NOT_SERVING)

    async def end(self) -> None:
        """The server takes no more turns."""
        self._is_ending = True
        await self.set_ready(False)

    def end_watches(self) -> None:
        """End the calls that are told of changes: they would keep the server from ending."""
        self.servicer.over.set()

    async def watch(self, sessions: SessionKeeper, models: Models) -> None:
        """Be ready only while sessions can be got at, for ever."""
        was_reachable = True
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            is_reachable = await sessions.is_reachable()
            if is_reachable != was_reachable:
                was_reachable = is_reachable
                await self.set_ready(is_reachable and any(models.ready()))

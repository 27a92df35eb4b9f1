"""Messages on their way to readers: a write that its reader does not take in time is given up."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import Message

from unrolled_server.errors import SlowReader

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Writer:
    """Writes messages, each within `timeout` seconds.

    A timer for every write would cost half as much as the write. All have the same time, so the
    one begun first is over first: a single timer that waits for that one does.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._begun: dict[asyncio.Task[Any], float] = {}
        """Of the writes under way, in this order, by the task that waits."""
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def write(self, context: Context, message: Message) -> None:
        """Write one message of a call; a task writes one at a time.

        Raises SlowReader, and CancelledError where the caller is gone.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a write outside any task")
        self._begun[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._look)
        try:
            await context.write(message)
        except asyncio.CancelledError as error:
            if task in self._late and not task.uncancel():
                raise SlowReader(self._timeout) from error
            raise
        except grpc.aio.InternalError as error:
            # The caller is gone, and the cancellation that says so is on its way.
            raise asyncio.CancelledError from error
        finally:
            del self._begun[task]
            self._late.discard(task)

    def _look(self) -> None:
        """Give up the writes whose time is over, and wait for the next."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, begun in self._begun.items():
            end = begun + self._timeout
            if end > loop.time():
                self._timer = loop.call_at(end, self._look)
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()

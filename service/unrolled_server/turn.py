"""A turn: the one object that the asyncio front and a lane's thread share.

The front makes it, the engine advances it and never touches `inbox`; messages come back in
batches through the event loop. Flags are set by one side and read by the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from unrolled_server.types import Delta, Ending, Past, Prefix, Sampling, Tokens


def _forget(_: Prefix) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Recall:
    """What is known of the beginning of what a task tells, and what is to be remembered of it."""

    known: Prefix | None = None
    """The longest that is known; None: everything is run."""
    marks: tuple[int, ...] = ()
    """Lengths, ascending and longer than `known`, of prefixes whose states are wanted."""
    remember: Callable[[Prefix], None] = _forget
    """Called in the event loop for each of `marks` that the turn has come to."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the engine is to do: tell `told`, then draw `max_tokens`."""

    start: Past
    told: Tokens
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None
    """Of drawn tokens, or of told ones where the task scores (never None then)."""
    scores: bool
    keeps_partial: bool
    """Whether another turn may complete a character that this one leaves unfinished."""
    recall: Recall = Recall()
    """Of `told`, where that is told to the empty state."""


class EngineFailure(Exception):
    """A run failed; the turn it was part of is lost, what it started from is not."""


class Turn:
    """One turn under way."""

    def __init__(self, task: Task, created: float | None = None) -> None:
        """`created`: when it was asked for, by time.perf_counter; None: now."""
        self.task = task
        self.created = time.perf_counter() if created is None else created
        self.joined: float | None = None
        """Set by the engine, by time.perf_counter, as what follows: when it got a row."""
        self.first_token: float | None = None
        """When the first tokens it drew left the engine."""
        self.newest_token: float | None = None
        """When the newest of them did."""
        self.cancelled = False
        """Set by the front: nobody waits for this turn any more."""
        self.stopping = False
        """Set by the front: draw no more, end with what there is."""
        self.taken = 0
        """Tokens that the front has taken out of the inbox."""
        self.parked = False
        """Set by the engine while the turn waits for its reader."""
        self._inbox: deque[Delta | Ending | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def receive(self, message: Delta | Ending | Exception | Prefix) -> None:
        """Called in the event loop for every message of the engine."""
        if isinstance(message, Prefix):
            self.task.recall.remember(message)
            return
        self._inbox.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_through(self) -> bool:
        """Whether its ending is in the inbox."""
        return any(isinstance(message, Ending) for message in self._inbox)

    async def next(self) -> Delta | Ending:
        """The next message; raises EngineFailure, or what else ended the turn."""
        while not self._inbox:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._inbox.popleft()
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Delta):
            self.taken += len(message.token_ids)
        return message

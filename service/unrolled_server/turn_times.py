"""When a turn came to what: for the log, where it was slow, and for traces.

Clock: time.perf_counter, in seconds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from unrolled_server.logs import log_event

logger = logging.getLogger(__name__)

MAX_LINES = 10
"""A second: an overloaded server's turns are all slow, and their lines would be its work."""


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """Of a turn that is over. None: it did not come to that."""

    model: str
    """name/version"""
    told: int
    max_tokens: int
    """That it was to draw at most."""
    drawn: int | None
    begun: float
    joined: float | None
    """It got a row in the batch."""
    first_token: float | None
    """The first one it drew left the engine."""
    ended: float | None
    """The engine was through with it."""
    over: float
    """It was committed, or given up."""

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """What it did, one after the other: name, begin and end."""
        # A turn that draws nothing is through when it is fed.
        fed = self.ended if self.first_token is None else self.first_token
        marks = (("wait", self.joined), ("feed", fed), ("draw", self.ended), ("commit", self.over))
        began = self.begun
        for name, mark in marks:
            ended = self.over if mark is None else mark
            if name != "draw" or self.first_token is not None:
                yield name, began, ended
            if mark is None:
                return
            began = ended


TurnWatcher: TypeAlias = Callable[[TurnTimes], None]
"""Called in the event loop, within the call, when a turn is over."""


class SlowTurns:
    """A TurnWatcher that logs turns whose first token, or whose commit, took longer than `seconds`.

    Of those that end within a second, MAX_LINES at most; the next line says how many had none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = -math.inf
        """When the second began in which `_logged` turns were logged."""
        self._logged = 0
        self._unlogged = 0

    def __call__(self, times: TurnTimes) -> None:
        taken = {name: ended - began for name, began, ended in times.phases()}
        # What only feeds or scores takes as long as its text.
        to_first_token = taken["wait"] + (taken.get("feed", 0.0) if times.max_tokens else 0.0)
        if max(to_first_token, taken.get("commit", 0.0)) <= self._seconds:
            return
        if times.over >= self._since + 1:
            self._since, self._logged = times.over, 0
        if self._logged == MAX_LINES:
            self._unlogged += 1
            return
        self._logged += 1
        facts = {"model": times.model, "told": times.told, "drawn": times.drawn}
        unlogged = {"unlogged": self._unlogged} if self._unlogged else {}
        self._unlogged = 0
        log_event(logger, logging.WARNING, "slow_turn", **facts, **taken, **unlogged)

"""When a turn came to what: for the log, where it was slow, and for traces.

Clock: time.perf_counter, in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from unrolled_server.logs import log_event

logger = logging.getLogger(__name__)


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


def slow_turns(seconds: float) -> TurnWatcher:
    """Logs turns whose first token, or whose commit, took longer than `seconds`."""

    def watch(times: TurnTimes) -> None:
        taken = {name: ended - began for name, began, ended in times.phases()}
        # What only feeds or scores takes as long as its text.
        to_first_token = taken["wait"] + (taken.get("feed", 0.0) if times.max_tokens else 0.0)
        if max(to_first_token, taken.get("commit", 0.0)) > seconds:
            facts = {"model": times.model, "told": times.told, "drawn": times.drawn}
            log_event(logger, logging.WARNING, "slow_turn", **facts, **taken)

    return watch

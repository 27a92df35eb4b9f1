"""What is going on, on the standard error stream: a measurement may take half an hour."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

EVERY_SECONDS = 10.0

_Measured = TypeVar("_Measured")


def say(text: str) -> None:
    """One line."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def in_turns(
    title: str, rounds: int, *measure: Callable[[], _Measured]
) -> list[tuple[_Measured, ...]]:
    """Measure all of `measure` in each round, every other round in reverse order.

    So what changes on the machine meanwhile meets all of them alike. One tuple a round, in
    the order of `measure`.
    """
    results = []
    for number in range(rounds):
        say(f"{title}: round {number + 1} of {rounds}")
        order = list(enumerate(measure))[:: 1 if number % 2 == 0 else -1]
        taken = {place: one() for place, one in order}
        results.append(tuple(taken[place] for place in range(len(measure))))
    return results


class Counter:
    """Counts towards `total` and says so from time to time."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._began = self._said = time.perf_counter()

    def advance(self) -> None:
        """One more."""
        self._done += 1
        now = time.perf_counter()
        if now - self._said < EVERY_SECONDS:
            return
        self._said = now
        rate = (self._done - self._first) / (now - self._began)
        left = (self._total - self._done) / rate
        say(f"{self._title}: {self._done:,} of {self._total:,}, {rate:,.0f}/s, {left:,.0f} s left")

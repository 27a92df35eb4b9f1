"""One page of metrics after another, through outages and restarts of the server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from unrolled.top.figures import Figures, figures
from unrolled.top.scrape import Scrape, Unreachable

HISTORY = 60
"""Figures kept for sparklines."""


@dataclass(frozen=True)
class Picture:
    """What is known after a look at the endpoint."""

    history: tuple[Figures, ...]
    """The newest last; none before the second page."""
    problem: str | None
    """Why this look brought nothing; then the history is of before."""


class Watch:
    """Looks at an endpoint whenever it is told to, and remembers."""

    def __init__(
        self, fetch: Callable[[], Scrape], wall_clock: Callable[[], float] = time.time
    ) -> None:
        """fetch: the page as it is now, or Unreachable. wall_clock: seconds since 1970."""
        self._fetch = fetch
        self._wall_clock = wall_clock
        self._last: Scrape | None = None
        self._history: deque[Figures] = deque(maxlen=HISTORY)

    def look(self) -> Picture:
        """Fetch one page."""
        try:
            page = self._fetch()
        except Unreachable as error:
            return Picture(tuple(self._history), str(error))
        if self._last is not None:
            self._history.append(figures(self._last, page, self._wall_clock()))
        self._last = page
        return Picture(tuple(self._history), None)

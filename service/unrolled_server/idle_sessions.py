"""Which sessions leave memory where others need room: the least recently used that are idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container

from unrolled_server.records import NONE, Records

MAX_FOUND = 4096
"""Sessions that one search finds at most."""


class IdleSessions:
    """Finds idle sessions many at a time, and hands them out one by one."""

    def __init__(self, records: Records, busy: Collection[int], awaited: Container[bytes]) -> None:
        """Sessions in the rows `busy`, or with the keys `awaited`, stay; both may change."""
        self._records = records
        self._busy = busy
        self._awaited = awaited
        # Rows, their generations and times of last use, the longest idle first.
        self._found: deque[tuple[int, int, float]] = deque()

    def first(self, limit: int) -> int | None:
        """The row of the session that was idle for longest; None: all are busy.

        Memory has `limit` sessions at most; one search finds a sixteenth of them or less.
        """
        if (row := self._next()) is None:
            most = min(MAX_FOUND, 1 + limit // 16)
            self._found.extend(self._records.oldest(most, self._busy))
            row = self._next()
        return row

    def _next(self) -> int | None:
        """The first of those found that still is idle."""
        while self._found:
            row, generation, used = self._found.popleft()
            block, index = self._records.find(row)
            is_same = (block.generations[index], block.used[index]) == (generation, used)
            is_wanted = row in self._busy or bytes(block.key(index)) in self._awaited
            if is_same and not is_wanted and block.models[index] != NONE:
                return row
        return None

"""Which rows run next, and for how many steps."""

from __future__ import annotations

from collections import deque

from unrolled_server.row import Row

MAX_STEPS = 8
"""Steps of a run at most: what a new turn may have to wait for."""

ROW_STEPS = 256
"""Steps times rows of a run at most, where that leaves more than one step."""

MAX_UNREAD = 1024
"""Tokens a reader may be behind before its row, where it draws, leaves the batch."""


class Scheduler:
    """Owns the order of rows: waiting, active (a dense prefix of places), parked."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.active: list[Row] = []
        """Rows in the batch; a row's index is its place."""
        self.waiting: deque[Row] = deque()
        self.parked: list[Row] = []
        """Rows whose readers are behind."""

    def add(self, row: Row) -> None:
        """Put a row at the end of those that wait for a place."""
        self.waiting.append(row)

    def drop_cancelled(self) -> None:
        """Forget the waiting rows whose turns are over: they need no place to end."""
        self.waiting = deque(row for row in self.waiting if not row.turn.cancelled)

    def next_joining(self) -> Row | None:
        """The row that takes the next free place; None where there is no row or no place."""
        if len(self.active) == self.capacity or not self.waiting:
            return None
        row = self.waiting.popleft()
        self.active.append(row)
        return row

    def leave(self, place: int) -> int:
        """Free a place; the row at the last place, whose number is returned, moves there."""
        last = len(self.active) - 1
        self.active[place] = self.active[last]
        self.active.pop()
        return last

    def is_behind(self, row: Row) -> bool:
        """Whether a row's reader is so far behind that drawing more has no use."""
        turn = row.turn
        is_over = turn.stopping or turn.cancelled
        return row.drawing and row.unread > MAX_UNREAD and not is_over

    def park(self, row: Row) -> None:
        """Keep a row out of the batch until its reader has caught up."""
        # The flag first, then a fresh look by unpark: the front reads tokens first and the
        # flag then, so that one of the two sides sees the other.
        row.turn.parked = True
        self.parked.append(row)

    def unpark(self) -> None:
        """Rows whose readers have caught up wait for a place again, those that stop first."""
        still = []
        for row in self.parked:
            if row.turn.cancelled:
                continue
            if row.turn.stopping:
                self.waiting.appendleft(row)
            elif 2 * row.unread <= MAX_UNREAD:
                self.waiting.append(row)
            else:
                still.append(row)
                continue
            row.turn.parked = False
        self.parked = still

    def steps(self) -> int:
        """Steps of the next run: no row ends inside it, but for the sake of its text."""
        least = min(row.steps_left for row in self.active)
        return min(MAX_STEPS, max(1, ROW_STEPS // len(self.active)), least)

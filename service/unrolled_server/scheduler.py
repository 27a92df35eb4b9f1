"""Which rows run next, and for how many steps at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock

from unrolled_server.row import Row

FULL = 16
"""Turns that one lane has before the next gets any: products of few rows cost more per row."""

MAX_UNREAD = 1024
"""Tokens a reader may be behind before its row, where it draws, leaves the batch."""


class Waiting:
    """Rows that wait for a place, in order; any lane may take the first."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Put a row at the end."""
        with self._lock:
            self._rows.append(row)

    def add_first(self, row: Row) -> None:
        """Put a row before all others."""
        with self._lock:
            self._rows.appendleft(row)

    def take(self) -> Row | None:
        """The first row, which waits here no more; None where none does."""
        with self._lock:
            return self._rows.popleft() if self._rows else None

    def drop_cancelled(self) -> None:
        """Forget the rows whose turns are over: they need no place to end."""
        with self._lock:
            self._rows = deque(row for row in self._rows if not row.turn.cancelled)


class Scheduler:
    """Owns the order of rows: waiting, active (a dense prefix of places), parked."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.active: list[Row] = []
        """Rows in the batch; a row's index is its place."""
        self.waiting = Waiting()
        self.parked: list[Row] = []
        """Rows whose readers are behind."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run; parked rows wait for a nudge."""
        return not self.active and not self.waiting

    @property
    def is_full(self) -> bool:
        """Whether all places are taken."""
        return len(self.active) == self.capacity

    def next_joining(self, others: Iterable[Waiting] = ()) -> Row | None:
        """The row that takes the next free place, of its own or else of others that wait.

        None where there is no row or no place.
        """
        if self.is_full:
            return None
        for waiting in (self.waiting, *others):
            # Most are empty, and looking costs less than taking.
            if waiting and (row := waiting.take()) is not None:
                self.active.append(row)
                return row
        return None

    def leave(self, place: int) -> None:
        """Free a place; the row at the last place moves there."""
        self.active[place] = self.active[-1]
        self.active.pop()

    @staticmethod
    def is_behind(row: Row) -> bool:
        """Whether the reader of a row that draws is so far behind that drawing more has no use."""
        turn = row.turn
        return row.unread > MAX_UNREAD and not (turn.stopping or turn.cancelled)

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
            if not row.turn.stopping and 2 * row.unread > MAX_UNREAD:
                still.append(row)
                continue
            # First of all: another lane may have the row at once.
            row.turn.parked = False
            if row.turn.stopping:
                self.waiting.add_first(row)
            else:
                self.waiting.add(row)
        self.parked = still


class Pace:
    """How many steps a run is to take: as many as fit into `seconds`, going by the last run.

    At least one, and at most `most`.
    """

    def __init__(self, seconds: float, most: int, step: float = 0.0) -> None:
        """`step`: seconds that one is taken to last before any was seen."""
        self._seconds = seconds
        self._most = most
        self._rows = 1
        self._step = step

    def steps(self, rows: int) -> int:
        """Steps that fit."""
        step = self._step * max(1.0, rows / self._rows)
        if step * self._most <= self._seconds:
            return self._most
        return max(1, int(self._seconds / step))

    def observe(self, rows: int, steps: int, seconds: float) -> None:
        """A run of this size has taken `seconds`."""
        self._rows, self._step = rows, seconds / steps

"""What is kept of every session but its state: a row of 84 bytes in arrays that grow by blocks.

92 in blocks that have, or had, a session with a latest end.
"""

from __future__ import annotations

import hmac
import math
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from unrolled_server.layout_parts import NO_TOKEN
from unrolled_server.number_pool import NumberPool
from unrolled_server.session_names import KEY_BYTES

ROWS = 4096
"""Rows of a block."""
NONE = -1
"""Stands for what there is not: a slot, and in a free row the model."""
NEVER = math.inf
GENERATIONS = 1 << 32

Rows = NDArray[np.intp]


class Block:
    """ROWS rows, an array for each field. Times are seconds since the epoch.

    Single fields are read and written far more often than columns are searched, and an
    `array` is quicker at that than NumPy's.
    """

    def __init__(self) -> None:
        self.models = array("h", [NONE]) * ROWS
        """Numbers of models; NONE: the row is free."""
        self.tenants = array("H", [0]) * ROWS
        """Numbers of tenants."""
        self.generations = array("I", [0]) * ROWS
        """How many sessions each row has had, but for the one it has, modulo 2^32."""
        self.seeds = array("Q", [0]) * ROWS
        self.positions = array("q", [0]) * ROWS
        self.pending = array("i", [NO_TOKEN]) * ROWS
        """Tokens, or NO_TOKEN."""
        self.previous = array("i", [NO_TOKEN]) * ROWS
        """Tokens, or NO_TOKEN."""
        self.slots = array("i", [NONE]) * ROWS
        """Of states, in the slabs of the model; NONE: the zero state."""
        self.created = array("d", [0]) * ROWS
        self.used = array("d", [0]) * ROWS
        self.idle_ttls = array("d", [0]) * ROWS
        """Seconds; 0: the session never expires."""
        self._keys = bytearray(KEY_BYTES * ROWS)
        # When sessions are over: NEVER for as long as they are busy, and in free rows.
        self._ends = array("d", [NEVER]) * ROWS
        # When sessions are over at the latest; made for the first that has such an end.
        self._latest: array[float] | None = None
        # No end is before it. It may be too early: uses postpone ends, and only a search for
        # what is due moves it.
        self._bound = NEVER

    def key(self, index: int) -> bytearray:
        """A copy of the key."""
        return self._keys[KEY_BYTES * index : KEY_BYTES * (index + 1)]

    def set_key(self, index: int, key: bytes) -> None:
        """Replace the key, KEY_BYTES long."""
        self._keys[KEY_BYTES * index : KEY_BYTES * (index + 1)] = key

    def end(self, index: int) -> float:
        """When the row's session is over as things stand: NEVER while it is busy."""
        return self._ends[index]

    def expires(self, index: int) -> float:
        """When the row's session is over unless it is used before, busy or not."""
        idle_ttl = self.idle_ttls[index]
        end = self.used[index] + idle_ttl if idle_ttl else NEVER
        return end if self._latest is None else min(end, self._latest[index])

    def latest(self, index: int) -> float:
        """When the row's session is over however it is used; NEVER: use keeps it."""
        return NEVER if self._latest is None else self._latest[index]

    def set_latest(self, index: int, latest: float) -> None:
        """Set when the row's session is over however it is used."""
        if self._latest is None:
            if latest == NEVER:
                return
            self._latest = array("d", [NEVER]) * ROWS
        self._latest[index] = latest

    def let_end(self, index: int) -> None:
        """The row's session is over when it expires, from now on: it is not busy."""
        self._ends[index] = end = self.expires(index)
        if end < self._bound:
            self._bound = end

    def keep(self, index: int) -> None:
        """The row's session is not over at any time, from now on: it is busy, or there is none."""
        self._ends[index] = NEVER

    def over(self, now: float, most: int) -> list[int]:
        """The rows, counted in the block, of sessions that are over, `most` at most."""
        if self._bound > now:
            return []
        ends = np.frombuffer(self._ends)
        self._bound = ends.min().item()
        if self._bound > now:
            return []
        rows: list[int] = np.flatnonzero(ends <= now)[:most].tolist()
        return rows

    def uses(self) -> NDArray[np.float64]:
        """When each row's session was last used; NEVER: the row is free."""
        free = np.frombuffer(self.models, np.int16) == NONE
        return np.where(free, NEVER, np.frombuffer(self.used))

    def matching(self, models: NDArray[np.bool_], tenant: int, now: float) -> Rows:
        """The rows, counted in the block, of a tenant's sessions that are not over.

        `models`, [number of models + 1], says whose sessions; its last is False.
        """
        # The model of a free row is -1: the last one.
        wanted = models[np.frombuffer(self.models, np.int16)]
        wanted &= np.frombuffer(self.tenants, np.uint16) == tenant
        return np.flatnonzero(wanted & (np.frombuffer(self._ends) > now))


class Records:
    """The rows of all sessions: taken, found again, searched by time and by model."""

    def __init__(self) -> None:
        self._rows = NumberPool()
        self._blocks: list[Block] = []

    @property
    def end(self) -> int:
        """All rows that were ever taken are below."""
        return self._rows.end

    def take(self) -> int:
        """A row for a new session; what it holds is undefined, but for its generation."""
        row = self._rows.take()
        while row >= len(self._blocks) * ROWS:
            self._blocks.append(Block())
        return row

    def find(self, row: int) -> tuple[Block, int]:
        """The block that a row, taken at some time, lies in, and where."""
        number, index = divmod(row, ROWS)
        return self._blocks[number], index

    def search(self, row: int, key: bytes) -> tuple[Block, int] | None:
        """As `find`; None where the row has no session with this key.

        Takes as long whatever the key is.
        """
        number, index = divmod(row, ROWS)
        if number >= len(self._blocks):
            return None
        block = self._blocks[number]
        if not hmac.compare_digest(block.key(index), key) or block.models[index] == NONE:
            return None
        return block, index

    def free(self, row: int) -> None:
        """Give a row back."""
        block, index = self.find(row)
        block.models[index] = NONE
        block.generations[index] = (block.generations[index] + 1) % GENERATIONS
        block.keep(index)
        self._rows.give_back(row)

    def over(self, now: float, most: int) -> list[int]:
        """Rows of sessions that are over, `most` at most."""
        rows: list[int] = []
        for number, block in enumerate(self._blocks):
            rows.extend(number * ROWS + index for index in block.over(now, most - len(rows)))
            if len(rows) == most:
                break
        return rows

    def oldest(self, most: int, busy: Iterable[int]) -> list[tuple[int, int, float]]:
        """Rows of the `most` sessions that were not used for longest, the longest first.

        Those in the rows `busy` do not count. With each comes its generation and its last use.
        """
        if not self._blocks:
            return []
        uses = np.concatenate([block.uses() for block in self._blocks])
        uses[np.fromiter(busy, np.intp)] = NEVER
        most = min(most, len(uses))
        rows = np.argpartition(uses, most - 1)[:most]
        rows = rows[np.argsort(uses[rows], kind="stable")]
        found: list[tuple[int, int, float]] = []
        for row in rows[uses[rows] < NEVER].tolist():
            block, index = self.find(row)
            found.append((row, block.generations[index], block.used[index]))
        return found

    def matching(
        self, first: int, models: NDArray[np.bool_], tenant: int, now: float
    ) -> Iterator[tuple[Rows, int]]:
        """Rows from `first` on of a tenant's sessions that are not over, in order, block by block.

        `models`, [number of models], says whose sessions. With them comes the row that the
        next block begins with.
        """
        wanted = np.append(models, False)
        for number in range(first // ROWS, len(self._blocks)):
            rows = number * ROWS + self._blocks[number].matching(wanted, tenant, now)
            yield rows[np.searchsorted(rows, first) :], (number + 1) * ROWS

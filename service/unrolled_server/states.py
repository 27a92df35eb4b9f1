"""The states of idle sessions: dense slabs, a slot per session."""

from __future__ import annotations

import numpy as np

from unrolled_server.types import Floats

SLAB_BYTES = 4 << 20


class StateSlabs:
    """Slots of `size` float32 each, for the sessions of one model."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots_per_slab = max(1, SLAB_BYTES // max(1, 4 * size))
        self._slabs: list[Floats] = []
        self._free: list[int] = []

    def allocate(self) -> int:
        """Take a slot; what it holds is undefined until it is written."""
        if not self._free:
            first = len(self._slabs) * self._slots_per_slab
            self._slabs.append(np.empty((self._slots_per_slab, self._size), np.float32))
            self._free.extend(range(first + self._slots_per_slab - 1, first - 1, -1))
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def read(self, slot: int) -> Floats:
        """A copy of the slot's state, [size]."""
        return self._view(slot).copy()

    def write(self, slot: int, state: Floats) -> None:
        """Replace the slot's state by `state`, [size]."""
        self._view(slot)[:] = state

    def _view(self, slot: int) -> Floats:
        slab, row = divmod(slot, self._slots_per_slab)
        place: Floats = self._slabs[slab][row]
        return place

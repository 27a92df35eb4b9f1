"""The states of idle sessions: dense slabs, a slot per session."""

from __future__ import annotations

import numpy as np

from unrolled_server.number_pool import NumberPool
from unrolled_server.types import Floats

SLAB_BYTES = 1 << 20
"""Small enough for ordinary pages, which take memory once they are written and not before:
NumPy asks for huge ones from 4 MiB on."""


class StateSlabs:
    """Slots of `size` float32 each, for the sessions of one model."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots_per_slab = max(1, SLAB_BYTES // max(1, 4 * size))
        self._slabs: list[Floats] = []
        self._slots = NumberPool()

    @property
    def bytes(self) -> int:
        """Of the states in slots that are taken."""
        return self._slots.taken * 4 * self._size

    def allocate(self) -> int:
        """Take a slot; what it holds is undefined until it is written."""
        slot = self._slots.take()
        while slot >= len(self._slabs) * self._slots_per_slab:
            self._slabs.append(np.empty((self._slots_per_slab, self._size), np.float32))
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._slots.give_back(slot)

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

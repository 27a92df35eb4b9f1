"""The states of rows on a device.

There are three sets of arrays. A run reads the set that is current and writes the other two
in turns, so that the states before it are still there when a row has to go back. Rows that come,
move or go back are only noted; the next run finds all of them copied to their places at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from unrolled_server.device_memory import Binding, Block, Part, Shapes, SharedBlock, open_session
from unrolled_server.running import StateSpec
from unrolled_server.types import Floats, Tokens

ROWS = "device_rows.onnx"

SETS = 3
NOW, BEFORE, FRESH = range(3)
"""Where a row's state is: as the last run left it, as it was before that, or on the host."""
_PLACES = ("now", "before", "fresh")


class DeviceStates:
    """States of up to `rows` rows; a row is where it was put, whatever has been copied yet."""

    def __init__(self, folder: Path, specs: tuple[StateSpec, ...], rows: int, device: str) -> None:
        self._session = open_session(folder / ROWS, device, {})
        self._device = device
        self._specs = specs
        self._sets = [Block(device, self._shapes(rows)) for _ in range(SETS)]
        self._now = self._before = 0
        self._source = np.full(rows, FRESH, np.int32)
        self._index = np.zeros(rows, np.int32)
        """A row of a set, or of `_fresh`."""
        self._fresh = [np.concatenate([spec.start for spec in specs])]
        self._initial = self._uploaded(self._fresh)
        self._fetched: dict[int, Floats] = {}

    # rows

    def load(self, row: int, state: Floats | None) -> None:
        """Set the state of a row to `state` [S], or to what it is before any token."""
        self._fetched.pop(row, None)
        self._source[row], self._index[row] = FRESH, 0
        if state is not None:
            self._index[row] = len(self._fresh)
            self._fresh.append(state)

    def rewind(self, row: int) -> None:
        """Take a row that the last run advanced back to where it stood before."""
        self._fetched.pop(row, None)
        self._source[row] = BEFORE

    def move(self, source: int, target: int) -> None:
        """Put a row in another's place."""
        self._source[target], self._index[target] = self._source[source], self._index[source]
        self._fetched.pop(target, None)
        if source in self._fetched:
            self._fetched[target] = self._fetched[source]

    def fetch(self, rows: Sequence[int]) -> None:
        """Have the states of rows ready for `save`, all with one copy."""
        rows = [row for row in rows if self._source[row] != FRESH]
        if not rows:
            return
        on_host = {spec.input: None for spec in self._specs}
        arrays = self._copy(self._source[rows], self._index[rows], on_host).outputs()
        self._fetched.update(zip(rows, np.concatenate(arrays, axis=1), strict=True))

    def save(self, row: int) -> Floats:
        """A copy of a row's state, [S]."""
        if self._source[row] == FRESH:
            return self._fresh[int(self._index[row])].copy()
        if row not in self._fetched:
            self.fetch([row])
        state: Floats = self._fetched[row].copy()
        return state

    # runs

    def settle(self, rows: int, padded: int) -> None:
        """Bring the first `rows` rows to their places; there is room for `padded` of them."""
        places = np.arange(padded, dtype=np.int32)
        source, index = np.full(padded, NOW, np.int32), places.copy()
        source[:rows], index[:rows] = self._source[:rows], self._index[:rows]
        if (source == NOW).all() and (index == places).all():
            return
        target = next(it for it in range(SETS) if it not in (self._now, self._before))
        self._copy(source, index, {spec.input: it for spec, it in self.parts(target, padded)})
        self._now = self._before = target
        self._source[:rows], self._index[:rows] = NOW, places[:rows]
        del self._fresh[1:]

    def sets(self, steps: int) -> list[tuple[int, int]]:
        """For every step of a run, the sets that it reads and writes."""
        home, one, other = ((self._now + step) % SETS for step in range(SETS))
        reads = [home, *([one, other] * steps)][:steps]
        writes = ([one, other] * steps)[:steps]
        return list(zip(reads, writes, strict=True))

    def advanced(self, rows: int, last: int) -> None:
        """A run of the first `rows` rows has left their states in set `last`."""
        self._before, self._now = self._now, last
        self._source[:rows], self._index[:rows] = NOW, np.arange(rows)
        self._fetched.clear()

    def parts(self, number: int, rows: int) -> Iterator[tuple[StateSpec, Part]]:
        """The first `rows` rows of a set."""
        for spec in self._specs:
            yield spec, self._sets[number].part(spec.input).first(rows)

    def _copy(self, source: Tokens, index: Tokens, outputs: Mapping[str, Part | None]) -> Binding:
        """Copy the rows [M] found at `index` of their `source`."""
        moves = SharedBlock(self._device, _move_shapes(len(source)))
        fresh = self._uploaded(self._fresh) if len(self._fresh) > 1 else self._initial
        moves.arrays["source"][:] = source
        for place, name in enumerate(_PLACES):
            moves.arrays[f"{name}_row"][:] = np.where(source == place, index, 0)
        moves.upload()
        inputs = {name: moves.part(name) for name in moves.arrays}
        blocks = (self._sets[self._now], self._sets[self._before], fresh)
        for name, block in zip(_PLACES, blocks, strict=True):
            inputs.update({f"{name}_{spec.input}": block.part(spec.input) for spec in self._specs})
        binding = Binding(self._session, inputs, outputs)
        binding.run()
        return binding

    def _uploaded(self, states: Sequence[Floats]) -> SharedBlock:
        """States [S] as rows on the device."""
        block = SharedBlock(self._device, self._shapes(len(states)))
        start = 0
        for spec in self._specs:
            rows = [state[start : start + spec.size] for state in states]
            block.arrays[spec.input][:] = rows
            start += spec.size
        block.upload()
        return block

    def _shapes(self, rows: int) -> Shapes:
        return {spec.input: (np.float32, (rows, spec.size)) for spec in self._specs}


def _move_shapes(rows: int) -> Shapes:
    names = ("source", *(f"{place}_row" for place in _PLACES))
    return dict.fromkeys(names, (np.int32, (rows,)))

"""Where the sessions in memory stand: read as a whole, and replaced as a whole.

Positions and tokens lie in the rows of sessions, states in slots of slabs, and what only some
sessions have in dictionaries.
"""

from __future__ import annotations

from unrolled_server import checkpoints
from unrolled_server.checkpoints import Checkpoints
from unrolled_server.layout_parts import NO_TOKEN, token_numbers, token_of
from unrolled_server.records import NONE, Block
from unrolled_server.session import Session
from unrolled_server.standing import Standing
from unrolled_server.states import StateSlabs
from unrolled_server.types import Floats, Past

FIRST_ERA = 1


class Standings:
    """Of each session what turns, checkpoints and rewinds replace."""

    def __init__(self) -> None:
        self._slabs: dict[int, StateSlabs] = {}
        """By the number of the model."""
        # By row, and only of those rows that have any.
        self.checkpoints: dict[int, bytes] = {}
        """Where sessions can be taken back to, as `checkpoints` has them."""
        self.checkpoint_bytes = 0
        """Of all those together."""
        self._partials: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._eras: dict[int, int] = {}
        """Of those that are not in their first."""

    def state_bytes(self, model: int) -> int:
        """Of the states of the model of this number; the zero state takes none."""
        return self._slabs[model].bytes if model in self._slabs else 0

    def begin(self, row: int, block: Block, index: int, *, undo: bool) -> None:
        """A new session is in the row, at the zero state."""
        block.positions[index] = 0
        block.pending[index] = block.previous[index] = NO_TOKEN
        block.slots[index] = NONE
        if undo:
            self._keep_checkpoints(row, checkpoints.encode(Checkpoints(undo)))

    def past(self, session: Session) -> Past:
        """Where the session stands, apart from it from now on. Raises SessionNotFound."""
        block, index = session.living(), session.index
        slot = block.slots[index]
        return Past(
            None if slot == NONE else self._slabs[block.models[index]].read(slot),
            token_of(block.pending[index]),
            block.positions[index],
            self._partials.get(session.row, b""),
            token_of(block.previous[index]),
        )

    def answers(self, session: Session) -> bytes:
        """The answers on record, as `answers` has them. Raises SessionNotFound."""
        session.living()
        return self._answers.get(session.row, b"")

    def read(self, session: Session) -> Standing:
        """All of it, apart from the session from now on. Raises SessionNotFound."""
        row = session.row
        return Standing(
            session.name,
            self.past(session),
            self._answers.get(row, b""),
            self.checkpoints.get(row, b""),
            self._eras.get(row, FIRST_ERA),
        )

    def replace(self, session: Session, standing: Standing) -> None:
        """Replace all of it, of a session that has not ended."""
        past, row = standing.past, session.row
        block, index = session.block, session.index
        if past.state is not None:
            self._store(session, past.state)
        elif block.slots[index] != NONE:
            self._slabs[block.models[index]].free(block.slots[index])
            block.slots[index] = NONE
        block.positions[index] = past.position
        block.pending[index], block.previous[index] = token_numbers(past)
        _note(self._partials, row, past.partial)
        _note(self._answers, row, standing.answers)
        self._keep_checkpoints(row, standing.checkpoints)
        if standing.era != FIRST_ERA:
            self._eras[row] = standing.era

    def forget(self, row: int, block: Block, index: int) -> None:
        """Let go of all of it, of the session in the row."""
        if block.slots[index] != NONE:
            self._slabs[block.models[index]].free(block.slots[index])
        self._keep_checkpoints(row, b"")
        for column in (self._partials, self._answers, self._eras):
            column.pop(row, None)

    def _keep_checkpoints(self, row: int, written: bytes) -> None:
        self.checkpoint_bytes += len(written) - len(self.checkpoints.get(row, b""))
        _note(self.checkpoints, row, written)

    def _store(self, session: Session, state: Floats) -> None:
        slots, number = session.block.slots, session.block.models[session.index]
        if number not in self._slabs:
            self._slabs[number] = StateSlabs(session.model.state_size)
        slabs, slot = self._slabs[number], slots[session.index]
        if slot == NONE:
            slots[session.index] = slot = slabs.allocate()
        slabs.write(slot, state)


def _note(column: dict[int, bytes], row: int, value: bytes) -> None:
    """Set a value that is kept only where it is not empty."""
    if value:
        column[row] = value
    else:
        column.pop(row, None)

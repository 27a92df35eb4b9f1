"""What changes of a session, and how: whatever is committed replaces all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from unrolled_server import checkpoints
from unrolled_server.answers import Answer, committed_by, with_answer
from unrolled_server.checkpoints import LAST_TURN, MAX_CHECKPOINTS, Checkpoint, Checkpoints
from unrolled_server.errors import CheckpointNotFound, NothingToUndo, TooManyCheckpoints
from unrolled_server.types import Past


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a session stands, and what it keeps of how it came there.

    (era, position) grows with every commit: turns move the position on, and whatever does not
    begins a new era. So it says when something was committed, and which record is the newer one.
    """

    session: str
    """Its name, for errors."""
    past: Past
    answers: bytes = b""
    """As `answers` has them; all are of turns that led here."""
    checkpoints: bytes = b""
    """As `checkpoints` has them."""
    era: int = 1

    def after_turn(self, past: Past, answer: Answer | None) -> Standing:
        """A turn went from here to `past`."""
        era = self.era if past.position > self.past.position else self.era + 1
        written, answers = self.checkpoints, self.answers
        if written and (kept := checkpoints.decode(written)).undo:
            written = checkpoints.encode(kept.having(self._here(LAST_TURN)))
        if answer is not None:
            answers = with_answer(answers, replace(answer, era=era, position=past.position))
        return replace(self, past=past, answers=answers, checkpoints=written, era=era)

    def with_checkpoint(self, id_: str) -> Standing:
        """With a checkpoint here. Raises TooManyCheckpoints."""
        kept = checkpoints.decode(self.checkpoints)
        if kept.is_full and kept.find(id_) is None:
            raise TooManyCheckpoints(self.session, MAX_CHECKPOINTS)
        return self._with(kept.having(self._here(id_)))

    def without_checkpoint(self, id_: str) -> Standing:
        """Without that checkpoint. Raises CheckpointNotFound."""
        self._find(id_)
        return self._with(checkpoints.decode(self.checkpoints).without(id_))

    def rewound(self, id_: str) -> Standing:
        """At that checkpoint, or with LAST_TURN before the last turn, which is no longer the last.

        What was answered there or before stands. Raises CheckpointNotFound, NothingToUndo.
        """
        found = self._find(id_)
        return replace(
            self._with(checkpoints.decode(self.checkpoints).without(LAST_TURN)),
            past=found.past,
            answers=committed_by(self.answers, found.era, found.past.position),
        )

    def _find(self, id_: str) -> Checkpoint:
        found = checkpoints.decode(self.checkpoints).find(id_)
        if found is None and id_ == LAST_TURN:
            raise NothingToUndo(self.session)
        if found is None:
            raise CheckpointNotFound(self.session, id_)
        return found

    def _here(self, id_: str) -> Checkpoint:
        return Checkpoint(id_, self.era, self.past)

    def _with(self, kept: Checkpoints) -> Standing:
        return replace(self, checkpoints=checkpoints.encode(kept), era=self.era + 1)


Change: TypeAlias = Callable[[Standing], Standing]

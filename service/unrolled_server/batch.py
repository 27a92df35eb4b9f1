"""The columns of a batch: an array for each thing that changes with every step.

Nothing here is done row by row. What a run costs beside the run is a number of array operations,
whether it advances one row or hundreds; only tokens that leave, and rows whose text may end, are
looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from unrolled_server.row import UNREACHED, Row
from unrolled_server.sampler import Uniforms, stream, uniforms
from unrolled_server.types import MAX_STEPS, Places, Tokens

FEW = 8
"""Rows up to which a run ends where one draws its first token. More share short runs anyway, and
ending those early would cost more than it wins."""
MARKED = 8
"""Rows at most whose states are remembered on the way: each ends a run for all others, and what
more of them are told at once is seldom the same."""
WINDOW = 256
"""Tokens to be told that a place has at hand."""
LEAST_KEPT, MOST_KEPT = 64, 1024 + 2 * MAX_STEPS
"""Drawn tokens that a place has room for; before it runs out, its row has to take them."""

KINDS = WATCHED, FILTERS, LOGPROBS, SCORES = range(4)
"""Of rows: its tokens are looked at in every run; top_k, top_p or min_p are used; distributions are
asked for; a text is scored."""

NO_PLACES = np.zeros(0, np.int64)
"""No places."""

_STEPS = np.arange(WINDOW)[:, None]


class Batch:
    """Columns for `capacity` places; active rows are a prefix of them.

    `end_tokens` end a text.
    """

    def __init__(
        self, capacity: int, vocabulary: int, end_tokens: frozenset[int], message: int = 1
    ) -> None:
        """`message`: drawn tokens with which one leaves; its row takes them all at once."""
        self.size = 0
        """Active rows."""
        self.tell_left = np.zeros(capacity, np.int64)
        """Tokens still to be told."""
        self.draw_left = np.zeros(capacity, np.int64)
        """Tokens to be drawn after those."""
        self.told = np.zeros(capacity, np.int64)
        """Of the last run's tokens, those that were told."""
        self._window = np.zeros((capacity, WINDOW), np.int32)
        self._cursors = np.zeros(capacity, np.int64)
        self._positions = np.zeros(capacity, np.int64)
        self._streams = np.zeros(capacity, np.uint64)
        self._counts = np.zeros(capacity, np.int64)
        # The run that makes a message due draws more than it lacks, and there is one run more.
        self._kept = min(max(LEAST_KEPT, message + 2 * MAX_STEPS), MOST_KEPT)
        self._drawn = np.zeros((capacity, MAX_STEPS + self._kept), np.int32)
        self._rooms = np.arange(capacity) * (MAX_STEPS + self._kept)
        """Where the room of each place begins in those."""
        self._unsent = np.zeros(capacity, np.int64)
        self._sent_at = np.zeros(capacity, np.float64)
        self._silent = np.zeros(capacity, np.bool_)
        self._kinds = np.zeros((capacity, len(KINDS)), np.bool_)
        self._marks = np.full(capacity, UNREACHED, np.int64)
        """Positions at which states are to be remembered."""
        self._marked = 0
        """Rows that have one."""
        self._columns: tuple[NDArray[np.generic], ...] = (
            self.tell_left,
            self.draw_left,
            self.told,
            self._window,
            self._cursors,
            self._positions,
            self._streams,
            self._counts,
            self._drawn,
            self._unsent,
            self._sent_at,
            self._silent,
            self._kinds,
            self._marks,
        )
        self._all = np.arange(capacity)
        self._ends = np.zeros(vocabulary, np.bool_)
        self._ends[sorted(end_tokens)] = True
        self._has_ends = bool(end_tokens)
        # Of all rows together, so that they are not asked in every run.
        self._present = [False] * len(KINDS)
        """Of which kinds there are rows."""
        self._may_tell = False
        """False: no row has a token to tell."""
        self._may_be_silent = False
        """False: no row has its first token still to draw."""

    # rows come and go

    def join(self, row: Row) -> int:
        """Give a row the place behind the last, and return it."""
        place = self.size
        self.size += 1
        sampling = row.turn.task.sampling
        self.tell_left[place] = row.tell_left
        self.draw_left[place] = row.draw_left
        self._positions[place] = row.position
        self.hand(place, row.told(row.tell_left, WINDOW))
        self._streams[place] = stream(sampling.seed)
        self._counts[place] = 0
        self._unsent[place] = row.unsent
        self._sent_at[place] = -np.inf if row.flushed is None else row.flushed
        self._silent[place] = row.flushed is None and row.draw_left > 0
        wants_logprobs = row.turn.task.logprobs is not None
        self._kinds[place] = row.watched, sampling.filters, wants_logprobs, row.turn.task.scores
        self._note_kinds()
        self._may_tell |= row.tell_left > 0
        self._may_be_silent |= bool(self._silent[place])
        self._marks[place] = UNREACHED
        if self._marked < MARKED:
            self.mark(place, row)
        return place

    def put_back(self, place: int, row: Row) -> None:
        """Tell a row that leaves how far it has come; it has taken what it drew."""
        row.tell_left = int(self.tell_left[place])
        row.draw_left = int(self.draw_left[place])
        row.position = int(self._positions[place])

    def leave(self, place: int) -> None:
        """Free a place; the row in the last one moves there."""
        self.size -= 1
        if place != self.size:
            for column in self._columns:
                column[place] = column[self.size]
        self._count_marks()
        self._note_kinds()

    def clear(self) -> None:
        """All rows leave."""
        self.size = self._marked = 0
        self._note_kinds()

    def _note_kinds(self) -> None:
        kinds: Iterable[np.bool_] = np.logical_or.reduce(self._kinds[: self.size])
        self._present = [bool(kind) for kind in kinds]

    def mark(self, place: int, row: Row) -> None:
        """Note where the row's state is to be remembered next."""
        self._marks[place] = row.mark_after(int(self._positions[place]))
        self._count_marks()

    def _count_marks(self) -> None:
        self._marked = int(np.count_nonzero(self._marks[: self.size] < UNREACHED))

    def position(self, place: int) -> int:
        """Tokens of a row's sequence so far."""
        return int(self._positions[place])

    def is_finished(self, place: int) -> bool:
        """Whether a row has nothing left to do."""
        return not self.tell_left[place] + self.draw_left[place]

    def hand(self, place: int, tokens: Tokens) -> None:
        """Give a place the tokens that are told next, as many as there are up to WINDOW."""
        self._window[place, : len(tokens)] = tokens
        self._cursors[place] = 0

    def stop(self, place: int) -> None:
        """The row draws no more."""
        self.draw_left[place] = 0
        self._silent[place] = False

    def tell_again(self, place: int, tokens: Tokens, steps: int) -> None:
        """The row goes back by the `steps` of the last run, is told `tokens` of it, and ends."""
        self._positions[place] -= steps
        self.tell_left[place] = len(tokens)
        self.draw_left[place] = 0
        self._may_tell = True
        self.hand(place, tokens)

    # a run

    def most_steps(self) -> int:
        """Steps until the first row ends or comes to a mark, or draws its first token.

        That is not to wait.
        """
        rows = slice(self.size)
        left = self.draw_left[rows]
        if self._may_be_silent and self.size <= FEW:
            left = np.where(self._silent[rows], 1, left)
        if self._may_tell:
            left = left + self.tell_left[rows]
        steps = int(left.min())
        if self._marked:
            steps = min(steps, int((self._marks[rows] - self._positions[rows]).min()))
        return steps

    def telling(self, least: int) -> Places:
        """Places of rows that a run could only tell for `least` steps, fewest left first."""
        if not self._may_tell:
            return NO_PLACES
        left = self._only_told(self._all[: self.size])
        if self._present[SCORES]:
            left[self._kinds[: self.size, SCORES]] = 0
        order = left.argsort(kind="stable")
        return order[np.searchsorted(left[order], least) :]

    def most_told(self, places: Places) -> int:
        """Steps of a run that only tells these rows."""
        return int(self._only_told(places).min())

    def _only_told(self, places: Places) -> NDArray[np.int64]:
        """Steps until rows come to a mark, or to the last token that they are told.

        That is for a run like any other, as every row ends with one.
        """
        left = self.tell_left[places] - 1
        if self._marked:
            left = np.minimum(left, self._marks[places] - self._positions[places])
        return left

    def filters(self) -> bool:
        """Whether any row uses top_k, top_p or min_p."""
        return self._present[FILTERS]

    def may_tell(self) -> bool:
        """Whether the next token of some row may be told; else all are drawn."""
        return self._may_tell

    def all(self) -> Places:
        """Places of all rows."""
        return self._all[: self.size]

    def short(self, steps: int, places: Places) -> list[int]:
        """Those of the places that have to be handed more tokens before a run of so many steps."""
        at_hand = WINDOW - self._cursors[places]
        short: list[int] = places[(at_hand < steps) & (self.tell_left[places] > at_hand)].tolist()
        return short

    def write_told(self, told: Tokens, places: Places) -> None:
        """Write the tokens that rows are told in the next run, [K, B], -1 where one is drawn."""
        steps = _STEPS[: len(told)]
        columns = np.minimum(self._cursors[places] + steps, WINDOW - 1)
        known = self._window[places, columns]
        told[...] = np.where(steps < self.tell_left[places], known, -1)

    def wants_logprobs(self) -> bool:
        """Whether any row asks for distributions."""
        return self._present[LOGPROBS]

    def uniforms(self, steps: int) -> Uniforms:
        """The random numbers of the next steps, [K, B]."""
        rows = slice(self.size)
        return uniforms(self._streams[rows], self._positions[rows], steps)

    def advance(self, tokens: Tokens) -> None:
        """Take the tokens [K, B] of a run."""
        steps, size = tokens.shape
        rows = slice(size)
        told: NDArray[np.int64] | int = 0
        if self._may_tell:
            told = np.minimum(self.tell_left[rows], steps)
            self.tell_left[rows] -= told
            self._cursors[rows] += told
            self._may_tell = bool(self.tell_left[rows].any())
        drawn = steps - told
        self.told[rows] = told
        self.draw_left[rows] -= drawn
        self._positions[rows] += steps
        # Told tokens come to lie before the drawn ones, where nobody looks.
        first = self._rooms[rows] + self._counts[rows] + (MAX_STEPS - told)
        self._drawn.reshape(-1)[first + _STEPS[:steps]] = tokens
        self._counts[rows] += drawn
        self._unsent[rows] += drawn
        if self._may_be_silent:
            self._silent[rows] &= drawn == 0
            self._may_be_silent = bool(self._silent[rows].any())

    def tell(self, steps: int, places: Places) -> None:
        """A run has told these rows so many tokens."""
        self.tell_left[places] -= steps
        self._cursors[places] += steps
        self._positions[places] += steps

    def watched(self, tokens: Tokens) -> list[int]:
        """Places whose rows have to see the run's tokens [K, B] now."""
        rows = slice(self.size)
        watched = self._counts[rows] > self._kept - MAX_STEPS
        if self._present[WATCHED]:
            watched |= self._kinds[rows, WATCHED]
        if self._has_ends:
            watched |= self._ends[tokens].any(0)
        return _places(watched)

    def at_marks(self) -> list[int]:
        """Places whose rows' states are to be remembered as they are now."""
        if not self._marked:
            return []
        rows = slice(self.size)
        return _places(self._marks[rows] == self._positions[rows])

    def take(self, place: int) -> list[int]:
        """The tokens that a row has drawn since the last call."""
        count = self._counts[place]
        self._counts[place] = 0
        tokens: list[int] = self._drawn[place, MAX_STEPS : MAX_STEPS + count].tolist()
        return tokens

    # deliver

    def due(self, now: float, tokens: int, interval: float) -> list[int]:
        """Places with tokens to send: their first, `tokens` of them, or any after `interval`."""
        rows = slice(self.size)
        unsent = self._unsent[rows]
        late = (unsent > 0) & (now - self._sent_at[rows] >= interval)
        return _places(late | (unsent >= tokens))

    def taken(self, place: int, row: Row) -> None:
        """A row has taken its tokens, and sent what it was to send."""
        self._unsent[place] = row.unsent
        if row.flushed is not None:
            self._sent_at[place] = row.flushed

    def finished(self) -> list[int]:
        """Places whose rows have nothing left to do."""
        rows = slice(self.size)
        return _places(self.tell_left[rows] + self.draw_left[rows] == 0)


def _places(mask: NDArray[np.bool_]) -> list[int]:
    """Where a mask over places is set."""
    places: list[int] = mask.nonzero()[0].tolist()
    return places

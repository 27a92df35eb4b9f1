"""The columns of a batch: an array for each thing that changes with every step.

Nothing here is done row by row. What a run costs beside the run is a number of array operations,
whether it advances one row or hundreds; only tokens that leave, and rows whose text may end, are
looked at one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unrolled_server.row import NEVER, Row
from unrolled_server.sampler import Uniforms, stream, uniforms
from unrolled_server.types import MAX_STEPS, Tokens

FEW = 8
"""Rows up to which a run ends where one draws its first token. More share short runs anyway, and
ending those early would cost more than it wins."""
MARKED = 8
"""Rows at most whose states are remembered on the way: each ends a run for all others, and what
more of them are told at once is seldom the same."""
WINDOW = 256
"""Tokens to be told that a place has at hand."""
KEPT = 64
"""Drawn tokens that a place has room for; before it runs out, its row has to take them."""

Places = NDArray[np.intp]


class Batch:
    """Columns for `capacity` places; active rows are a prefix of them.

    `end_tokens` end a text.
    """

    def __init__(self, capacity: int, vocabulary: int, end_tokens: frozenset[int]) -> None:
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
        self._drawn = np.zeros((capacity, MAX_STEPS + KEPT), np.int32)
        self._unsent = np.zeros(capacity, np.int64)
        self._sent_at = np.zeros(capacity, np.float64)
        self._silent = np.zeros(capacity, np.bool_)
        self._watched = np.zeros(capacity, np.bool_)
        self._filters = np.zeros(capacity, np.bool_)
        self._wants_logprobs = np.zeros(capacity, np.bool_)
        self._has_scores = np.zeros(capacity, np.bool_)
        self._marks = np.full(capacity, NEVER, np.int64)
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
            self._watched,
            self._filters,
            self._wants_logprobs,
            self._has_scores,
            self._marks,
        )
        self._ends = np.zeros(vocabulary, np.bool_)
        self._ends[sorted(end_tokens)] = True
        self._has_ends = bool(end_tokens)

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
        self._watched[place] = row.watched
        self._filters[place] = sampling.filters
        self._wants_logprobs[place] = row.turn.task.logprobs is not None
        self._has_scores[place] = row.turn.task.scores
        self._marks[place] = NEVER
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

    def clear(self) -> None:
        """All rows leave."""
        self.size = self._marked = 0

    def mark(self, place: int, row: Row) -> None:
        """Note where the row's state is to be remembered next."""
        self._marks[place] = row.mark_after(int(self._positions[place]))
        self._count_marks()

    def _count_marks(self) -> None:
        self._marked = int(np.count_nonzero(self._marks[: self.size] < NEVER))

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
        self.hand(place, tokens)

    # a run

    def most_steps(self) -> int:
        """Steps until the first row ends or comes to a mark, or draws its first token.

        That is not to wait.
        """
        rows = slice(self.size)
        left = self.draw_left[rows]
        if self.size <= FEW:
            left = np.where(self._silent[rows], 1, left)
        steps = int((self.tell_left[rows] + left).min())
        if self._marked:
            steps = min(steps, int((self._marks[rows] - self._positions[rows]).min()))
        return steps

    def most_told(self) -> int:
        """Steps of a run that only tells: every row ends with one like any other."""
        if self._has_scores[: self.size].any():
            return 0
        rows = slice(self.size)
        steps = int(self.tell_left[rows].min()) - 1
        if self._marked:
            steps = min(steps, int((self._marks[rows] - self._positions[rows]).min()))
        return steps

    def filters(self) -> bool:
        """Whether any row uses top_k, top_p or min_p."""
        return bool(self._filters[: self.size].any())

    def is_telling(self) -> bool:
        """Whether any row's next token is told."""
        return bool(self.tell_left[: self.size].any())

    def short(self, steps: int) -> list[int]:
        """Places that have to be handed more tokens to tell before a run of so many steps."""
        rows = slice(self.size)
        at_hand = WINDOW - self._cursors[rows]
        short = (at_hand < steps) & (self.tell_left[rows] > at_hand)
        places: list[int] = np.flatnonzero(short).tolist()
        return places

    def write_told(self, told: Tokens) -> None:
        """Write the tokens to be told in the next run, [K, B], -1 where one is drawn."""
        rows, steps = slice(self.size), np.arange(len(told))[:, None]
        columns = np.minimum(self._cursors[rows] + steps, WINDOW - 1)
        known = self._window[np.arange(self.size), columns]
        told[...] = np.where(steps < self.tell_left[rows], known, -1)

    def wants_logprobs(self) -> bool:
        """Whether any row asks for distributions."""
        return bool(self._wants_logprobs[: self.size].any())

    def uniforms(self, steps: int) -> Uniforms:
        """The random numbers of the next steps, [K, B]."""
        rows = slice(self.size)
        return uniforms(self._streams[rows], self._positions[rows], steps)

    def advance(self, tokens: Tokens) -> None:
        """Take the tokens [K, B] of a run."""
        steps, size = tokens.shape
        rows = slice(size)
        self.told[rows] = told = np.minimum(self.tell_left[rows], steps)
        drawn = steps - told
        self.tell_left[rows] -= told
        self._cursors[rows] += told
        self.draw_left[rows] -= drawn
        self._positions[rows] += steps
        # Told tokens come to lie before the drawn ones, where nobody looks.
        first = MAX_STEPS + self._counts[rows] - told
        columns = first[:, None] + np.arange(steps)
        self._drawn[np.arange(size)[:, None], columns] = tokens.T
        self._counts[rows] += drawn
        self._unsent[rows] += drawn
        self._silent[rows] &= drawn == 0

    def tell(self, steps: int) -> None:
        """A run has told every row so many tokens."""
        rows = slice(self.size)
        self.tell_left[rows] -= steps
        self._cursors[rows] += steps
        self._positions[rows] += steps

    def watched(self, tokens: Tokens) -> list[int]:
        """Places whose rows have to see the run's tokens [K, B] now."""
        rows = slice(self.size)
        watched = self._watched[rows] | (self._counts[rows] > KEPT - MAX_STEPS)
        if self._has_ends:
            watched |= self._ends[tokens].any(0)
        places: list[int] = np.flatnonzero(watched).tolist()
        return places

    def at_marks(self) -> list[int]:
        """Places whose rows' states are to be remembered as they are now."""
        if not self._marked:
            return []
        rows = slice(self.size)
        places: list[int] = np.flatnonzero(self._marks[rows] == self._positions[rows]).tolist()
        return places

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
        places: list[int] = np.flatnonzero(late | (unsent >= tokens)).tolist()
        return places

    def taken(self, place: int, row: Row) -> None:
        """A row has taken its tokens, and sent what it was to send."""
        self._unsent[place] = row.unsent
        if row.flushed is not None:
            self._sent_at[place] = row.flushed

    def finished(self) -> list[int]:
        """Places whose rows have nothing left to do."""
        rows = slice(self.size)
        places: list[int] = np.flatnonzero(
            self.tell_left[rows] + self.draw_left[rows] == 0
        ).tolist()
        return places

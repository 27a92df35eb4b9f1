"""Which rows the next run of a lane only tells, and for how many steps.

That is done where no other row is in the lane, and beside others where it costs about as much as
telling them among those; others wait meanwhile, in the long run half of the time.
"""

from __future__ import annotations

from unrolled_server.batch import NO_PLACES, Batch
from unrolled_server.scheduler import Pace
from unrolled_server.types import PROMPT_STEPS, Places

LEAST_TOLD = 4
"""Steps of a run that only tells, at least."""
COMPANY = 4
"""Rows that are told apart from others, at least: fewer cost more each than among the others."""
OTHERS = 16
"""Rows beside which others are told apart, at least: among fewer, a row more costs little."""
UNSEEN_SECONDS = 0.005
"""Taken for a step that is only told before any was seen: a large model's may take long."""


class Telling:
    """Chooses the runs that only tell, and keeps what they have cost the rows that wait for them.

    `seconds`: how long such a run is to take at most.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pace = Pace(seconds, PROMPT_STEPS, UNSEEN_SECONDS)
        self._behind = 0.0
        """Seconds for which rows have waited for others to be told, and that are not made up yet;
        negative: those for which they are ahead, at most what one run may take."""

    def choose(self, batch: Batch, most: int) -> Places:
        """Places of the rows that the next run only tells, at most `most`.

        None: the next run is to advance all rows.
        """
        places = batch.telling(LEAST_TOLD)[:most]
        others = batch.size - len(places)
        if not others:
            self._behind = 0.0
            return places
        if len(places) >= COMPANY and others >= OTHERS and self._behind <= 0:
            return places
        return NO_PLACES

    def steps(self, batch: Batch, places: Places) -> int:
        """Steps of a run that only tells these rows."""
        most = min(PROMPT_STEPS, batch.most_told(places))
        # However slow the last one was, so that the pace is taken again.
        steps = max(LEAST_TOLD, self._pace.steps(len(places)))
        # What a pace comes to is never the same: few sizes, so that arrays are seldom bound anew.
        return most if most <= steps else 1 << steps.bit_length() - 1

    def observe(self, rows: int, others: int, steps: int, seconds: float) -> None:
        """A run has told `rows` rows in so many seconds, while `others` waited."""
        self._pace.observe(rows, steps, seconds)
        if others:
            self._behind += seconds

    def make_up(self, seconds: float) -> None:
        """A run has advanced all rows in so many seconds."""
        self._behind = max(-self._seconds, self._behind - seconds)

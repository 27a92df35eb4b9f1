"""The engine of one model: lanes, threads that each advance rows of their own.

One thread keeps one core busy. Several that work at one product wait for each other at every
product, and for whatever else runs on their cores; lanes wait for nobody. They share the graph
and its weights, no row and no array.
"""

from __future__ import annotations

from collections.abc import Sequence

from unrolled_server.lane import Lane
from unrolled_server.scheduler import FULL
from unrolled_server.stats import EngineStats, total
from unrolled_server.turn import Turn


class Engine:
    """Spreads turns over lanes. Every method may be called from any thread."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        for lane in lanes:
            lane.siblings = lanes

    @property
    def stats(self) -> EngineStats:
        """What all lanes have counted."""
        return total([lane.stats for lane in self._lanes])

    def start(self) -> None:
        """Start the threads."""
        for lane in self._lanes:
            lane.start()

    def submit(self, turn: Turn) -> None:
        """Hand a turn over to a lane, where it stays unless another has a place first."""
        counts = [lane.turns for lane in self._lanes]
        free = next((place for place, count in enumerate(counts) if count < FULL), None)
        self._lanes[counts.index(min(counts)) if free is None else free].submit(turn)

    def nudge(self) -> None:
        """Have the flags of turns looked at."""
        for lane in self._lanes:
            lane.nudge()

    def close(self) -> None:
        """End the threads; turns under way get no more messages."""
        for lane in self._lanes:
            lane.close()

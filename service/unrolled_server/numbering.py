"""Numbers by which arrays know things."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

UNKNOWN = -1
"""The number of what has none."""

T = TypeVar("T", bound=Hashable)


class Numbering(Generic[T]):
    """Things get the numbers 0, 1, 2 and so on, in the order in which they come, and keep them."""

    def __init__(self) -> None:
        self.all: list[T] = []
        """Things by number."""
        self._numbers: dict[T, int] = {}

    def number(self, thing: T) -> int:
        """The thing's number, from now on if it had none."""
        if thing not in self._numbers:
            self._numbers[thing] = len(self.all)
            self.all.append(thing)
        return self._numbers[thing]

    def find(self, thing: T) -> int:
        """The thing's number; UNKNOWN: it has none."""
        return self._numbers.get(thing, UNKNOWN)

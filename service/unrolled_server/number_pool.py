"""Numbers of places in arrays that grow."""

from __future__ import annotations

from array import array


class NumberPool:
    """Gives out 0, 1, 2 and so on; numbers that came back go out first, the latest first.

    A number costs nothing while it is out, and four bytes once it came back.
    """

    def __init__(self) -> None:
        self.end = 0
        """All numbers that were ever given out are below."""
        self._free = array("I")

    @property
    def taken(self) -> int:
        """Numbers that are out."""
        return self.end - len(self._free)

    def take(self) -> int:
        """A number that nobody else has."""
        if self._free:
            return self._free.pop()
        self.end += 1
        return self.end - 1

    def give_back(self, number: int) -> None:
        """Let go of a number that was taken."""
        self._free.append(number)

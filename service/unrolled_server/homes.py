"""Which row a session lies in, and which its name says: its home.

A session that comes back into memory may lie in any row. Only of those that are not at home
something is kept.
"""

from __future__ import annotations


class Homes:
    """Rows and homes of the sessions in memory."""

    def __init__(self) -> None:
        # Of sessions that are not at home.
        self._rows: dict[bytes, int] = {}
        """By key."""
        self._homes: dict[int, int] = {}
        """By row."""

    def row(self, home: int, key: bytes) -> int | None:
        """Where the session of this home and key lies, if it is in memory; None: it is not."""
        row = self._rows.get(key, home)
        return row if self.home(row) == home else None

    def home(self, row: int) -> int:
        """The home of the session in this row."""
        return self._homes.get(row, row)

    def enter(self, row: int, home: int, key: bytes) -> None:
        """The session of this home and key lies in this row from now on."""
        if row != home:
            self._rows[key], self._homes[row] = row, home

    def leave(self, row: int, key: bytes) -> None:
        """The session of this key, which lies in this row, leaves memory."""
        if self._homes.pop(row, None) is not None and self._rows.get(key) == row:
            del self._rows[key]

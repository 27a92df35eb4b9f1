"""Standard output while text arrives."""

from __future__ import annotations

import sys


def to_terminal() -> bool:
    """Whether somebody reads at a terminal; closed standard output is None."""
    return sys.stdout is not None and sys.stdout.isatty()


class Output:
    """Prints pieces of text at once, and knows whether a line is begun."""

    def __init__(self) -> None:
        self._line_begun = False

    def write(self, text: str) -> None:
        if text:
            print(text, end="", flush=True)
            self._line_begun = not text.endswith("\n")

    def end_line(self) -> None:
        """Ends the line if one is begun."""
        if self._line_begun:
            self.write("\n")

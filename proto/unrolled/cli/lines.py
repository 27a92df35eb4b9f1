"""Standard input, whole and line by line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from unrolled.cli.output import to_terminal
from unrolled.cli.problems import Problem


def typed_input() -> bool:
    """Whether somebody types at a terminal; closed standard input is None."""
    return sys.stdin is not None and sys.stdin.isatty()


def told(argument: str | None) -> str:
    """The text that an argument says, exactly: itself, or standard input for - or nothing.

    From a terminal only - reads. Raises Problem for what is not UTF-8.
    """
    if argument is not None and argument != "-":
        return argument
    if sys.stdin is None or (argument is None and typed_input()):
        return ""
    try:
        # Not as text: a line break is told to the model as it stands.
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise Problem(f"standard input is not valid UTF-8 at byte {error.start}", 2) from None


def line_reader(*, typed: bool) -> Callable[[], str | None]:
    """What gives the next line without its end, or None after the last one.

    Typed lines can be edited, with history, where the platform has readline. Reading raises
    Problem for what is not UTF-8.
    """
    if not typed:
        return _piped_line
    with contextlib.suppress(ImportError):
        # Being imported is all it takes for input() to use it.
        import readline  # noqa: F401
    return _typed_line


def _typed_line() -> str | None:
    try:
        line = input("> " if to_terminal() else "")
        line.encode()
    except UnicodeError:
        raise Problem("that line is not valid text", 2) from None
    except EOFError:
        # The cursor stands behind the prompt.
        print(file=sys.stderr)
        return None
    return line


def _piped_line() -> str | None:
    line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    try:
        return line.removesuffix(b"\n").decode() if line else None
    except UnicodeDecodeError:
        raise Problem("standard input is not valid UTF-8", 2) from None

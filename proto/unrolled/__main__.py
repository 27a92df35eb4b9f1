"""The command line: unrolled."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from unrolled import UnrolledError
from unrolled.cli.access import connected
from unrolled.cli.arguments import parse
from unrolled.cli.problems import Problem, explain

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0, 1 failed, 2 wrong usage, 130 interrupted, 141 nobody reads its output any more.
    """
    arguments = parse(sys.argv[1:] if argv is None else argv)
    _allow_any_text()
    try:
        with connected(arguments) as client:
            arguments.run(client, arguments)
        # Here, where a reader that has gone is still noticed quietly.
        print(end="", flush=True)
    except UnrolledError as error:
        return _fail(explain(error, arguments.server), 1)
    except Problem as problem:
        return _fail(str(problem), problem.status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        return _fail(str(error), 1)
    return 0


def _allow_any_text() -> None:
    """Lets characters that the terminal's encoding lacks come out as question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _fail(line: str, status: int) -> int:
    print(f"unrolled: {line}", file=sys.stderr)
    return status


def _discard_output() -> None:
    """Lets the interpreter flush standard output at exit without a second complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""The arguments that all commands share, and the commands."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Sequence

from unrolled.cli import chat, complete, health, models, score, sessions, top
from unrolled.cli.access import add_access


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with `run` set to the command. Exits with 2 where they are wrong."""
    parser = _parser()
    try:
        "".join(argv).encode()
    except UnicodeEncodeError:
        parser.error("an argument is not valid text")
    return parser.parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "unrolled",
        description="Talks to a server of recurrent language models.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version("unrolled")
    )
    add_access(parser, has_defaults=True)
    # Given to every command, so that these may stand before and after it.
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_access(shared, has_defaults=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (complete, chat, score, models, sessions, health, top):
        command.add_to(commands, shared)
    return parser

"""The arguments that all commands share, and the commands."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from collections.abc import Sequence

from unrolled.cli import chat, complete, health, models, sessions, top
from unrolled.client import DEFAULT_TARGET


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
    _add_server(parser, os.environ.get("UNROLLED_SERVER") or DEFAULT_TARGET)
    # Given to every command, so that --server may stand before and after it.
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_server(shared, argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (complete, chat, models, sessions, health, top):
        command.add_to(commands, shared)
    return parser


def _add_server(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=default,
        help="the server (default: UNROLLED_SERVER, else 127.0.0.1:50051)",
    )

"""The options that say how completions are drawn."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from unrolled import CompletionOptions


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    """Ranges are the server's to check; here a number must only fit its field."""
    parser.add_argument(
        "--max-tokens", type=int32, metavar="N", help="tokens to draw at most (256)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy; default 1, the model as it is"
    )
    parser.add_argument(
        "--top-k", type=int32, metavar="K", help="draw among the K likeliest tokens"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest that sum up to P"
    )
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="leave out what is less than P times the likeliest"
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text; may be given several times",
    )


def completion_options(arguments: argparse.Namespace) -> CompletionOptions:
    return CompletionOptions(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        stop=arguments.stop,
    )


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return parse


int32 = _integer(-(2**31), 2**31 - 1)
int64 = _integer(-(2**63), 2**63 - 1)
uint64 = _integer(0, 2**64 - 1)


def seconds(text: str) -> float:
    """A time that is more than none: 1s, 500ms, 2m; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)?", text, re.ASCII)
    value = float(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2] or "s"] if match else 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 500ms, 1s or 2m")
    return value

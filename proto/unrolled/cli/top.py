"""unrolled top: the server's figures, live, from its metrics endpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from unrolled import Client
from unrolled.cli.options import seconds
from unrolled.cli.problems import Problem

if TYPE_CHECKING:
    from unrolled.top.watch import Picture

DEFAULT_URL = "http://127.0.0.1:9464/metrics"
_PATIENCE = 5.0
"""Seconds after which a silent endpoint is called unreachable."""


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    parser = commands.add_parser(
        "top",
        parents=[shared],
        allow_abbrev=False,
        help="what the server does, live, from its metrics",
        description="Shows rates, latencies and what is used of the limits, each over the time"
        " since the last look. Ctrl-C leaves.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--metrics",
        type=_url,
        default=os.environ.get("UNROLLED_METRICS") or DEFAULT_URL,
        metavar="URL",
        help="the endpoint, or its HOST:PORT (default: UNROLLED_METRICS, else 127.0.0.1:9464)",
    )
    parser.add_argument(
        "--interval", type=seconds, default=1.0, metavar="TIME", help="between two looks (1s)"
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("--json", action="store_true", help="print figures as lines of JSON")


def run(client: Client, arguments: argparse.Namespace) -> None:
    try:
        import unrolled.top.view  # noqa: F401 - all that the extra brings
    except ModuleNotFoundError as error:
        raise Problem(f"top needs {error.name}: pip install 'unrolled[top]'", 1) from None
    pictures = _pictures(arguments.metrics, arguments.interval)
    try:
        if arguments.json:
            _print_json(pictures, arguments.once)
        elif arguments.once:
            _print_one(pictures, arguments.metrics)
        else:
            _show(pictures, arguments.metrics)
    except KeyboardInterrupt:
        # The way to leave; only before the end was in sight is it an interruption.
        if arguments.once:
            raise


def _pictures(url: str, interval: float) -> Iterator[Picture]:
    from unrolled.top.scrape import fetch
    from unrolled.top.watch import Watch

    watch = Watch(lambda: fetch(url, _PATIENCE))
    while True:
        yield watch.look()
        time.sleep(interval)


def _print_json(pictures: Iterator[Picture], once: bool) -> None:
    for seen in pictures:
        if seen.problem is not None:
            if once:
                raise Problem(seen.problem, 1)
            print(f"unrolled: {seen.problem}", file=sys.stderr)
        elif seen.history:
            print(json.dumps(dataclasses.asdict(seen.history[-1])), flush=True)
            if once:
                return


def _print_one(pictures: Iterator[Picture], url: str) -> None:
    from rich.console import Console

    from unrolled.top.view import picture

    for seen in pictures:
        if seen.problem is not None:
            raise Problem(seen.problem, 1)
        if seen.history:
            console = Console()
            console.print(picture(seen, url, console.width))
            return


def _show(pictures: Iterator[Picture], url: str) -> None:
    """On a terminal that can, one picture in place of the other, else one after the other."""
    from rich.console import Console
    from rich.live import Live

    from unrolled.top.view import picture

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        for seen in pictures:
            console.print(picture(seen, url, console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for seen in pictures:
            live.update(picture(seen, url, console.width), refresh=True)


def _url(text: str) -> str:
    """A whole URL as it is; of HOST:PORT the endpoint's."""
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is not the URL of a metrics endpoint")
    return text if parts.path not in ("", "/") else parts._replace(path="/metrics").geturl()

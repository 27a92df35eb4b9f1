"""Measure the server, print how far each figure has come, and keep what came out.

Each FIGURE selects those whose names begin with it; without one, all are measured but
million_sessions. Each is a JSON object on a line of latest.jsonl (figure, value, unit, detail) and,
with the commit, of history.jsonl, and a chart NAME.png. The exit status says whether everything
could be measured, not what came out.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.chart import draw
from bench.figure import Bench, Figure, Group, Result, Settings
from bench.generator import Generator
from bench.models import ModelCache
from bench.progress import say
from bench.records import Records, table
from bench.registry import GROUPS, select


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        wanted = select(arguments.figures)
    except ValueError as error:
        parser.error(str(error))
    folder: Path = arguments.output.resolve()
    folder.mkdir(exist_ok=True)
    records, results, failed = Records(folder), [], []
    with Generator() as generator:
        bench = Bench(_settings(arguments), ModelCache(folder / "models"), generator, folder)
        for group in GROUPS:
            try:
                for result in _wanted(group, bench, wanted):
                    records.add(result)
                    draw(folder / f"{result.figure.name}.png", result)
                    results.append(result)
            except Exception:
                # The others are measured nevertheless: they may be half an hour's work.
                traceback.print_exc()
                failed += [figure.name for figure in group.figures if figure in wanted]
    if results:
        print(table(results))
    if failed:
        say(f"could not be measured: {', '.join(failed)}")
    return 1 if failed else 0


def _wanted(group: Group, bench: Bench, wanted: Sequence[Figure]) -> Iterator[Result]:
    """Measure a group if any of its figures is wanted, and give those."""
    if not any(figure in wanted for figure in group.figures):
        return
    for result in group.measure(bench):
        if result.figure in wanted:
            say(f"{result.figure.name} = {result.value:.4g} {result.figure.unit}")
            yield result


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        arguments.rounds, arguments.seconds, arguments.sessions, arguments.prompt_characters
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=_Formatter
    )
    parser.add_argument("figures", metavar="FIGURE", nargs="*", help="beginning of a name")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--rounds", type=int, default=5, help="whose median is taken")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument(
        "--sessions", type=int, default=1_000_000, help="held at once for session_bytes"
    )
    parser.add_argument(
        "--prompt-characters", type=int, default=100_000, help="fed for seconds_per_100k"
    )
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the description as it is."""


if __name__ == "__main__":
    sys.exit(main())

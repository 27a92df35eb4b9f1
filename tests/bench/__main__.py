"""Measure the server against the bare loop over the same graph, and say what came out.

Each figure is one JSON object on a line of latest.jsonl (figure, value, unit, detail), and of
history.jsonl with the commit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from support.server import RunningServer, running_server

from bench.bare import fastest
from bench.rate import Rate
from bench.served import ServedLoad

MODEL = "shakespeare-lstm"
STREAMS = (1, 64)


def main() -> None:
    """Run all figures."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    figures = []
    with running_server(arguments.models) as server:
        for streams in STREAMS:
            figures += compare(server, arguments, streams)
    write(arguments.output, figures)


def compare(
    server: RunningServer, arguments: argparse.Namespace, streams: int
) -> list[dict[str, Any]]:
    """Serve and run bare in turns; figures of the ratios by CPU time and by wall time."""
    by_wall, by_cpu = fastest(arguments.models / MODEL / "1", streams)
    load = ServedLoad(server, MODEL, streams)
    cpu, wall = [], []
    for _ in range(arguments.rounds):
        served = load.measure(arguments.seconds)
        cpu.append((served, by_cpu.measure(arguments.seconds)))
        wall.append((served, by_wall.measure(arguments.seconds)))
    name = f"{streams}_fp32"
    return [
        figure(f"served_over_bare_{name}", "CPU-second", per_cpu_second(cpu), by_cpu.name),
        figure(f"served_over_bare_wall_{name}", "second", per_second(wall), by_wall.name),
    ]


Pairs = list[tuple[Rate, Rate]]


def per_cpu_second(pairs: Pairs) -> list[tuple[float, float]]:
    """Served and bare tokens per second of CPU time."""
    return [(served.per_cpu_second, bare.per_cpu_second) for served, bare in pairs]


def per_second(pairs: Pairs) -> list[tuple[float, float]]:
    """Served and bare tokens per second of wall time."""
    return [(served.per_second, bare.per_second) for served, bare in pairs]


def figure(name: str, unit: str, rates: list[tuple[float, float]], setting: str) -> dict[str, Any]:
    """One figure: the median ratio of the rounds, printed as it is known."""
    ratios = [served / bare for served, bare in rates]
    value, low, high = (round(f(ratios), 3) for f in (statistics.median, min, max))
    served, bare = (round(statistics.median(side)) for side in zip(*rates, strict=True))
    print(
        f"{name:29} {value:5.3f} ({low:.3f} to {high:.3f})   tokens per {unit}: "
        f"served {served:,}, bare {bare:,} with {setting}",
        flush=True,
    )
    detail = {
        "model": MODEL,
        "rounds": len(rates),
        "range": [low, high],
        "served": served,
        "bare": bare,
        "bare_setting": setting,
        "of": f"tokens per {unit}",
    }
    return {"figure": name, "value": value, "unit": "ratio", "detail": detail}


def write(folder: Path, figures: list[dict[str, Any]]) -> None:
    """Replace latest.jsonl, extend history.jsonl."""
    folder.mkdir(exist_ok=True)
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    (folder / "latest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in figures))
    with (folder / "history.jsonl").open("a") as history:
        history.writelines(json.dumps({"commit": commit, **line}) + "\n" for line in figures)


if __name__ == "__main__":
    main()

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
    """Serve and run bare in turns; figures of the ratios by wall time and by CPU time."""
    bare = fastest(arguments.models / MODEL / "1", streams)
    load = ServedLoad(server, MODEL, streams)
    pairs = [
        (load.measure(arguments.seconds), bare.measure(arguments.seconds))
        for _ in range(arguments.rounds)
    ]
    wall = [served.per_second / alone.per_second for served, alone in pairs]
    cpu = [served.per_cpu_second / alone.per_cpu_second for served, alone in pairs]
    detail = {
        "model": MODEL,
        "served_tokens_per_second": round(statistics.median(s.per_second for s, _ in pairs)),
        "bare_tokens_per_second": round(statistics.median(b.per_second for _, b in pairs)),
        "bare_setting": bare.name,
        "rounds": arguments.rounds,
    }
    return [
        figure(f"served_over_bare_{streams}_fp32", cpu, detail),
        figure(f"served_over_bare_wall_{streams}_fp32", wall, detail),
    ]


def figure(name: str, ratios: list[float], detail: dict[str, Any]) -> dict[str, Any]:
    """One figure: the median of the rounds, printed as it is known."""
    value = round(statistics.median(ratios), 3)
    spread = [round(min(ratios), 3), round(max(ratios), 3)]
    print(
        f"{name:32} {value:6.3f}   {spread[0]:.3f} to {spread[1]:.3f}   "
        f"served {detail['served_tokens_per_second']:,} tokens/s, "
        f"bare {detail['bare_tokens_per_second']:,} ({detail['bare_setting']})"
    )
    return {
        "figure": name,
        "value": value,
        "unit": "ratio",
        "detail": {**detail, "range": spread},
    }


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

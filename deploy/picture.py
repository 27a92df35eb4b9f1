"""Draws the dashboard's queries from a Prometheus, for those who have no Grafana at hand.

    python deploy/picture.py http://127.0.0.1:9090 --minutes 5 --output dashboard.png

Needs matplotlib. Panels of lines are drawn in the dashboard's order; a line that is 0 all along is
left out where others are not.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter

DASHBOARD = Path(__file__).parent / "grafana" / "unrolled.json"
POINTS = 120
COLUMNS = 3
DPI = 80
FORMATS = {
    "s": EngFormatter("s"),
    "percentunit": FuncFormatter(lambda share, _: f"{share:.0%}"),
    "bytes": EngFormatter("B"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboard from a Prometheus.")
    parser.add_argument("prometheus", metavar="URL")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--window", default="1m", help="that rates are taken over")
    parser.add_argument("--panel", action="append", metavar="TITLE", help="only this; repeatable")
    parser.add_argument("--output", type=Path, default=Path("dashboard.png"))
    arguments = parser.parse_args()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = [panel for panel in panels if panel["type"] == "timeseries"]
    if arguments.panel:
        drawn = [panel for panel in drawn if panel["title"] in arguments.panel]
    rows = math.ceil(len(drawn) / COLUMNS)
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(15, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, drawn, strict=False):
        draw(axis, panel, arguments)
    figure.savefig(arguments.output, dpi=DPI)


def draw(axis: Axes, panel: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One panel: every line of every query, over the minutes until now."""
    end = time.time()
    lines = []
    for target in panel["targets"]:
        for series in ask(target["expr"], end, arguments):
            times = [(float(at) - end) / 60 for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            lines.append((legend(target["legendFormat"], series["metric"]), times, values))
    moving = [line for line in lines if any(value > 0 for value in line[2])]
    for label, times, values in moving or lines:
        axis.plot(times, values, lw=1.2, label=label)
    axis.set_title(panel["title"], fontsize=10, loc="left")
    axis.set_xlim(-arguments.minutes, 0)
    # Room for the legend above the lines.
    axis.set_ylim(0, axis.get_ylim()[1] * 1.5)
    axis.set_xlabel("minutes", fontsize=7)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=7)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if unit in FORMATS:
        axis.yaxis.set_major_formatter(FORMATS[unit])
    if axis.lines:
        axis.legend(fontsize=6, loc="upper center", ncols=2)


def ask(expression: str, end: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The series of a query from `minutes` ago until `end`."""
    query = expression.replace("$__rate_interval", arguments.window).replace("$instance", ".*")
    seconds = arguments.minutes * 60
    parameters = {
        "query": query,
        "start": str(end - seconds),
        "end": str(end),
        "step": str(seconds / POINTS),
    }
    url = f"{arguments.prometheus}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the user's own
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def legend(template: str, labels: dict[str, str]) -> str:
    """Grafana's {{label}} filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


if __name__ == "__main__":
    main()

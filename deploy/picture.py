"""Draws the dashboard's queries from a Prometheus, for those who have no Grafana at hand.

    python deploy/picture.py http://127.0.0.1:9090 --minutes 5 --output dashboard.png

Needs matplotlib. Questions and panels come in the dashboard's order: numbers as they are now, lines
over the minutes until now. A line that is 0 all along is left out where others are not.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator

DASHBOARD = Path(__file__).parent / "grafana" / "unrolled.json"
POINTS = 120
COLUMNS, TILES = 3, 5
DPI = 100
WIDTH, HEADING, TILE, PANEL = 12.0, 0.35, 0.75, 2.1
"""Inches: of all, and the heights of a question's parts."""
FORMATS: dict[str, Formatter] = {
    "s": EngFormatter("s"),
    "percentunit": FuncFormatter(lambda share, _: f"{share:.0%}"),
    "bytes": EngFormatter("B"),
}
SPANS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
GREEN = "#2a7f3f"

Json: TypeAlias = dict[str, Any]
Line: TypeAlias = tuple[str, list[float], list[float]]
"""What it is called, minutes before now, values."""


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the minutes that are drawn."""

    url: str
    minutes: float
    window: str
    """That rates are taken over."""
    end: float

    def lines(self, target: Json) -> list[Line]:
        """The series of a query."""
        seconds = self.minutes * 60
        expression = target["expr"].replace("$__rate_interval", self.window)
        parameters = {
            "query": expression.replace("$instance", ".*"),
            "start": str(self.end - seconds),
            "end": str(self.end),
            "step": str(seconds / POINTS),
        }
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the user's own
            result = json.load(answer)["data"]["result"]
        return [self._line(target["legendFormat"], series) for series in result]

    def _line(self, template: str, series: Json) -> Line:
        # Grafana's {{label}}, filled in.
        name = re.sub(r"\{\{(\w+)\}\}", lambda match: series["metric"].get(match[1], ""), template)
        times = [(float(at) - self.end) / 60 for at, _ in series["values"]]
        return name, times, [float(value) for _, value in series["values"]]


@dataclass(frozen=True)
class Strip:
    """What is drawn side by side: cells of equal width, `places` in all."""

    inches: float
    places: int
    cells: Sequence[Callable[[Axes], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboard from a Prometheus.")
    parser.add_argument("prometheus", metavar="URL")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--window", default="1m", help="that rates are taken over")
    parser.add_argument("--panel", action="append", metavar="TITLE", help="only this; repeatable")
    parser.add_argument("--output", type=Path, default=Path("dashboard.png"))
    arguments = parser.parse_args()
    source = Source(arguments.prometheus, arguments.minutes, arguments.window, time.time())
    strips = list(laid_out(json.loads(DASHBOARD.read_text())["panels"], arguments.panel, source))
    figure = pyplot.figure(figsize=(WIDTH, sum(strip.inches for strip in strips)))
    figure.set_layout_engine("constrained")
    heights = [strip.inches for strip in strips]
    grid = figure.add_gridspec(len(strips), 1, height_ratios=heights)
    for row, strip in enumerate(strips):
        places = grid[row].subgridspec(1, strip.places)
        for place, cell in enumerate(strip.cells):
            cell(figure.add_subplot(places[place]))
    figure.savefig(arguments.output, dpi=DPI)


def laid_out(
    panels: Sequence[Json], titles: Sequence[str] | None, source: Source
) -> Iterator[Strip]:
    """Questions with their numbers, then their lines; of `titles` where there are any."""
    starts = [place for place, panel in enumerate(panels) if panel["type"] == "row"]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        wanted = [
            panel for panel in panels[start + 1 : end] if titles is None or panel["title"] in titles
        ]
        tiles = [partial(draw_tile, panel, source) for panel in wanted if panel["type"] == "stat"]
        drawings = [
            partial(draw_lines, panel, source) for panel in wanted if panel["type"] != "stat"
        ]
        if wanted:
            yield Strip(HEADING, 1, [partial(draw_heading, panels[start]["title"])])
        for first in range(0, len(tiles), TILES):
            yield Strip(TILE, TILES, tiles[first : first + TILES])
        for first in range(0, len(drawings), COLUMNS):
            yield Strip(PANEL, COLUMNS, drawings[first : first + COLUMNS])


def draw_heading(question: str, axis: Axes) -> None:
    axis.set_axis_off()
    axis.text(0, 0, question, fontsize=13, fontweight="bold")


def draw_tile(panel: Json, source: Source, axis: Axes) -> None:
    """The newest value of each series, and what it is of."""
    axis.set_axis_off()
    axis.set_title(panel["title"], fontsize=8, color="gray")
    lines = [line for target in panel["targets"] for line in source.lines(target)]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = ", ".join(number(values[-1], unit) for _, _, values in lines)
    axis.text(0.5, 0.55, values or "-", ha="center", va="center", fontsize=16, color=GREEN)
    names = ", ".join(name for name, _, _ in lines)
    axis.text(0.5, 0.05, names, ha="center", va="center", fontsize=7, color="gray")


def number(value: float, unit: str) -> str:
    """As Grafana writes a value of this unit."""
    if unit == "s":
        name, size = next((n, s) for n, s in SPANS if value >= s or s == 1)
        return f"{value / size:.3g} {name}"
    return f"{value:.3g}/s" if unit == "reqps" else f"{value:g}"


def draw_lines(panel: Json, source: Source, axis: Axes) -> None:
    """Every line of every query; one on top of the other where they add up."""
    lines = [line for target in panel["targets"] for line in source.lines(target)]
    moving = [line for line in lines if any(value > 0 for value in line[2])]
    defaults = panel["fieldConfig"]["defaults"]
    floor: dict[float, float] = defaultdict(float)
    for name, times, values in moving or lines:
        if defaults["custom"]["stacking"]["mode"] == "none":
            axis.plot(times, values, lw=1.3, label=name)
            continue
        below = [floor[at] for at in times]
        for at, value in zip(times, values, strict=True):
            floor[at] += value
        axis.fill_between(times, below, [floor[at] for at in times], alpha=0.6, lw=0, label=name)
    axis.set_title(panel["title"], fontsize=9, loc="left")
    axis.set_xlim(-source.minutes, 0)
    # Room for the legend above the lines.
    axis.set_ylim(0, axis.get_ylim()[1] * 1.45 if moving else 1)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g} min" if at else "now"))
    if defaults["unit"] in FORMATS:
        axis.yaxis.set_major_formatter(FORMATS[defaults["unit"]])
    if moving or lines:
        axis.legend(fontsize=6.5, loc="upper left", ncols=2, frameon=False).set_in_layout(False)


if __name__ == "__main__":
    main()

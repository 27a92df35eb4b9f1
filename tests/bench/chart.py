"""A PNG for each figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from bench.figure import Result


def draw(path: Path, result: Result) -> None:
    """The value and what it was made of as bars, reach and goal as lines."""
    figure = result.figure
    canvas = Canvas(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    bars = {figure.name: result.value, **result.bars}
    colors = ["tab:blue", *["lightsteelblue"] * len(result.bars)]
    drawn = axes.barh(list(bars), list(bars.values()), color=colors)
    axes.bar_label(drawn, fmt="%.4g", label_type="center")
    axes.invert_yaxis()
    for label, bound, style in (("reach", figure.reach, "--"), ("goal", figure.goal, "-")):
        if bound is not None:
            axes.axvline(bound, color="black", linestyle=style, label=f"{label} {bound:.4g}")
    if figure.reach is not None:
        canvas.legend(loc="outside lower center", ncols=2)
    axes.set_xlim(left=0)
    axes.set_xlabel(figure.unit)
    axes.set_title(figure.what + (f" ({result.reduced} only)" if result.reduced else ""), wrap=True)
    canvas.savefig(path, dpi=100)

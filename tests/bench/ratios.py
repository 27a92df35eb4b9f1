"""Results that are ratios of what was measured in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.figure import Figure, Result


def ratio(figure: Figure, over: Sequence[float], under: Sequence[float], **detail: Any) -> Result:
    """The median of the rounds' ratios; the detail has the medians of both sides."""
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    sides = {"over": _short(statistics.median(over)), "under": _short(statistics.median(under))}
    return median(figure, ratios, **sides, **detail)


def median(figure: Figure, values: Sequence[float], **detail: Any) -> Result:
    """The median of the rounds' values."""
    bars = {f"round {number}": round(value, 4) for number, value in enumerate(values, 1)}
    spread = {"rounds": len(values), "range": [round(min(values), 4), round(max(values), 4)]}
    value = round(statistics.median(values), 4)
    return Result(figure, value, {**spread, **detail}, bars)


def _short(value: float) -> float:
    """To five significant digits."""
    return float(f"{value:.5g}")

"""What is kept of a run: JSON lines, and a table at the end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.figure import Result


class Records:
    """latest.jsonl has the figures of this run, history.jsonl those of all, with the commit."""

    def __init__(self, folder: Path) -> None:
        self._latest, self._history = folder / "latest.jsonl", folder / "history.jsonl"
        self._commit = _commit()
        self._latest.write_text("")

    def add(self, result: Result) -> None:
        """Written at once: a run that is broken off keeps what it has measured."""
        line = _line(result)
        _append(self._latest, line)
        _append(self._history, {"commit": self._commit, **line})


def _line(result: Result) -> dict[str, Any]:
    figure, detail = result.figure, dict(result.detail)
    if result.reduced:
        detail["reduced_to"] = result.reduced
    return {"figure": figure.name, "value": result.value, "unit": figure.unit, "detail": detail}


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _commit() -> str:
    """The commit and whether the working tree differs from it; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def table(results: Sequence[Result]) -> str:
    """A line for each result."""
    lines = [("figure", "value", "", "reach", "goal", "")]
    lines += [_row(result) for result in results]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    left = (True, False, True, False, False, True)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _row(result: Result) -> tuple[str, str, str, str, str, str]:
    figure = result.figure
    unit = "" if figure.unit == "ratio" else figure.unit
    reach, goal = ("" if bound is None else f"{bound:.4g}" for bound in (figure.reach, figure.goal))
    verdict = figure.verdict(result.value)
    note = f" ({result.reduced} only)" if result.reduced else ""
    return figure.name, f"{result.value:.4g}", unit, reach, goal, verdict + note

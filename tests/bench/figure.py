"""What the benchmark measures: figures, what came out, and the interface of a group of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.generator import Generator
    from bench.models import ModelCache


@dataclass(frozen=True)
class Figure:
    """One number, and what it should come to: at least that where `goal` is above `reach`."""

    name: str
    unit: str
    what: str
    """One line for the chart."""
    reach: float | None = None
    goal: float | None = None

    def verdict(self, value: float) -> str:
        """How far `value` has come: goal, reached, missed, or - where nothing is asked."""
        if self.reach is None or self.goal is None:
            return "-"
        sign = 1 if self.goal > self.reach else -1
        if sign * value >= sign * self.goal:
            return "goal"
        return "reached" if sign * value >= sign * self.reach else "missed"


@dataclass(frozen=True)
class Result:
    """What a figure came to."""

    figure: Figure
    value: float
    detail: Mapping[str, Any]
    bars: Mapping[str, float] = field(default_factory=dict)
    """What the chart shows beside the value: rounds, or sizes."""
    reduced: str = ""
    """In what it was measured on less than the figure asks for; empty where it was not."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of one measurement in a round."""
    sessions: int
    prompt_characters: int
    """Of the long prompts."""


@dataclass(frozen=True)
class Bench:
    """What groups measure with."""

    settings: Settings
    models: ModelCache
    generator: Generator
    folder: Path
    """Where measurements may have files."""


@dataclass(frozen=True)
class Group:
    """Figures that are measured together; all of them come out, in any order."""

    figures: tuple[Figure, ...]
    measure: Callable[[Bench], Iterator[Result]]
    only_if_named: bool = False
    """It takes so long that it is left out where figures are not named."""

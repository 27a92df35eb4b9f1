"""Tokens over time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """A measurement."""

    tokens: int
    seconds: float
    """Of wall time."""
    cpu_seconds: float
    """Of the process that did the work."""

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.tokens / self.cpu_seconds

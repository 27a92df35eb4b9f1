"""Tokens over time, and what a load brings home."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Rate:
    """Tokens, told and drawn alike, and what they took."""

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


def per_second(rate: Rate) -> float:
    """Tokens per second of wall time."""
    return rate.per_second


def per_cpu_second(rate: Rate) -> float:
    """Tokens per second of CPU time."""
    return rate.per_cpu_second


@dataclass(frozen=True)
class Sample:
    """What streams saw of a server in a stretch of time."""

    rate: Rate
    drawn: int
    """Of the rate's tokens."""
    first_tokens: list[float]
    """Seconds from each request to its first token."""
    gaps: list[tuple[float, int]]
    """Seconds from a message to the next of the same turn, and the tokens of that one."""
    turns: list[float] = field(default_factory=list)
    """Seconds of each turn that ended."""

    @property
    def turns_per_second(self) -> float:
        return len(self.turns) / self.rate.seconds

    def turn(self, percentile: float) -> float:
        """Seconds from a request to its outcome."""
        return float(np.percentile(self.turns, percentile))

    def first_token(self, percentile: float) -> float:
        """Time to first token, seconds."""
        return float(np.percentile(self.first_tokens, percentile))

    def inter_token(self, percentile: float) -> float:
        """Inter-token latency, seconds: a message's gap is shared out evenly over its tokens."""
        gaps, tokens = np.array(self.gaps).T
        return float(np.percentile(np.repeat(gaps / tokens, tokens.astype(int)), percentile))

    def between_messages(self, percentile: float) -> float:
        """Seconds between the messages of a turn."""
        return float(np.percentile([gap for gap, _ in self.gaps], percentile))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident set size of a process (proc(5), statm, field 2)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

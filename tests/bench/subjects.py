"""What more than one group measures: the models, served on the CPU, and loads on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.server import RunningServer, running_server

from bench.load import Load
from bench.models import Models, Recipe

LARGE = Recipe(layers=2, hidden=512, precisions=("fp32", "int8"))
"""The model of all comparisons; 8 KB of state."""
SMALL = Recipe(layers=1, hidden=128)
"""1 KB of state."""
TINY = Recipe(layers=1, hidden=32)
"""So small that a million tokens are fed in a minute."""


@contextmanager
def serving(models: Models, *flags: str) -> Iterator[RunningServer]:
    """A server process with sessions in memory and default settings but for `flags`."""
    with running_server(models.served, "--device", "cpu", "--store", "memory", *flags) as server:
        # Each turn that is slow has a line, and of 256 streams' most are.
        server.follow_log()
        yield server


def load(server: RunningServer, model: str, streams: int) -> Load:
    """Streams of turns in sessions."""
    return Load(server.address, server.process.pid, model, streams)

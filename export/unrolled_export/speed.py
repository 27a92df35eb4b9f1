"""How fast one graph is beside another, measured in turns in one thread."""

from __future__ import annotations

import time

import numpy as np

from unrolled_export.network import Network
from unrolled_export.progress import Advance, Progress
from unrolled_export.reference import initial_states
from unrolled_export.runners import EngineRunner

BATCHES = (1, 64)
STEPS = 16
"""Of one run."""
ROUNDS = 5
SECONDS = 0.15
"""Of one turn, at least."""


def speed_ratios(
    network: Network, engine: EngineRunner, base: EngineRunner, progress: Progress
) -> dict[int, float]:
    """By batch size: tokens per second of `engine` over those of `base`, best of the rounds."""
    with progress("measuring", len(BATCHES) * ROUNDS) as advance:
        return {rows: _ratio(network, engine, base, rows, advance) for rows in BATCHES}


def _ratio(
    network: Network, engine: EngineRunner, base: EngineRunner, rows: int, advance: Advance
) -> float:
    best: dict[EngineRunner, float] = {}
    for _ in range(ROUNDS):
        for runner in (base, engine):
            best[runner] = max(best.get(runner, 0.0), _rate(network, runner, rows))
        advance(1)
    return best[engine] / best[base]


def _rate(network: Network, runner: EngineRunner, rows: int) -> float:
    """Tokens per second of one turn."""
    states, runs = initial_states(network, rows), 0
    window = np.arange(rows * (STEPS + 1)).reshape(rows, -1) % network.vocabulary_size
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        _, states = runner.advance(window, states)
        runs += 1
    return runs * rows * STEPS / elapsed

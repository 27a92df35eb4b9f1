"""The check of the graphs for a device, made on the CPU: a step computes what the engine's does.

Both take every step from the engine's state, so that what is compared is the step alone: in fp16
the two round at different places, and their states drift apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.device_graph import STEP
from unrolled_export.errors import ParityError
from unrolled_export.network import Floats, Network
from unrolled_export.precision import Precision
from unrolled_export.reference import States, Tokens, initial_states
from unrolled_export.runners import DRAW, EngineRunner
from unrolled_export.runtime import Graph

ROWS, STEPS = 3, 64
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 0.05}
"""Largest difference of a log-probability, in nats."""


def check_device(
    network: Network, precision: Precision, step: bytes, engine: EngineRunner
) -> float:
    """The largest difference of a log-probability, in nats, over a text that `engine` draws.

    Raises ParityError where it is larger than the precision explains.
    """
    graph, states = Graph(STEP, step), initial_states(network, ROWS)
    text = _text(network, engine, states)
    worst = 0.0
    for place in range(STEPS):
        window = text[:, place : place + 2]
        found = _run(graph, window, states)
        expected, states = engine.advance(window, states)
        worst = max(worst, float(np.abs(found - expected[:, 0]).max()))
    # Not a number is no agreement either.
    if not worst <= TOLERANCES[precision]:
        raise ParityError(
            f"{STEP}: log-probabilities differ by {worst:.2g} nats from those of {engine.name}; "
            f"{TOLERANCES[precision]:g} are allowed"
        )
    return worst


def _text(network: Network, engine: EngineRunner, states: States) -> Tokens:
    """Tokens [B, T + 1]."""
    first = np.arange(ROWS) % network.vocabulary_size
    drawn = engine.draw(first, np.full((ROWS, STEPS), DRAW), states, greedy=False)
    return np.column_stack([first, drawn])


def _run(graph: Graph, window: Tokens, states: States) -> Floats:
    """Log-probabilities [B, V] behind the first of two tokens."""
    feeds: dict[str, NDArray[Any]] = {
        "pending": window[:, 0].astype(np.int32),
        "told": window[:, 1].astype(np.int32),
        "uniforms": np.zeros(ROWS),
        "divisor": np.ones(ROWS, np.float32),
        **states,
    }
    logprobs: Floats = graph.run(feeds)["logprobs"]
    return logprobs

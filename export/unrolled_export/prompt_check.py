"""The check of the prompt graph: it leads to the bits that the engine's graph leads to."""

from __future__ import annotations

import numpy as np

from unrolled_export.network import Network
from unrolled_export.reference import States, Tokens, initial_states
from unrolled_export.repository import PROMPT
from unrolled_export.runners import DRAW, EngineRunner
from unrolled_export.runtime import Graph

STEPS = 32
"""Of each of two runs: the second begins with what the first leads to."""


def has_same_bits(network: Network, prompt: bytes, engine: EngineRunner) -> bool:
    """Whether both graphs lead to the same states over a text that `engine` draws."""
    graph = Graph(PROMPT, prompt)
    return all(_agree(network, graph, engine, rows) for rows in (1, 3))


def _agree(network: Network, graph: Graph, engine: EngineRunner, rows: int) -> bool:
    states = ours = initial_states(network, rows)
    text = _text(network, engine, states)
    for start in (0, STEPS):
        window = text[:, start : start + STEPS + 1]
        _, states = engine.advance(window, states)
        ours = _fed(network, graph, window[:, :-1], ours)
        if any(ours[name].tobytes() != state.tobytes() for name, state in states.items()):
            return False
    return True


def _fed(network: Network, graph: Graph, tokens: Tokens, states: States) -> States:
    """The states after tokens [B, T]."""
    fed = np.ascontiguousarray(tokens.T, np.int32)
    outputs = graph.run({"fed": fed, **states})
    return {name: outputs[next_name] for name, next_name in network.state_names.items()}


def _text(network: Network, engine: EngineRunner, states: States) -> Tokens:
    """Tokens [B, 2 * STEPS + 1]."""
    rows = len(next(iter(states.values())))
    first = np.arange(rows) % network.vocabulary_size
    drawn = engine.draw(first, np.full((rows, 2 * STEPS), DRAW), states, greedy=False)
    return np.column_stack([first, drawn])

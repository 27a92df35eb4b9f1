"""The reference that exported graphs are compared with."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Floats, Network

Tokens = NDArray[np.int64]
States = dict[str, NDArray[Any]]
"""State tensors [B, H] by the name of the graphs' input."""


class Reference(Protocol):
    """An implementation of a network that shares no code with the graphs."""

    @property
    def name(self) -> str:
        """What computes it, with its version."""

    def advance(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        """Feed tokens [B, T] in turn: natural log-probabilities [B, T, V] of what follows each,
        and the states after the last."""


def initial_states(network: Network, rows: int) -> States:
    """The states before any token."""
    states = network.states
    starts = network.initial or [np.zeros(state.size, np.float32) for state in states]
    return {
        state.input: np.tile(start, (rows, 1)) for state, start in zip(states, starts, strict=True)
    }

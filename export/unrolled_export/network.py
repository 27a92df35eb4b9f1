"""The canonical form of a recurrent language model, whatever checkpoint it came from.

Arrays are float32 in PyTorch's layout and gate order (LSTM i, f, g, o; GRU r, z, n with
the reset gate applied after the product), so that a layer means exactly what the
equations of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Cell(StrEnum):
    """The recurrence of every layer."""

    RNN_TANH = "rnn_tanh"
    RNN_RELU = "rnn_relu"
    LSTM = "lstm"
    GRU = "gru"

    @property
    def gates(self) -> int:
        """Rows of a weight matrix per hidden unit."""
        return {"lstm": 4, "gru": 3}.get(self.value, 1)


@dataclass(frozen=True)
class Layer:
    """One recurrent layer of G gates, input width I and hidden size H."""

    weight_ih: Floats
    """[G*H, I]"""
    weight_hh: Floats
    """[G*H, H]"""
    bias_ih: Floats
    """[G*H]; zeros where the checkpoint has none."""
    bias_hh: Floats
    """[G*H]; zeros where the checkpoint has none."""

    @property
    def input_size(self) -> int:
        return int(self.weight_ih.shape[1])

    @property
    def hidden_size(self) -> int:
        return int(self.weight_hh.shape[1])


@dataclass(frozen=True)
class State:
    """One state tensor of one layer, and its names in every exported graph."""

    kind: str
    """`h`, or `c` for the cell state of an LSTM."""
    layer: int
    size: int

    @property
    def input(self) -> str:
        return f"{self.kind}_{self.layer:02d}"

    @property
    def output(self) -> str:
        # Sorts like the input: Triton pairs states by sorted name.
        return f"next_{self.input}"


@dataclass(frozen=True)
class Network:
    """A recurrent language model over V tokens."""

    cell: Cell
    embedding: Floats | None
    """[V, E]; None where the first layer reads one-hot tokens (its input size is V)."""
    layers: tuple[Layer, ...]
    head_weight: Floats
    """[V, H of the last layer]"""
    head_bias: Floats
    """[V]; zeros where the checkpoint has none."""
    parameters: int
    """Trained numbers in the checkpoint, a tied head counted once, absent biases not at all."""

    @property
    def vocabulary_size(self) -> int:
        return int(self.head_weight.shape[0])

    @property
    def states(self) -> tuple[State, ...]:
        """The state tensors, bottom layer first, h before c."""
        kinds = ("h", "c") if self.cell is Cell.LSTM else ("h",)
        return tuple(
            State(kind, index, layer.hidden_size)
            for index, layer in enumerate(self.layers)
            for kind in kinds
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one row's state."""
        return sum(4 * state.size for state in self.states)

    def states_of(self, index: int) -> tuple[State, ...]:
        """The state tensors of one layer, h before c."""
        return tuple(state for state in self.states if state.layer == index)

    def arrays(self) -> Iterator[tuple[str, Floats]]:
        """Every array with a name of its own, in an order that never changes."""
        if self.embedding is not None:
            yield "embedding", self.embedding
        for index, layer in enumerate(self.layers):
            for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                yield f"{field}_{index}", getattr(layer, field)
        yield "head_weight", self.head_weight
        yield "head_bias", self.head_bias

"""The canonical form of a recurrent language model, whatever checkpoint it came from.

Arrays are float32 in PyTorch's layout and gate order (LSTM i, f, g, o; GRU r, z, n), so that
a layer means exactly what the equations of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN say.
What other frameworks do otherwise, the reset gate of a GRU before the product and the hard
sigmoid, are fields of the network.
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


class Gate(StrEnum):
    """What squashes the gates of an LSTM or GRU to [0, 1]."""

    SIGMOID = "sigmoid"
    HARD_SIGMOID_FIFTH = "hard_sigmoid_fifth"
    """clip(x / 5 + 0.5, 0, 1): Keras 1 and 2."""
    HARD_SIGMOID_SIXTH = "hard_sigmoid_sixth"
    """clip(x / 6 + 0.5, 0, 1): Keras 3."""

    @property
    def slope(self) -> float:
        """Of a hard sigmoid."""
        return {"hard_sigmoid_fifth": 1 / 5, "hard_sigmoid_sixth": 1 / 6}[self.value]


class Activation(StrEnum):
    """What a dense stage applies to every element of its product."""

    LINEAR = "linear"
    RELU = "relu"
    TANH = "tanh"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of Ba, Kiros and Hinton (2016) over N elements.

    (x - mean) / sqrt(variance + epsilon) * weight + bias, the variance over N, not N - 1.
    """

    weight: Floats
    """[N]"""
    bias: Floats
    """[N]"""
    epsilon: float


@dataclass(frozen=True)
class Dense:
    """activation(weight x + bias), from N elements to M."""

    weight: Floats
    """[M, N]"""
    bias: Floats
    """[M]"""
    activation: Activation = Activation.LINEAR


Stage = LayerNorm | Dense
"""What a hidden state passes on its way to the head."""


@dataclass(frozen=True)
class Layer:
    """One recurrent layer of G gates, input width I and hidden size H.

    Its output size O is H, or less where an LSTM projects its hidden state.
    """

    weight_ih: Floats
    """[G*H, I]"""
    weight_hh: Floats
    """[G*H, O]"""
    bias_ih: Floats
    """[G*H]; zeros where the checkpoint has none."""
    bias_hh: Floats
    """[G*H]; zeros where the checkpoint has none."""
    weight_hr: Floats | None = None
    """[O, H]: the projection of an LSTM, h = weight_hr (o * tanh(c)), as in torch.nn.LSTM."""
    norm: LayerNorm | None = None
    """Applied to the input; None in the first layer, whose input's norm is in the embedding."""

    @property
    def input_size(self) -> int:
        return int(self.weight_ih.shape[1])

    @property
    def hidden_size(self) -> int:
        """Width of the cell, H."""
        return int((self.weight_hh if self.weight_hr is None else self.weight_hr).shape[1])

    @property
    def output_size(self) -> int:
        """Width of the hidden state, O."""
        return int(self.weight_hh.shape[1])

    @property
    def projection_size(self) -> int:
        """O where the hidden state is projected, else 0."""
        return 0 if self.weight_hr is None else self.output_size


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
    """[V, N], N the output size of the last layer, or of the last stage."""
    head_bias: Floats
    """[V]; zeros where the checkpoint has none."""
    parameters: int
    """Trained numbers in the checkpoint, a tied head counted once, absent biases not at all."""
    stages: tuple[Stage, ...] = ()
    """Between the last layer and the head, in order."""
    gate: Gate = Gate.SIGMOID
    """Of an LSTM or GRU."""
    reset_after: bool = True
    """Where a GRU's reset gate is applied: to the product of the hidden state (True, PyTorch) or
    to the hidden state before the product, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)."""
    initial: tuple[Floats, ...] | None = None
    """The states before any token, [size] each, in the order of `states`; None: zeros."""

    @property
    def vocabulary_size(self) -> int:
        return int(self.head_weight.shape[0])

    @property
    def states(self) -> tuple[State, ...]:
        """The state tensors, bottom layer first, h before c."""
        kinds = ("h", "c") if self.cell is Cell.LSTM else ("h",)
        return tuple(
            State(kind, index, layer.hidden_size if kind == "c" else layer.output_size)
            for index, layer in enumerate(self.layers)
            for kind in kinds
        )

    @property
    def state_names(self) -> dict[str, str]:
        """Of every state's input, the output that follows it."""
        return {state.input: state.output for state in self.states}

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
            for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
                if (array := getattr(layer, field)) is not None:
                    yield f"{field}_{index}", array
            if layer.norm is not None:
                yield f"norm_weight_{index}", layer.norm.weight
                yield f"norm_bias_{index}", layer.norm.bias
        for index, stage in enumerate(self.stages):
            yield f"stage_weight_{index}", stage.weight
            yield f"stage_bias_{index}", stage.bias
        yield "head_weight", self.head_weight
        yield "head_bias", self.head_bias
        for state, values in zip(self.states, self.initial or (), strict=self.initial is not None):
            yield f"initial_{state.input}", values

    def variants(self) -> Iterator[str]:
        """What else decides what the arrays mean, where it is not PyTorch's own."""
        if self.gate is not Gate.SIGMOID:
            yield f"gate {self.gate}"
        if not self.reset_after:
            yield "reset before"
        for index, layer in enumerate(self.layers):
            if layer.norm is not None:
                yield f"norm {index} epsilon {layer.norm.epsilon!r}"
        for index, stage in enumerate(self.stages):
            if isinstance(stage, LayerNorm):
                yield f"stage {index} norm epsilon {stage.epsilon!r}"
            else:
                yield f"stage {index} dense {stage.activation}"

"""The reference in NumPy, float64, for where torch is not installed.

Equations: those printed in the PyTorch documentation of torch.nn.RNN, torch.nn.GRU and
torch.nn.LSTM. They are Elman's network (1990), the LSTM of Hochreiter and Schmidhuber (1997)
with the forget gate of Gers, Schmidhuber and Cummins (2000), and the gated recurrent unit of
Cho et al. (2014) with the reset gate applied after the product. x is a layer's input, h and c
its states, * the product of elements:

RNN     h' = f(W_ih x + b_ih + W_hh h + b_hh), f = tanh or max(0, .)

LSTM    i, f, g, o = the four blocks of W_ih x + b_ih + W_hh h + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

GRU     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr), z alike
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.reference import States, Tokens

Doubles = NDArray[np.float64]
State = tuple[Doubles, Doubles]
"""h and c of one row of one layer, each [H]; only an LSTM uses c."""
Step = Callable[[Doubles, Doubles, State], State]
"""From input product [G*H], hidden product [G*H] and state to the next state."""


class _Weights(NamedTuple):
    """A layer's arrays in float64."""

    weight_ih: Doubles
    weight_hh: Doubles
    bias_ih: Doubles
    bias_hh: Doubles


class NumpyReference:
    """The network in float64."""

    name = f"numpy {np.__version__}"

    def __init__(self, network: Network) -> None:
        self._cell = network.cell
        self._names = [
            [state.input for state in network.states_of(index)]
            for index in range(len(network.layers))
        ]
        embedding = network.embedding
        self._table = np.eye(network.vocabulary_size) if embedding is None else _double(embedding)
        self._layers = [_in_float64(layer) for layer in network.layers]
        self._head, self._head_bias = _double(network.head_weight), _double(network.head_bias)

    def advance(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        # Row by row: BLAS is much faster at products with one vector than with a few.
        # A network that overflows is found by what it returns.
        with np.errstate(over="ignore", invalid="ignore"):
            rows = [
                self._advance_row(row, {name: array[index] for name, array in states.items()})
                for index, row in enumerate(tokens)
            ]
        nexts = {name: np.stack([after[name] for _, after in rows]) for name in states}
        return np.stack([logprobs for logprobs, _ in rows]), nexts

    def _advance_row(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        """As `advance`, for tokens [T] and states [H]."""
        nexts: States = {}
        values = self._table[tokens]
        for names, layer in zip(self._names, self._layers, strict=True):
            before = [_double(states[name]) for name in names]
            values, after = _run_layer(_STEPS[self._cell], layer, values, (before[0], before[-1]))
            nexts |= dict(zip(names, after, strict=False))
        return _log_softmax(values @ self._head.T + self._head_bias).astype(np.float32), nexts


def _in_float64(layer: Layer) -> _Weights:
    return _Weights(*(_double(array) for array in vars(layer).values()))


def _run_layer(step: Step, layer: _Weights, values: Doubles, state: State) -> tuple[Doubles, State]:
    """The layer's outputs [T, H] for inputs [T, I], and its state after them."""
    inputs, outputs = values @ layer.weight_ih.T + layer.bias_ih, []
    for product in inputs:
        state = step(product, layer.weight_hh @ state[0] + layer.bias_hh, state)
        outputs.append(state[0])
    return np.stack(outputs), state


def _tanh_step(inputs: Doubles, hidden: Doubles, state: State) -> State:
    return np.tanh(inputs + hidden), state[1]


def _relu_step(inputs: Doubles, hidden: Doubles, state: State) -> State:
    return np.maximum(inputs + hidden, 0), state[1]


def _lstm_step(inputs: Doubles, hidden: Doubles, state: State) -> State:
    i, f, g, o = np.split(inputs + hidden, 4)
    cell = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(cell), cell


def _gru_step(inputs: Doubles, hidden: Doubles, state: State) -> State:
    input_r, input_z, input_n = np.split(inputs, 3)
    hidden_r, hidden_z, hidden_n = np.split(hidden, 3)
    r, z = _sigmoid(input_r + hidden_r), _sigmoid(input_z + hidden_z)
    n = np.tanh(input_n + r * hidden_n)
    return (1 - z) * n + z * state[0], state[1]


_STEPS: dict[Cell, Step] = {
    Cell.RNN_TANH: _tanh_step,
    Cell.RNN_RELU: _relu_step,
    Cell.LSTM: _lstm_step,
    Cell.GRU: _gru_step,
}


def _sigmoid(values: Doubles) -> Doubles:
    # In terms of tanh, which does not overflow.
    result: Doubles = 0.5 * (1 + np.tanh(0.5 * values))
    return result


def _log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _double(array: NDArray[Any]) -> Doubles:
    return array.astype(np.float64)

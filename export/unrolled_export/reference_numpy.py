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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.reference import Reference

Doubles = NDArray[np.float64]
States = tuple[Doubles, Doubles]
"""h and c, each [H]; only an LSTM uses c."""
Step = Callable[[Doubles, Doubles, States], States]
"""From input product [G*H], hidden product [G*H] and state to the next state."""


def numpy_reference(network: Network) -> Reference:
    """The network in float64."""

    def logprobs(tokens: NDArray[Any]) -> Floats:
        # A network that overflows is found by what it returns.
        with np.errstate(over="ignore", invalid="ignore"):
            # Row by row: BLAS is much faster at products with one vector than with a few.
            return np.stack([_row_logprobs(network, row) for row in tokens])

    return Reference(f"numpy {np.__version__}", logprobs)


def _row_logprobs(network: Network, tokens: NDArray[Any]) -> Floats:
    """From tokens [T] to log-probabilities [T, V]."""
    table = np.eye(network.vocabulary_size) if network.embedding is None else network.embedding
    values = _double(table[tokens])
    for layer in network.layers:
        values = _run_layer(_STEPS[network.cell], layer, values)
    logits = values @ _double(network.head_weight).T + network.head_bias
    return _log_softmax(logits).astype(np.float32)


def _run_layer(step: Step, layer: Layer, values: Doubles) -> Doubles:
    """The layer's outputs [T, H] for inputs [T, I], from the zero state."""
    inputs = values @ _double(layer.weight_ih).T + layer.bias_ih
    weight, outputs = _double(layer.weight_hh), []
    state = (np.zeros(layer.hidden_size), np.zeros(layer.hidden_size))
    for product in inputs:
        state = step(product, weight @ state[0] + layer.bias_hh, state)
        outputs.append(state[0])
    return np.stack(outputs)


def _tanh_step(inputs: Doubles, hidden: Doubles, state: States) -> States:
    return np.tanh(inputs + hidden), state[1]


def _relu_step(inputs: Doubles, hidden: Doubles, state: States) -> States:
    return np.maximum(inputs + hidden, 0), state[1]


def _lstm_step(inputs: Doubles, hidden: Doubles, state: States) -> States:
    i, f, g, o = np.split(inputs + hidden, 4)
    cell = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(cell), cell


def _gru_step(inputs: Doubles, hidden: Doubles, state: States) -> States:
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

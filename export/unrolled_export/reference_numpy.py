"""The reference in NumPy, float64, for where torch is not installed.

Equations: those printed in the PyTorch documentation of torch.nn.RNN, torch.nn.GRU and
torch.nn.LSTM. They are Elman's network (1990), the LSTM of Hochreiter and Schmidhuber (1997)
with the forget gate of Gers, Schmidhuber and Cummins (2000), and the gated recurrent unit of
Cho et al. (2014) with the reset gate applied after the product. x is a layer's input, h and c
its states, * the product of elements:

RNN     h' = f(W_ih x + b_ih + W_hh h + b_hh), f = tanh or max(0, .)

LSTM    i, f, g, o = the four blocks of W_ih x + b_ih + W_hh h + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c'), or W_hr times this where the hidden state is projected

GRU     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr), z alike
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

Two conventions of Keras: its hard sigmoid, clip(s x + 0.5, 0, 1) with s = 1/5 or 1/6, may stand
for the sigmoid, and a GRU's reset gate may be applied before the product, as Cho et al. have it:

        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

Layer normalisation (Ba, Kiros and Hinton 2016): (x - mean) / sqrt(variance + epsilon) * w + b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Activation, Cell, Floats, Gate, LayerNorm, Network, Stage
from unrolled_export.quantization import STATE_SCALE, QuantizedWeight
from unrolled_export.reference import States, Tokens

Doubles = NDArray[np.float64]
State = tuple[Doubles, Doubles]
"""h [O] and c [H] of one row of one layer; only an LSTM uses c."""
Step = Callable[[Doubles, State], State]
"""From input product [G*H] and state to the next state."""
Function = Callable[[Doubles], Doubles]
"""Of every element."""
Product = Callable[[Doubles], Doubles]
"""A matrix product of vectors, [..., N] to [..., M]."""


class NumpyReference:
    """The network in float64, with 8-bit products where there are any."""

    def __init__(
        self, network: Network, quantized: Mapping[str, QuantizedWeight] | None = None
    ) -> None:
        """`quantized` are the 8-bit weights, by the names of `Network.arrays`."""
        self.name = f"numpy {np.__version__}"
        self._network = network
        embedding = network.embedding
        self._table = np.eye(network.vocabulary_size) if embedding is None else _double(embedding)
        arrays = dict(network.arrays())
        self._products = {
            name: _quantized_product(quantized[name])
            if quantized and name in quantized
            else _product(arrays[name])
            for name in arrays
            if name.startswith(_WEIGHTS)
        }

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
        """As `advance`, for tokens [T] and states [S]."""
        nexts: States = {}
        values = self._table[tokens]
        for index in range(len(self._network.layers)):
            names = [state.input for state in self._network.states_of(index)]
            before = [_double(states[name]) for name in names]
            values, after = self._run_layer(index, values, (before[0], before[-1]))
            nexts |= dict(zip(names, after, strict=False))
        for index, stage in enumerate(self._network.stages):
            values = self._run_stage(index, stage, values)
        logits = self._products["head_weight"](values) + _double(self._network.head_bias)
        return _log_softmax(logits).astype(np.float32), nexts

    def _run_layer(self, index: int, values: Doubles, state: State) -> tuple[Doubles, State]:
        """The layer's outputs [T, O] for inputs [T, I], and its state after them."""
        layer, outputs = self._network.layers[index], []
        if layer.norm is not None:
            values = _normalised(layer.norm, values)
        inputs = self._products[f"weight_ih_{index}"](values) + _double(layer.bias_ih)
        step = self._step(index)
        for product in inputs:
            state = step(product, state)
            outputs.append(state[0])
        return np.stack(outputs), state

    def _step(self, index: int) -> Step:
        """One step of a layer."""
        network, layer = self._network, self._network.layers[index]
        cell, gate = network.cell, _GATES[network.gate]
        product, bias = self._products[f"weight_hh_{index}"], _double(layer.bias_hh)
        if cell is Cell.GRU and not network.reset_after:
            return _gru_reset_before(_double(layer.weight_hh), bias, gate)
        if cell is Cell.GRU:
            return lambda x, s: _gru(x, product(s[0]) + bias, s, gate)
        if cell is Cell.LSTM:
            project = self._products.get(f"weight_hr_{index}", lambda hidden: hidden)
            return lambda x, s: _lstm(x + product(s[0]) + bias, s, gate, project)
        squash = np.tanh if cell is Cell.RNN_TANH else _relu
        return lambda x, s: (squash(x + product(s[0]) + bias), s[1])

    def _run_stage(self, index: int, stage: Stage, values: Doubles) -> Doubles:
        if isinstance(stage, LayerNorm):
            return _normalised(stage, values)
        product = self._products[f"stage_weight_{index}"](values)
        return _ACTIVATIONS[stage.activation](product + _double(stage.bias))


_WEIGHTS = ("weight_", "stage_weight_", "head_weight")


def _product(weight: Floats) -> Product:
    double = _double(weight)
    return lambda values: values @ double.T


def _quantized_product(weight: QuantizedWeight) -> Product:
    """The product of states [..., N] rounded to 127.5ths with rounded weights [M, N]."""
    integers, scales = _double(weight.values), _double(weight.scales) * float(STATE_SCALE)

    def product(states: Doubles) -> Doubles:
        # The division is in float32, as everywhere, so that halves are the same halves.
        steps = np.rint(states.astype(np.float32) / STATE_SCALE).astype(np.float64)
        result: Doubles = np.clip(steps, -128, 127) @ integers.T * scales
        return result

    return product


def _lstm(gates: Doubles, state: State, gate: Function, project: Product) -> State:
    i, f, g, o = np.split(gates, 4)
    cell = gate(f) * state[1] + gate(i) * np.tanh(g)
    return project(gate(o) * np.tanh(cell)), cell


def _gru(inputs: Doubles, hidden: Doubles, state: State, gate: Function) -> State:
    input_r, input_z, input_n = np.split(inputs, 3)
    hidden_r, hidden_z, hidden_n = np.split(hidden, 3)
    r, z = gate(input_r + hidden_r), gate(input_z + hidden_z)
    n = np.tanh(input_n + r * hidden_n)
    return (1 - z) * n + z * state[0], state[1]


def _gru_reset_before(weight: Doubles, bias: Doubles, gate: Function) -> Step:
    weight_r, weight_z, weight_n = np.split(weight, 3)

    def step(inputs: Doubles, state: State) -> State:
        input_r, input_z, input_n = np.split(inputs + bias, 3)
        h = state[0]
        r, z = gate(input_r + weight_r @ h), gate(input_z + weight_z @ h)
        n = np.tanh(input_n + weight_n @ (r * h))
        return (1 - z) * n + z * h, state[1]

    return step


def _normalised(norm: LayerNorm, values: Doubles) -> Doubles:
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    result: Doubles = centred / np.sqrt(variance + norm.epsilon) * norm.weight + norm.bias
    return result


def _sigmoid(values: Doubles) -> Doubles:
    # In terms of tanh, which does not overflow.
    result: Doubles = 0.5 * (1 + np.tanh(0.5 * values))
    return result


def _hard_sigmoid(slope: float) -> Function:
    return lambda values: np.clip(slope * values + 0.5, 0, 1)


def _relu(values: Doubles) -> Doubles:
    return np.maximum(values, 0)


_GATES: dict[Gate, Function] = {
    Gate.SIGMOID: _sigmoid,
    Gate.HARD_SIGMOID_FIFTH: _hard_sigmoid(1 / 5),
    Gate.HARD_SIGMOID_SIXTH: _hard_sigmoid(1 / 6),
}
_ACTIVATIONS: dict[Activation, Function] = {
    Activation.LINEAR: lambda values: values,
    Activation.RELU: _relu,
    Activation.TANH: np.tanh,
    Activation.SIGMOID: _sigmoid,
}


def _log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _double(array: NDArray[Any]) -> Doubles:
    return array.astype(np.float64)

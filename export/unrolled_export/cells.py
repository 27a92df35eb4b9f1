"""A step of all rows up to the logits: the part that the engine's graphs share.

The gate equations are those of the PyTorch documentation of torch.nn.LSTM, GRU and RNN. What
the weights alone decide is computed here once, in float64: the embedding, the first layer's
input product and the biases that may be added to it are one table with a row per token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Cell, Floats, Layer, LayerNorm, Network, Stage
from unrolled_export.products import Products

LARGEST_TABLE = 32 << 20
"""Bytes up to which the first layer's input product is a table of all its results."""


class Cells:
    """Nodes that read the tokens fed, int32 [B], and the states, and make the next states.

    States are named as in the manifest, behind `prefix`.
    """

    def __init__(self, products: Products, network: Network, fed: str, prefix: str = "") -> None:
        self._products, self._step = products, products.step
        self._network = network
        self._fed, self._prefix = fed, prefix

    def logits(self) -> str:
        """Append the nodes of a step; returns the name of the logits [B, V]."""
        network, top = self._network, self._layers()
        for index, stage in enumerate(network.stages):
            top = self._stage(index, stage, top)
        return self._products.logits(top, network.head_weight, network.head_bias)

    def inputs(self, index: int, below: str) -> str:
        """Append a layer's input product [B, G*H] of the output `below` it.

        That of the first layer is of the tokens fed.
        """
        layer = self._network.layers[index]
        bias, _ = _biases(self._network, layer)
        if index == 0:
            return self._first_inputs(bias)
        below = self._step.normalised(layer.norm, below) if layer.norm else below
        return self._products.biased(f"weight_ih_{index}", below, layer.weight_ih, bias)

    def recurrence(self, index: int, inputs: str) -> str:
        """Append the rest of a layer's step; returns the name of its output [B, O]."""
        cell = {
            Cell.RNN_TANH: self._rnn,
            Cell.RNN_RELU: self._rnn,
            Cell.LSTM: self._lstm,
            Cell.GRU: self._gru,
        }[self._network.cell]
        _, hidden_bias = _biases(self._network, self._network.layers[index])
        return cell(index, inputs, hidden_bias)

    def _layers(self) -> str:
        """All recurrent layers; returns the name of the top one's output [B, O]."""
        below = ""
        for index in range(len(self._network.layers)):
            below = self.recurrence(index, self.inputs(index, below))
        return below

    def _stage(self, index: int, stage: Stage, value: str) -> str:
        if isinstance(stage, LayerNorm):
            return self._step.normalised(stage, value)
        name = f"stage_weight_{index}"
        product = self._products.biased(name, value, stage.weight, stage.bias)
        return self._step.activation(stage.activation, self._products.wide(product))

    def _first_inputs(self, bias: Floats) -> str:
        """The first layer's input product [B, G*H]: a look-up, or of a large model a product."""
        network, weight = self._network, self._network.layers[0].weight_ih
        is_small = 4 * network.vocabulary_size * len(weight) <= LARGEST_TABLE
        if is_small or network.embedding is None:
            return self._products.looked_up(_table(network, bias), self._fed)
        embedded = self._products.embedded(network.embedding, self._fed)
        return self._products.biased("weight_ih_0", embedded, weight, bias)

    def _before(self, kind: str, index: int) -> str:
        return f"{self._prefix}{kind}_{index:02d}"

    def _next(self, kind: str, index: int) -> list[str]:
        return [f"{self._prefix}next_{kind}_{index:02d}"]

    def _rnn(self, index: int, inputs: str, _: Floats) -> str:
        weight = self._network.layers[index].weight_hh
        before = self._before("h", index)
        gate = self._products.added(f"weight_hh_{index}", before, weight, inputs)
        function = "Tanh" if self._network.cell is Cell.RNN_TANH else "Relu"
        return self._step.node(function, [gate], self._next("h", index))

    def _lstm(self, index: int, inputs: str, _: Floats) -> str:
        step, layer, kind = self._step, self._network.layers[index], self._network.gate
        before = self._before("h", index)
        gates = self._products.added(f"weight_hh_{index}", before, layer.weight_hh, inputs)
        i, f, g, o = step.split(gates, [layer.hidden_size] * 4)
        i, f, o = (step.gate(kind, value) for value in (i, f, o))
        g = step.node("Tanh", [g])
        kept = step.node("Mul", [f, self._before("c", index)])
        added = step.node("Mul", [i, g])
        cell = step.node("Add", [kept, added], self._next("c", index))
        squashed = step.node("Tanh", [cell])
        output = self._next("h", index)
        if layer.weight_hr is None:
            return step.node("Mul", [o, squashed], output)
        hidden = step.node("Mul", [o, squashed])
        return self._products.projected(hidden, layer.weight_hr, output)

    def _gru(self, index: int, inputs: str, bias: Floats) -> str:
        step, before = self._step, self._before("h", index)
        candidate = self._reset_after if self._network.reset_after else self._reset_before
        z, n = candidate(index, self._products.wide(inputs), bias)
        kept = step.node("Mul", [z, step.node("Sub", [before, n])])
        return step.node("Add", [n, kept], self._next("h", index))

    def _reset_after(self, index: int, inputs: str, bias: Floats) -> tuple[str, str]:
        """Update gate and candidate, the reset gate applied to the hidden state's product."""
        step, layer, before = self._step, self._network.layers[index], self._before("h", index)
        size = layer.hidden_size
        hidden = self._products.biased(f"weight_hh_{index}", before, layer.weight_hh, bias)
        hidden = self._products.wide(hidden)
        input_rz, input_n = step.split(inputs, [2 * size, size])
        hidden_rz, hidden_n = step.split(hidden, [2 * size, size])
        rz = step.gate(self._network.gate, step.node("Add", [input_rz, hidden_rz]))
        r, z = step.split(rz, [size, size])
        reset = step.node("Mul", [r, hidden_n])
        return z, step.node("Tanh", [step.node("Add", [input_n, reset])])

    def _reset_before(self, index: int, inputs: str, _: Floats) -> tuple[str, str]:
        """Update gate and candidate, the reset gate applied to the hidden state."""
        step, layer, before = self._step, self._network.layers[index], self._before("h", index)
        size = layer.hidden_size
        weight_rz, weight_n = layer.weight_hh[: 2 * size], layer.weight_hh[2 * size :]
        input_rz, input_n = step.split(inputs, [2 * size, size])
        product = self._products.added("", before, weight_rz, input_rz)
        r, z = step.split(step.gate(self._network.gate, product), [size, size])
        reset = step.node("Mul", [r, before])
        return z, step.node("Tanh", [self._products.added("", reset, weight_n, input_n)])


def _biases(network: Network, layer: Layer) -> tuple[Floats, Floats]:
    """The bias of the input product, and of the hidden product [G*H].

    All of it is added to the input product, but for the GRU's candidate where its hidden bias
    belongs inside the product with the reset gate.
    """
    bias_ih, bias_hh = layer.bias_ih.astype(np.float64), layer.bias_hh.astype(np.float64)
    inside = np.zeros_like(bias_hh)
    if network.cell is Cell.GRU and network.reset_after:
        inside[2 * layer.hidden_size :] = bias_hh[2 * layer.hidden_size :]
    return (bias_ih + bias_hh - inside).astype(np.float32), inside.astype(np.float32)


def _table(network: Network, bias: Floats) -> Floats:
    """[V, G*H]: the first layer's input product of every token, its bias added."""
    weight = network.layers[0].weight_ih.astype(np.float64)
    rows: NDArray[np.float64] = weight.T
    if network.embedding is not None:
        rows = network.embedding.astype(np.float64) @ weight.T
    return (rows + bias).astype(np.float32)

"""The portable graph: any ONNX runtime can serve it, a chunk of tokens at a time.

Inputs: `tokens` int64 [B, T] and the states float32 [B, H] (`h_00`, for an LSTM `c_00`, ...).
Outputs: `logits` float32 [B, T, V] and the states after the last token (`next_h_00`, ...).
B and T are free in every run.

The layers are the operators RNN, GRU and LSTM of the ONNX specification. Against PyTorch these
order the gates of an LSTM i, o, f, c (i, f, g, o there) and of a GRU z, r, h (r, z, n there),
and keep both biases of a layer in one row. They know no projection of the hidden state: an LSTM
that has one is a Scan over the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from unrolled_export.errors import GraphError
from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Cell, Floats, Gate, Layer, LayerNorm, Network, Stage

LARGEST_FILE = 2**31 - 2**26
"""Bytes of weights that fit in one ONNX file: protobuf ends at 2 GiB, and the engine's graph may
add a table to the weights."""

_OPERATORS = {Cell.RNN_TANH: "RNN", Cell.RNN_RELU: "RNN", Cell.GRU: "GRU", Cell.LSTM: "LSTM"}
_GATE_ORDERS = {
    Cell.RNN_TANH: (0,),
    Cell.RNN_RELU: (0,),
    Cell.GRU: (1, 0, 2),
    Cell.LSTM: (0, 3, 1, 2),
}
"""Where each of ONNX's gates is found in PyTorch's order."""


def portable_graph(network: Network, halves: bool = False) -> onnx.ModelProto:
    """Build the graph; the same network gives the same bytes.

    `halves` stores the weights, which have to fit, in 16 bits. Raises GraphError where they are
    too large for one file.
    """
    _check_size(network)
    graph = _Graph("portable", halves)
    sequence = _input_sequence(graph, network)
    for index in range(len(network.layers)):
        sequence = _recurrent_layer(graph, network, index, sequence)
    batch_first = graph.node("Transpose", [sequence], perm=[1, 0, 2])
    for stage in network.stages:
        batch_first = _stage(graph, stage, batch_first)
    product = graph.node("MatMul", [batch_first, graph.weight(network.head_weight.T)])
    graph.node("Add", [product, graph.array(network.head_bias)], ["logits"])
    return graph.model(list(_inputs(network)), list(_outputs(network)))


class _Graph(GraphBuilder):
    """A graph whose weights are all stored in 16 bits, or none."""

    def __init__(self, name: str, halves: bool) -> None:
        super().__init__(name)
        self._halves = halves

    def weight(self, array: Floats) -> str:
        """A constant of weights."""
        return self.half(array) if self._halves else self.array(array)


def _stage(graph: _Graph, stage: Stage, value: str) -> str:
    if isinstance(stage, LayerNorm):
        return graph.normalised(stage, value)
    product = graph.node("MatMul", [value, graph.weight(stage.weight.T)])
    return graph.activation(stage.activation, graph.node("Add", [product, graph.array(stage.bias)]))


def _check_size(network: Network) -> None:
    size = sum(array.nbytes for _, array in network.arrays())
    if size > LARGEST_FILE:
        raise GraphError(
            f"model.onnx: {size:,} bytes of weights do not fit in an ONNX file, "
            f"which holds {LARGEST_FILE:,}"
        )


def _input_sequence(graph: _Graph, network: Network) -> str:
    """What the first layer reads, [T, B, I]."""
    time_first = graph.node("Transpose", ["tokens"], perm=[1, 0])
    if network.embedding is not None:
        return graph.node("Gather", [graph.weight(network.embedding), time_first], axis=0)
    depth = graph.integers(network.vocabulary_size)
    return graph.node("OneHot", [time_first, depth, graph.floats([0.0, 1.0])], axis=-1)


def _recurrent_layer(graph: _Graph, network: Network, index: int, sequence: str) -> str:
    """Layer `index` over a sequence [T, B, I]; returns the name of its output [T, B, O]."""
    layer = network.layers[index]
    if layer.norm is not None:
        sequence = graph.normalised(layer.norm, sequence)
    if layer.weight_hr is not None:
        return _projected_layer(graph, network, index, sequence, layer.weight_hr)
    states, first_axis = network.states_of(index), graph.integers([0])
    befores = [graph.node("Unsqueeze", [state.input, first_axis]) for state in states]
    output, *afters = graph.split_outputs(
        _OPERATORS[network.cell],
        # No sequence lengths: every row is as long as the chunk.
        [sequence, *_weights(graph, network.cell, layer), "", *befores],
        1 + len(states),
        hidden_size=layer.hidden_size,
        **_attributes(network),
    )
    for state, after in zip(states, afters, strict=True):
        graph.node("Squeeze", [after, first_axis], [state.output])
    return graph.node("Squeeze", [output, graph.integers([1])])


def _attributes(network: Network) -> dict[str, Any]:
    """What the operator has to be told besides its sizes."""
    if network.cell in (Cell.RNN_TANH, Cell.RNN_RELU):
        return {"activations": ["Tanh" if network.cell is Cell.RNN_TANH else "Relu"]}
    attributes: dict[str, Any] = {}
    if network.cell is Cell.GRU:
        # Runtimes disagree on what a GRU without the attribute computes, so it is written out.
        attributes["linear_before_reset"] = int(network.reset_after)
    if network.gate is not Gate.SIGMOID:
        others = ["Tanh"] if network.cell is Cell.GRU else ["Tanh", "Tanh"]
        attributes["activations"] = ["HardSigmoid", *others]
        attributes["activation_alpha"] = [network.gate.slope]
        attributes["activation_beta"] = [0.5]
    return attributes


def _weights(graph: _Graph, cell: Cell, layer: Layer) -> list[str]:
    """The operator's W [1, G*H, I], R [1, G*H, H] and B [1, 2*G*H]."""
    order = _GATE_ORDERS[cell]
    biases = [_reordered(layer.bias_ih, order), _reordered(layer.bias_hh, order)]
    return [
        graph.weight(_reordered(layer.weight_ih, order)[None]),
        graph.weight(_reordered(layer.weight_hh, order)[None]),
        graph.array(np.concatenate(biases)[None]),
    ]


def _projected_layer(
    graph: _Graph, network: Network, index: int, sequence: str, projection: Floats
) -> str:
    """An LSTM layer whose hidden state is projected, by torch.nn.LSTM's equations."""
    layer, (h, c) = network.layers[index], network.states_of(index)
    weight, bias = graph.weight(layer.weight_ih.T), graph.array(layer.bias_ih + layer.bias_hh)
    inputs = graph.node("Add", [graph.node("MatMul", [sequence, weight]), bias])
    names = [f"{name}_{index:02d}" for name in ("before_h", "before_c", "step_input")]
    sizes = (h.size, c.size, 4 * c.size)
    step = graph.subgraph(f"step_{index:02d}")
    hidden = step.node("MatMul", [names[0], graph.weight(layer.weight_hh.T)])
    i, f, g, o = step.split(step.node("Add", [names[2], hidden]), [layer.hidden_size] * 4)
    i, f, o = (step.gate(network.gate, value) for value in (i, f, o))
    kept = step.node("Mul", [f, names[1]])
    cell = step.node("Add", [kept, step.node("Mul", [i, step.node("Tanh", [g])])])
    squashed = step.node("Mul", [o, step.node("Tanh", [cell])])
    output = step.node("MatMul", [squashed, graph.weight(projection.T)])
    repeated = step.node("Identity", [output])
    body = step.graph(
        [_value(name, size) for name, size in zip(names, sizes, strict=True)],
        [_value(output, h.size), _value(cell, c.size), _value(repeated, h.size)],
    )
    outputs = [h.output, c.output, f"hidden_{index:02d}"]
    graph.node("Scan", [h.input, c.input, inputs], outputs, body=body, num_scan_inputs=1)
    return outputs[2]


def _value(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size])


def _reordered(array: Floats, order: tuple[int, ...]) -> Floats:
    """The blocks of rows that belong to gates, in another order."""
    blocks = np.split(array, len(order))
    return np.concatenate([blocks[gate] for gate in order])


def _inputs(network: Network) -> Iterator[onnx.ValueInfoProto]:
    yield helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"])
    for state in network.states:
        yield helper.make_tensor_value_info(state.input, TensorProto.FLOAT, ["B", state.size])


def _outputs(network: Network) -> Iterator[onnx.ValueInfoProto]:
    shape: list[str | int | None] = ["B", "T", network.vocabulary_size]
    yield helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    for state in network.states:
        yield helper.make_tensor_value_info(state.output, TensorProto.FLOAT, ["B", state.size])

"""The portable graph: any ONNX runtime can serve it, a chunk of tokens at a time.

Inputs: `tokens` int64 [B, T] and the states float32 [B, H] (`h_00`, for an LSTM `c_00`, ...).
Outputs: `logits` float32 [B, T, V] and the states after the last token (`next_h_00`, ...).
B and T are free in every run.

The layers are the operators RNN, GRU and LSTM of the ONNX specification. Against PyTorch these
order the gates of an LSTM i, o, f, c (i, f, g, o there) and of a GRU z, r, h (r, z, n there),
and keep both biases of a layer in one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from unrolled_export.errors import GraphError
from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Cell, Floats, Layer, Network

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
# Runtimes disagree on what a GRU without linear_before_reset computes, so it is written out.
_ATTRIBUTES: dict[Cell, dict[str, Any]] = {
    Cell.RNN_TANH: {"activations": ["Tanh"]},
    Cell.RNN_RELU: {"activations": ["Relu"]},
    Cell.GRU: {"linear_before_reset": 1},
    Cell.LSTM: {},
}


def portable_graph(network: Network) -> onnx.ModelProto:
    """Build the graph; the same network gives the same bytes.

    Raises GraphError where the weights are too large for one file.
    """
    _check_size(network)
    graph = GraphBuilder("portable")
    sequence = _input_sequence(graph, network)
    for index in range(len(network.layers)):
        sequence = _recurrent_layer(graph, network, index, sequence)
    batch_first = graph.node("Transpose", [sequence], perm=[1, 0, 2])
    product = graph.node("MatMul", [batch_first, graph.array(network.head_weight.T)])
    graph.node("Add", [product, graph.array(network.head_bias)], ["logits"])
    return graph.model(list(_inputs(network)), list(_outputs(network)))


def _check_size(network: Network) -> None:
    size = sum(array.nbytes for _, array in network.arrays())
    if size > LARGEST_FILE:
        raise GraphError(
            f"model.onnx: {size:,} bytes of weights do not fit in an ONNX file, "
            f"which holds {LARGEST_FILE:,}"
        )


def _input_sequence(graph: GraphBuilder, network: Network) -> str:
    """What the first layer reads, [T, B, I]."""
    time_first = graph.node("Transpose", ["tokens"], perm=[1, 0])
    if network.embedding is not None:
        return graph.node("Gather", [graph.array(network.embedding), time_first], axis=0)
    depth = graph.integers(network.vocabulary_size)
    return graph.node("OneHot", [time_first, depth, graph.floats([0.0, 1.0])], axis=-1)


def _recurrent_layer(graph: GraphBuilder, network: Network, index: int, sequence: str) -> str:
    """Layer `index` over a sequence [T, B, I]; returns the name of its output [T, B, H]."""
    cell, states = network.cell, network.states_of(index)
    first_axis = graph.integers([0])
    befores = [graph.node("Unsqueeze", [state.input, first_axis]) for state in states]
    output, *afters = graph.split_outputs(
        _OPERATORS[cell],
        # No sequence lengths: every row is as long as the chunk.
        [sequence, *_weights(graph, cell, network.layers[index]), "", *befores],
        1 + len(states),
        hidden_size=network.layers[index].hidden_size,
        **_ATTRIBUTES[cell],
    )
    for state, after in zip(states, afters, strict=True):
        graph.node("Squeeze", [after, first_axis], [state.output])
    return graph.node("Squeeze", [output, graph.integers([1])])


def _weights(graph: GraphBuilder, cell: Cell, layer: Layer) -> list[str]:
    """The operator's W [1, G*H, I], R [1, G*H, H] and B [1, 2*G*H]."""
    order = _GATE_ORDERS[cell]
    biases = [_reordered(layer.bias_ih, order), _reordered(layer.bias_hh, order)]
    return [
        graph.array(_reordered(layer.weight_ih, order)[None]),
        graph.array(_reordered(layer.weight_hh, order)[None]),
        graph.array(np.concatenate(biases)[None]),
    ]


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

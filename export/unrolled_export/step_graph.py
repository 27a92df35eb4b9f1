"""The engine's graph: K steps of B rows in one run, each row told its next token or drawing it.

A step feeds every row's pending token, and names the token that follows: `told` where it is
not negative, else a draw from the distribution that the row's sampling parameters shape. That
token is fed in the next step. Rows share nothing but the weights.

Inputs, B rows and K steps, both free in every run:

| name | type | shape | |
|---|---|---|---|
| pending | int32 | [B] | the token fed in the first step |
| told | int32 | [K, B] | the token that follows each step, or -1: draw it |
| uniforms | float64 | [K, B] | in [0, 1 - 2**-52]: the random numbers of the draws |
| temperature | float32 | [B] | 0 is greedy |
| top_k | int32 | [B] | 0 keeps all |
| top_p | float32 | [B] | 1 keeps all |
| min_p | float32 | [B] | 0 keeps all |
| filtered | bool | [] | whether any row uses top_k, top_p or min_p |
| h_00, c_00, ... | float32 | [B, H] | the states |

Outputs: `tokens` int32 [K, B], `logprobs` float32 [K, B, V] (the natural logarithm of the
distribution that each token was taken from, before temperature) and the next states.

The gate equations are those of the PyTorch documentation of torch.nn.LSTM, GRU and RNN. What
the weights alone decide is computed here once, in float64: the embedding, the first layer's
input product and the biases that may be added to it are one table with a row per token.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Cell, Floats, Layer, Network

GRAPH_REVISION = 1
"""Raised whenever the same weights would give other bits: states belong to a revision."""

LARGEST_TABLE = 32 << 20
"""Bytes up to which the first layer's input product is a table of all its results."""

LEAST_TEMPERATURE = 1e-6
"""Positive temperatures below this would overflow; they are greedy in all but name."""


def step_graph(network: Network) -> onnx.ModelProto:
    """Build the graph; the same network gives the same bytes."""
    graph = GraphBuilder("engine")
    body = _body(graph, network)
    states = [state.input for state in network.states]
    _sampling_inputs(graph)
    graph.node(
        "Scan",
        ["pending", *states, "told", "uniforms"],
        ["last", *(state.output for state in network.states), "tokens", "logprobs"],
        body=body,
        num_scan_inputs=2,
    )
    inputs = [
        _value("pending", TensorProto.INT32, ["B"]),
        _value("told", TensorProto.INT32, ["K", "B"]),
        _value("uniforms", TensorProto.DOUBLE, ["K", "B"]),
        _value("temperature", TensorProto.FLOAT, ["B"]),
        _value("top_k", TensorProto.INT32, ["B"]),
        _value("top_p", TensorProto.FLOAT, ["B"]),
        _value("min_p", TensorProto.FLOAT, ["B"]),
        _value("filtered", TensorProto.BOOL, []),
        *(_value(state.input, TensorProto.FLOAT, ["B", state.size]) for state in network.states),
    ]
    outputs = [
        _value("tokens", TensorProto.INT32, ["K", "B"]),
        _value("logprobs", TensorProto.FLOAT, ["K", "B", network.vocabulary_size]),
        *(_value(state.output, TensorProto.FLOAT, ["B", state.size]) for state in network.states),
    ]
    return graph.model(inputs, outputs)


def _sampling_inputs(graph: GraphBuilder) -> None:
    """What the steps share: sampling parameters as columns [B, 1]."""
    zero, one = graph.floats(0.0), graph.floats(1.0)
    column = graph.integers([1])
    graph.node("Equal", ["temperature", zero], ["is_greedy"])
    least = graph.node("Max", ["temperature", graph.floats(LEAST_TEMPERATURE)])
    divisor = graph.node("Where", ["is_greedy", one, least])
    graph.node("Unsqueeze", [divisor, column], ["divisor"])
    for name in ("top_k", "top_p", "min_p"):
        graph.node("Unsqueeze", [name, column], [f"{name}_column"])


def _body(outer: GraphBuilder, network: Network) -> onnx.GraphProto:
    """One step of all rows; the weights live in the graph around it."""
    step = outer.subgraph("step")
    layers = _layers(step, network)
    logits = step.node(
        "Gemm",
        [layers, outer.array(network.head_weight.T), outer.array(network.head_bias)],
    )
    step.node("LogSoftmax", [logits], ["step_logprobs"], axis=-1)
    drawn = _draw(step, network.vocabulary_size)
    greedy = step.node("ArgMax", ["step_logprobs"], axis=-1, keepdims=0)
    greedy = step.node("Cast", [greedy], to=TensorProto.INT32)
    chosen = step.node("Where", ["is_greedy", greedy, drawn])
    is_drawn = step.node("Less", ["step_told", step.integers(0, np.int32)])
    step.node("Where", [is_drawn, chosen, "step_told"], ["step_token"])
    step.node("Identity", ["step_token"], ["step_tokens"])
    states = network.states
    sizes = {f"step_{state.input}": state.size for state in states}
    nexts = {f"step_{state.output}": state.size for state in states}
    return step.graph(
        [
            _value("fed", TensorProto.INT32, ["B"]),
            *(_value(name, TensorProto.FLOAT, ["B", size]) for name, size in sizes.items()),
            _value("step_told", TensorProto.INT32, ["B"]),
            _value("step_uniforms", TensorProto.DOUBLE, ["B"]),
        ],
        [
            _value("step_token", TensorProto.INT32, ["B"]),
            *(_value(name, TensorProto.FLOAT, ["B", size]) for name, size in nexts.items()),
            _value("step_tokens", TensorProto.INT32, ["B"]),
            _value("step_logprobs", TensorProto.FLOAT, ["B", network.vocabulary_size]),
        ],
    )


def _layers(step: GraphBuilder, network: Network) -> str:
    """All recurrent layers; returns the name of the top one's output [B, H]."""
    below = ""
    for index, layer in enumerate(network.layers):
        bias, hidden_bias = _biases(network.cell, layer)
        if index == 0:
            inputs = _first_inputs(step, network, bias)
        else:
            weight = step.outer.array(layer.weight_ih.T)
            inputs = step.node("Gemm", [below, weight, step.outer.array(bias)])
        below = _CELLS[network.cell](step, index, layer, inputs, hidden_bias)
    return below


def _biases(cell: Cell, layer: Layer) -> tuple[Floats, Floats]:
    """The bias of the input product, and of the hidden product [G*H].

    All of it is added to the input product, but for the GRU's candidate: its hidden bias
    belongs inside the product with the reset gate.
    """
    bias_ih, bias_hh = layer.bias_ih.astype(np.float64), layer.bias_hh.astype(np.float64)
    inside = np.zeros_like(bias_hh)
    if cell is Cell.GRU:
        inside[2 * layer.hidden_size :] = bias_hh[2 * layer.hidden_size :]
    return (bias_ih + bias_hh - inside).astype(np.float32), inside.astype(np.float32)


def _first_inputs(step: GraphBuilder, network: Network, bias: Floats) -> str:
    """The first layer's input product [B, G*H]: a look-up, or of a large model a product."""
    weight = network.layers[0].weight_ih
    if 4 * network.vocabulary_size * len(weight) <= LARGEST_TABLE or network.embedding is None:
        table = step.outer.array(_table(network, bias))
        return step.node("Gather", [table, "fed"], axis=0)
    embedded = step.node("Gather", [step.outer.array(network.embedding), "fed"], axis=0)
    return step.node("Gemm", [embedded, step.outer.array(weight.T), step.outer.array(bias)])


def _table(network: Network, bias: Floats) -> Floats:
    """[V, G*H]: the first layer's input product of every token, its bias added."""
    weight = network.layers[0].weight_ih.astype(np.float64)
    rows: NDArray[np.float64] = weight.T
    if network.embedding is not None:
        rows = network.embedding.astype(np.float64) @ weight.T
    return (rows + bias).astype(np.float32)


def _rnn(step: GraphBuilder, index: int, layer: Layer, inputs: str, _: Floats, tanh: bool) -> str:
    weight = step.outer.array(layer.weight_hh.T)
    gate = step.node("Gemm", [f"step_h_{index:02d}", weight, inputs])
    output = f"step_next_h_{index:02d}"
    return step.node("Tanh" if tanh else "Relu", [gate], [output])


def _rnn_tanh(step: GraphBuilder, index: int, layer: Layer, inputs: str, bias: Floats) -> str:
    return _rnn(step, index, layer, inputs, bias, tanh=True)


def _rnn_relu(step: GraphBuilder, index: int, layer: Layer, inputs: str, bias: Floats) -> str:
    return _rnn(step, index, layer, inputs, bias, tanh=False)


def _lstm(step: GraphBuilder, index: int, layer: Layer, inputs: str, _: Floats) -> str:
    size = layer.hidden_size
    weight = step.outer.array(layer.weight_hh.T)
    gates = step.node("Gemm", [f"step_h_{index:02d}", weight, inputs])
    i, f, g, o = step.split(gates, [size] * 4)
    i, f, o = (step.node("Sigmoid", [gate]) for gate in (i, f, o))
    g = step.node("Tanh", [g])
    kept = step.node("Mul", [f, f"step_c_{index:02d}"])
    added = step.node("Mul", [i, g])
    cell = step.node("Add", [kept, added], [f"step_next_c_{index:02d}"])
    squashed = step.node("Tanh", [cell])
    return step.node("Mul", [o, squashed], [f"step_next_h_{index:02d}"])


def _gru(step: GraphBuilder, index: int, layer: Layer, inputs: str, bias: Floats) -> str:
    size = layer.hidden_size
    weight, inside = step.outer.array(layer.weight_hh.T), step.outer.array(bias)
    before = f"step_h_{index:02d}"
    hidden = step.node("Gemm", [before, weight, inside])
    input_rz, input_n = step.split(inputs, [2 * size, size])
    hidden_rz, hidden_n = step.split(hidden, [2 * size, size])
    rz = step.node("Sigmoid", [step.node("Add", [input_rz, hidden_rz])])
    r, z = step.split(rz, [size, size])
    reset = step.node("Mul", [r, hidden_n])
    n = step.node("Tanh", [step.node("Add", [input_n, reset])])
    kept = step.node("Mul", [z, step.node("Sub", [before, n])])
    return step.node("Add", [n, kept], [f"step_next_h_{index:02d}"])


_CELLS = {Cell.RNN_TANH: _rnn_tanh, Cell.RNN_RELU: _rnn_relu, Cell.LSTM: _lstm, Cell.GRU: _gru}


def _draw(step: GraphBuilder, vocabulary: int) -> str:
    """The token whose share of the cumulative distribution holds the row's uniform, [B]."""
    scaled = step.node("Div", ["step_logprobs", "divisor"])
    step.node("Softmax", [scaled], ["chances"], axis=-1)
    kept = step.node(
        "If",
        ["filtered"],
        then_branch=_filtered(step, vocabulary),
        else_branch=_unfiltered(step, vocabulary),
    )
    double = step.node("Cast", [kept], to=TensorProto.DOUBLE)
    cumulative = step.node("CumSum", [double, step.integers(1)])
    total = step.node("Gather", [cumulative, step.integers(vocabulary - 1)], axis=1)
    threshold = step.node("Mul", [total, "step_uniforms"])
    threshold = step.node("Unsqueeze", [threshold, step.integers([1])])
    passed = step.node("LessOrEqual", [cumulative, threshold])
    passed = step.node("Cast", [passed], to=TensorProto.INT32)
    return step.node("ReduceSum", [passed, step.integers([1])], keepdims=0)


def _filtered(step: GraphBuilder, vocabulary: int) -> onnx.GraphProto:
    """Chances with min_p, top_k and top_p applied in this order, zero where dropped.

    Tokens are ranked by log-probability, which tells apart what a high temperature makes equal.
    top_p is a share of what the other two left. Each row's parameters may keep everything,
    and then its chances pass unchanged to the last bit.
    """
    graph = step.subgraph("filtered_chances")
    size = graph.integers([vocabulary])
    _, order = graph.split_outputs("TopK", ["step_logprobs", size], 2)
    largest = graph.node("GatherElements", ["chances", order], axis=1)
    first = graph.node("Gather", [largest, graph.integers([0])], axis=1)
    likely = graph.node("GreaterOrEqual", [largest, graph.node("Mul", [first, "min_p_column"])])
    ranks = graph.integers(np.arange(vocabulary)[None], np.int32)
    no_k = graph.node("Equal", ["top_k_column", graph.integers(0, np.int32)])
    ranked = graph.node("Or", [no_k, graph.node("Less", [ranks, "top_k_column"])])
    chosen = graph.node("And", [likely, ranked])
    left = graph.node("Where", [chosen, largest, graph.floats(0.0)])
    double = graph.node("Cast", [left], to=TensorProto.DOUBLE)
    before = graph.node("CumSum", [double, graph.integers(1)], exclusive=1)
    total = graph.node("ReduceSum", [double, graph.integers([1])], keepdims=1)
    share = graph.node("Cast", ["top_p_column"], to=TensorProto.DOUBLE)
    within = graph.node("Less", [before, graph.node("Mul", [total, share])])
    no_p = graph.node("GreaterOrEqual", ["top_p_column", graph.floats(1.0)])
    nucleus = graph.node("Or", [no_p, within])
    left = graph.node("Where", [nucleus, left, graph.floats(0.0)])
    nothing = graph.node("Sub", ["chances", "chances"])
    graph.node("ScatterElements", [nothing, order, left], ["filtered_out"], axis=1)
    return graph.graph([], [_value("filtered_out", TensorProto.FLOAT, ["B", vocabulary])])


def _unfiltered(step: GraphBuilder, vocabulary: int) -> onnx.GraphProto:
    graph = step.subgraph("all_chances")
    graph.node("Identity", ["chances"], ["unfiltered_out"])
    return graph.graph([], [_value("unfiltered_out", TensorProto.FLOAT, ["B", vocabulary])])


def _value(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)

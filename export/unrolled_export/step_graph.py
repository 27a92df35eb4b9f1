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

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Cell, Floats, Layer, LayerNorm, Network, Stage
from unrolled_export.precision import Precision, quantized
from unrolled_export.products import Products
from unrolled_export.quantization import QuantizedWeight

GRAPH_REVISION = 1
"""Raised whenever the same weights would give other bits: states belong to a revision."""

LARGEST_TABLE = 32 << 20
"""Bytes up to which the first layer's input product is a table of all its results."""

LEAST_TEMPERATURE = 1e-6
"""Positive temperatures below this would overflow; they are greedy in all but name."""


def step_graph(
    network: Network,
    precision: Precision = Precision.FP32,
    in_bytes: Mapping[str, QuantizedWeight] | None = None,
) -> onnx.ModelProto:
    """Build the graph; the same network gives the same bytes.

    In fp16 the weights are stored as they are in 16 bits (`precision.rounded` makes them fit) and
    multiplied in float32. In int8 the products with the weights `in_bytes` are made of bytes;
    None: all that the scheme covers. Raises PrecisionError where that is none.
    """
    graph = GraphBuilder("engine")
    if in_bytes is None:
        in_bytes = quantized(network, precision)
    products = Products(graph.subgraph("step"), in_bytes, precision is Precision.FP16)
    body = _body(products, network)
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


def _body(products: Products, network: Network) -> onnx.GraphProto:
    """One step of all rows; the weights live in the graph around it."""
    step = products.step
    top = _layers(products, network)
    for index, stage in enumerate(network.stages):
        top = _stage(products, index, stage, top)
    logits = products.biased("head_weight", top, network.head_weight, network.head_bias)
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


def _layers(products: Products, network: Network) -> str:
    """All recurrent layers; returns the name of the top one's output [B, O]."""
    below = ""
    for index, layer in enumerate(network.layers):
        bias, hidden_bias = _biases(network, layer)
        if index == 0:
            inputs = _first_inputs(products, network, bias)
        else:
            below = products.step.normalised(layer.norm, below) if layer.norm else below
            inputs = products.biased(f"weight_ih_{index}", below, layer.weight_ih, bias)
        below = _CELLS[network.cell](products, network, index, inputs, hidden_bias)
    return below


def _stage(products: Products, index: int, stage: Stage, value: str) -> str:
    if isinstance(stage, LayerNorm):
        return products.step.normalised(stage, value)
    product = products.biased(f"stage_weight_{index}", value, stage.weight, stage.bias)
    return products.step.activation(stage.activation, product)


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


def _first_inputs(products: Products, network: Network, bias: Floats) -> str:
    """The first layer's input product [B, G*H]: a look-up, or of a large model a product."""
    step, weight = products.step, network.layers[0].weight_ih
    if 4 * network.vocabulary_size * len(weight) <= LARGEST_TABLE or network.embedding is None:
        table = step.outer.array(_table(network, bias))
        return step.node("Gather", [table, "fed"], axis=0)
    embedded = step.node("Gather", [products.weight(network.embedding), "fed"], axis=0)
    return products.biased("weight_ih_0", embedded, weight, bias)


def _table(network: Network, bias: Floats) -> Floats:
    """[V, G*H]: the first layer's input product of every token, its bias added."""
    weight = network.layers[0].weight_ih.astype(np.float64)
    rows: NDArray[np.float64] = weight.T
    if network.embedding is not None:
        rows = network.embedding.astype(np.float64) @ weight.T
    return (rows + bias).astype(np.float32)


def _rnn(products: Products, network: Network, index: int, inputs: str, _: Floats) -> str:
    weight = network.layers[index].weight_hh
    gate = products.added(f"weight_hh_{index}", f"step_h_{index:02d}", weight, inputs)
    function = "Tanh" if network.cell is Cell.RNN_TANH else "Relu"
    return products.step.node(function, [gate], [f"step_next_h_{index:02d}"])


def _lstm(products: Products, network: Network, index: int, inputs: str, _: Floats) -> str:
    step, layer = products.step, network.layers[index]
    gates = products.added(f"weight_hh_{index}", f"step_h_{index:02d}", layer.weight_hh, inputs)
    i, f, g, o = step.split(gates, [layer.hidden_size] * 4)
    i, f, o = (step.gate(network.gate, value) for value in (i, f, o))
    g = step.node("Tanh", [g])
    kept = step.node("Mul", [f, f"step_c_{index:02d}"])
    added = step.node("Mul", [i, g])
    cell = step.node("Add", [kept, added], [f"step_next_c_{index:02d}"])
    squashed = step.node("Tanh", [cell])
    output = [f"step_next_h_{index:02d}"]
    if layer.weight_hr is None:
        return step.node("Mul", [o, squashed], output)
    hidden = step.node("Mul", [o, squashed])
    return step.node("MatMul", [hidden, products.weight(layer.weight_hr.T)], output)


def _gru(products: Products, network: Network, index: int, inputs: str, bias: Floats) -> str:
    step, before = products.step, f"step_h_{index:02d}"
    candidate = _reset_after if network.reset_after else _reset_before
    z, n = candidate(products, network, index, inputs, bias)
    kept = step.node("Mul", [z, step.node("Sub", [before, n])])
    return step.node("Add", [n, kept], [f"step_next_h_{index:02d}"])


def _reset_after(
    products: Products, network: Network, index: int, inputs: str, bias: Floats
) -> tuple[str, str]:
    """Update gate and candidate, the reset gate applied to the product of the hidden state."""
    step, layer = products.step, network.layers[index]
    size, before = layer.hidden_size, f"step_h_{index:02d}"
    hidden = products.biased(f"weight_hh_{index}", before, layer.weight_hh, bias)
    input_rz, input_n = step.split(inputs, [2 * size, size])
    hidden_rz, hidden_n = step.split(hidden, [2 * size, size])
    rz = step.gate(network.gate, step.node("Add", [input_rz, hidden_rz]))
    r, z = step.split(rz, [size, size])
    reset = step.node("Mul", [r, hidden_n])
    return z, step.node("Tanh", [step.node("Add", [input_n, reset])])


def _reset_before(
    products: Products, network: Network, index: int, inputs: str, _: Floats
) -> tuple[str, str]:
    """Update gate and candidate, the reset gate applied to the hidden state."""
    step, layer = products.step, network.layers[index]
    size, before = layer.hidden_size, f"step_h_{index:02d}"
    weight_rz, weight_n = layer.weight_hh[: 2 * size], layer.weight_hh[2 * size :]
    input_rz, input_n = step.split(inputs, [2 * size, size])
    rz = step.gate(network.gate, products.added("", before, weight_rz, input_rz))
    r, z = step.split(rz, [size, size])
    reset = step.node("Mul", [r, before])
    return z, step.node("Tanh", [products.added("", reset, weight_n, input_n)])


_CELLS = {Cell.RNN_TANH: _rnn, Cell.RNN_RELU: _rnn, Cell.LSTM: _lstm, Cell.GRU: _gru}


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

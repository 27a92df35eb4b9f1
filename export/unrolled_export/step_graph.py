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
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from unrolled_export.cells import Cells
from unrolled_export.filtering import filtered_chances
from unrolled_export.graph_builder import GraphBuilder, tensor
from unrolled_export.network import Network
from unrolled_export.partial_sort import LARGE, leading_chances
from unrolled_export.precision import Precision, quantized
from unrolled_export.products import Products
from unrolled_export.quantization import QuantizedWeight

GRAPH_REVISION = 1
"""Raised whenever the same weights would give other bits: states belong to a revision."""

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
        tensor("pending", TensorProto.INT32, ["B"]),
        tensor("told", TensorProto.INT32, ["K", "B"]),
        tensor("uniforms", TensorProto.DOUBLE, ["K", "B"]),
        tensor("temperature", TensorProto.FLOAT, ["B"]),
        tensor("top_k", TensorProto.INT32, ["B"]),
        tensor("top_p", TensorProto.FLOAT, ["B"]),
        tensor("min_p", TensorProto.FLOAT, ["B"]),
        tensor("filtered", TensorProto.BOOL, []),
        *(tensor(state.input, TensorProto.FLOAT, ["B", state.size]) for state in network.states),
    ]
    outputs = [
        tensor("tokens", TensorProto.INT32, ["K", "B"]),
        tensor("logprobs", TensorProto.FLOAT, ["K", "B", network.vocabulary_size]),
        *(tensor(state.output, TensorProto.FLOAT, ["B", state.size]) for state in network.states),
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
    logits = Cells(products, network, "fed", "step_").logits()
    step.node("LogSoftmax", [logits], ["step_logprobs"], axis=-1)
    step.node("Less", ["step_told", step.integers(0, np.int32)], ["step_is_drawn"])
    drawn = _draw(step, network.vocabulary_size)
    greedy = step.node("ArgMax", ["step_logprobs"], axis=-1, keepdims=0)
    greedy = step.node("Cast", [greedy], to=TensorProto.INT32)
    chosen = step.node("Where", ["is_greedy", greedy, drawn])
    step.node("Where", ["step_is_drawn", chosen, "step_told"], ["step_token"])
    step.node("Identity", ["step_token"], ["step_tokens"])
    states = network.states
    sizes = {f"step_{state.input}": state.size for state in states}
    nexts = {f"step_{state.output}": state.size for state in states}
    return step.graph(
        [
            tensor("fed", TensorProto.INT32, ["B"]),
            *(tensor(name, TensorProto.FLOAT, ["B", size]) for name, size in sizes.items()),
            tensor("step_told", TensorProto.INT32, ["B"]),
            tensor("step_uniforms", TensorProto.DOUBLE, ["B"]),
        ],
        [
            tensor("step_token", TensorProto.INT32, ["B"]),
            *(tensor(name, TensorProto.FLOAT, ["B", size]) for name, size in nexts.items()),
            tensor("step_tokens", TensorProto.INT32, ["B"]),
            tensor("step_logprobs", TensorProto.FLOAT, ["B", network.vocabulary_size]),
        ],
    )


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
    double = step.double(kept)
    cumulative = step.node("CumSum", [double, step.integers(1)])
    total = step.node("Gather", [cumulative, step.integers(vocabulary - 1)], axis=1)
    threshold = step.node("Mul", [total, "step_uniforms"])
    threshold = step.node("Unsqueeze", [threshold, step.integers([1])])
    passed = step.node("LessOrEqual", [cumulative, threshold])
    passed = step.node("Cast", [passed], to=TensorProto.INT32)
    drawn = step.node("ReduceSum", [passed, step.integers([1])], keepdims=0)
    # A row whose chances are no numbers passes all, and what it draws is fed to the next step.
    return step.node("Min", [drawn, step.integers(vocabulary - 1, np.int32)])


def _filtered(step: GraphBuilder, vocabulary: int) -> onnx.GraphProto:
    graph = step.subgraph("filtered_chances")
    if vocabulary < LARGE:
        filtered_chances(graph, "step_logprobs", vocabulary, CumulativeSums(), "filtered_out")
    else:
        told = graph.node("Not", ["step_is_drawn"])
        ignored = graph.node("Or", ["is_greedy", told])
        ignored = graph.node("Unsqueeze", [ignored, graph.integers([1])])
        leading_chances(graph, "step_logprobs", vocabulary, ignored, "filtered_out")
    return graph.graph([], [tensor("filtered_out", TensorProto.FLOAT, ["B", vocabulary])])


class CumulativeSums:
    """Sums by the operator that ONNX has for them."""

    def doubles(self, graph: GraphBuilder, chances: str) -> str:
        return graph.double(chances)

    def before(self, graph: GraphBuilder, doubles: str) -> str:
        return graph.node("CumSum", [doubles, graph.integers(1)], exclusive=1)


def _unfiltered(step: GraphBuilder, vocabulary: int) -> onnx.GraphProto:
    graph = step.subgraph("all_chances")
    graph.node("Identity", ["chances"], ["unfiltered_out"])
    return graph.graph([], [tensor("unfiltered_out", TensorProto.FLOAT, ["B", vocabulary])])

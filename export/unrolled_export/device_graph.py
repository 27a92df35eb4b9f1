"""The graphs for a device: one step of B rows without control flow, and what goes with it.

CUDA graphs are captured from runs in which every node has a kernel on the device, so there is no
Scan and no If here, and nothing that would take a value back to the host in between. Steps
are chained by whoever runs them: the tokens and states that a step makes are bound as inputs of
the next. Sampling parameters come prepared: `divisor` is the temperature, or for a greedy
row GREEDY_DIVISOR, under which all but the likeliest tokens have no chance, with a uniform of 0.

`device.onnx`, B rows, free in every run:

| input | type | shape | |
|---|---|---|---|
| pending | int32 | [B] | the token fed |
| told | int32 | [B] | the token that follows, or -1: draw it |
| uniforms | float64 | [B] | in [0, 1 - 2**-52] |
| divisor | float32 | [B] | positive |
| h_00, c_00, ... | float32 | [B, H] | the states |

Outputs: `token` int32 [B], `logprob` float32 [B, 1] (of the token; NaN where a state is not
finite), `logprobs` float32 [B, V] and the next states.

`device_filters.onnx` draws again, for runs in which a row uses top_k, top_p or min_p: it takes
`logprobs`, `told`, `uniforms`, `divisor`, `top_k` int32, `top_p` and `min_p` float32 [B], and
gives `token` and `logprob`. It holds no weights.

`device_rows.onnx` copies rows of states: row m of an output `h_00` [M, H] is, where `source` [M]
is 0, row `now_row`[m] of `now_h_00`, where 1, row `before_row`[m] of `before_h_00`, else row
`fresh_row`[m] of `fresh_h_00`; all int32.

A draw adds up chances in float64 with products instead of CumSum, whose CUDA kernel is quadratic.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from unrolled_export.cells import Cells
from unrolled_export.errors import PrecisionError
from unrolled_export.filtering import filtered_chances
from unrolled_export.graph_builder import GraphBuilder, tensor
from unrolled_export.half_products import HalfProducts
from unrolled_export.network import Network, State
from unrolled_export.precision import Precision
from unrolled_export.products import Products

STEP = "device.onnx"
FILTERS = "device_filters.onnx"
ROWS = "device_rows.onnx"

GREEDY_DIVISOR = 1e-30
"""Between two different float32 there is no gap that this does not make too wide for a chance."""

LARGEST_TRIANGLE = 256
"""Tokens up to which one product adds up all chances before each; more go in blocks."""

UNIT = 2.0**52
"""Chances in multiples of its inverse add up to less than 2**53: exactly, in any order."""


def device_graphs(network: Network, precision: Precision) -> dict[str, bytes]:
    """All graphs by file name; the same network gives the same bytes.

    In fp16 the network's matrices have to fit in 16 bits (`precision.rounded`). Raises
    PrecisionError for int8, and where a product of fp16 does not fit.
    """
    graphs = {
        STEP: device_step(network, products(precision)),
        FILTERS: _filters(network.vocabulary_size),
        ROWS: _rows(network.states),
    }
    return {name: graph.SerializeToString(deterministic=True) for name, graph in graphs.items()}


def check_precision(precision: Precision) -> None:
    """Raise PrecisionError where a device has no products of such a precision."""
    if precision is Precision.INT8:
        raise PrecisionError("--device cuda: int8 is for CPUs; --precision fp16 is for devices")


def products(precision: Precision) -> Products:
    """Products in a graph that is still empty. Raises PrecisionError for int8."""
    check_precision(precision)
    graph = GraphBuilder("device")
    return HalfProducts(graph) if precision is Precision.FP16 else Products(graph, {}, False)


def device_step(network: Network, empty: Products, cells: type[Cells] = Cells) -> onnx.ModelProto:
    """One step, in the graph of `empty`."""
    graph, size = empty.step, network.vocabulary_size
    logits = cells(empty, network, "pending").logits()
    graph.node("LogSoftmax", [logits], ["logprobs"], axis=-1)
    _columns(graph, "uniforms", "divisor")
    chances = _chances(graph, "logprobs")
    _choose(graph, _drawn(graph, graph.double(chances), size))
    states = network.states
    inputs = [
        tensor("pending", TensorProto.INT32, ["B"]),
        *_draw_inputs(),
        *(tensor(state.input, TensorProto.FLOAT, ["B", state.size]) for state in states),
    ]
    outputs = [
        *_draw_outputs(),
        tensor("logprobs", TensorProto.FLOAT, ["B", size]),
        *(tensor(state.output, TensorProto.FLOAT, ["B", state.size]) for state in states),
    ]
    return graph.model(inputs, outputs)


def _filters(size: int) -> onnx.ModelProto:
    graph = GraphBuilder("device_filters")
    parameters = {
        "top_k": TensorProto.INT32,
        "top_p": TensorProto.FLOAT,
        "min_p": TensorProto.FLOAT,
    }
    _columns(graph, "uniforms", "divisor", *parameters)
    _chances(graph, "logprobs")
    sums = _ExactSums(size)
    kept = filtered_chances(graph, "logprobs", size, sums, "kept")
    _choose(graph, _drawn(graph, sums.doubles(graph, kept), size))
    inputs = [
        tensor("logprobs", TensorProto.FLOAT, ["B", size]),
        *_draw_inputs(),
        *(tensor(name, kind, ["B"]) for name, kind in parameters.items()),
    ]
    return graph.model(inputs, _draw_outputs())


def _rows(states: tuple[State, ...]) -> onnx.ModelProto:
    graph = GraphBuilder("device_rows")
    source = graph.node("Unsqueeze", ["source", graph.integers([1])])
    is_now = graph.node("Equal", [source, graph.integers(0, np.int32)])
    is_before = graph.node("Equal", [source, graph.integers(1, np.int32)])
    places = ("now", "before", "fresh")
    for state in states:
        now, before, fresh = (
            graph.node("Gather", [f"{place}_{state.input}", f"{place}_row"], axis=0)
            for place in places
        )
        other = graph.node("Where", [is_before, before, fresh])
        graph.node("Where", [is_now, now, other], [state.input])
    inputs = [tensor(name, TensorProto.INT32, ["M"]) for name in ("source", *_row_names(places))]
    inputs += [
        tensor(f"{place}_{state.input}", TensorProto.FLOAT, [f"{place}_rows", state.size])
        for state in states
        for place in places
    ]
    outputs = [tensor(state.input, TensorProto.FLOAT, ["M", state.size]) for state in states]
    return graph.model(inputs, outputs)


def _row_names(places: tuple[str, ...]) -> list[str]:
    return [f"{place}_row" for place in places]


def _draw_inputs() -> list[onnx.ValueInfoProto]:
    return [
        tensor("told", TensorProto.INT32, ["B"]),
        tensor("uniforms", TensorProto.DOUBLE, ["B"]),
        tensor("divisor", TensorProto.FLOAT, ["B"]),
    ]


def _draw_outputs() -> list[onnx.ValueInfoProto]:
    return [
        tensor("token", TensorProto.INT32, ["B"]),
        tensor("logprob", TensorProto.FLOAT, ["B", 1]),
    ]


def _columns(graph: GraphBuilder, *names: str) -> None:
    """`x_column` [B, 1] for every input x."""
    for name in names:
        graph.node("Unsqueeze", [name, graph.integers([1])], [f"{name}_column"])


def _chances(graph: GraphBuilder, logprobs: str) -> str:
    scaled = graph.node("Div", [logprobs, "divisor_column"])
    return graph.node("Softmax", [scaled], ["chances"], axis=-1)


def _choose(graph: GraphBuilder, drawn: str) -> None:
    """The outputs `token` and `logprob`: told, or drawn [B]."""
    is_drawn = graph.node("Less", ["told", graph.integers(0, np.int32)])
    token = graph.node("Where", [is_drawn, drawn, "told"], ["token"])
    column = graph.node("Unsqueeze", [token, graph.integers([1])])
    graph.node("GatherElements", ["logprobs", column], ["logprob"], axis=1)


def _drawn(graph: GraphBuilder, doubles: str, size: int) -> str:
    """The token whose share of the sums holds the row's uniform, int32 [B].

    The largest uniform times the total rounds to less than the total, which is the last of the
    sums, so that the count of those passed is less than their number. Not so where chances are no
    numbers; such a row gets some token, which the next step can be fed.
    """
    sums, width = _running_sums(graph, doubles, size)
    total = graph.node("Gather", [sums, graph.integers([width - 1])], axis=1)
    threshold = graph.node("Mul", [total, "uniforms_column"])
    passed = graph.node("LessOrEqual", [sums, threshold])
    # Counted in float32: the kernel for integers goes by way of cuDNN.
    ones = graph.node("Cast", [passed], to=TensorProto.FLOAT)
    count = graph.node("ReduceSum", [ones, graph.integers([1])], keepdims=0)
    token = graph.node("Cast", [count], to=TensorProto.INT32)
    is_one = graph.node("Less", [token, graph.integers(size, np.int32)])
    return graph.node("Where", [is_one, token, graph.integers(0, np.int32)])


def _running_sums(graph: GraphBuilder, doubles: str, size: int) -> tuple[str, int]:
    """Sums up to each of [B, V], and how many there are: those behind the last repeat it."""
    if size <= LARGEST_TRIANGLE:
        return graph.node("MatMul", [doubles, _triangle(graph, size)]), size
    width = 1 << math.ceil(math.log2(size) / 2)
    blocks = -(-size // width)
    padding = graph.integers([0, 0, 0, blocks * width - size])
    padded = graph.node("Pad", [doubles, padding, graph.array(0.0, np.float64)])
    square = graph.node("Reshape", [padded, graph.integers([-1, blocks, width])])
    within = graph.node("MatMul", [square, _triangle(graph, width)])
    totals = graph.node("Gather", [within, graph.integers(width - 1)], axis=2)
    before = graph.node("MatMul", [totals, _triangle(graph, blocks, 1)])
    before = graph.node("Unsqueeze", [before, graph.integers([2])])
    sums = graph.node("Add", [within, before])
    return graph.node("Reshape", [sums, graph.integers([-1, blocks * width])]), blocks * width


def _triangle(graph: GraphBuilder, size: int, above: int = 0) -> str:
    """Ones on and above the diagonal, or from the `above`th next to it."""
    return graph.array(np.triu(np.ones((size, size)), above), np.float64)


class _ExactSums:
    """Sums of chances cut to multiples of 1 / UNIT: where a chance is zero, nothing is added,
    and no token that was dropped can be drawn."""

    def __init__(self, size: int) -> None:
        self._size = size

    def doubles(self, graph: GraphBuilder, chances: str) -> str:
        units = graph.node("Mul", [graph.double(chances), graph.array(UNIT, np.float64)])
        return graph.node("Floor", [units])

    def before(self, graph: GraphBuilder, doubles: str) -> str:
        sums, width = _running_sums(graph, doubles, self._size)
        if width > self._size:
            starts, ends, axes = ([0], [self._size], [1])
            cut = [graph.integers(values) for values in (starts, ends, axes)]
            sums = graph.node("Slice", [sums, *cut])
        return graph.node("Sub", [sums, doubles])

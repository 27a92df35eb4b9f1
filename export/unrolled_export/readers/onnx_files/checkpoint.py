"""Recurrent language models in ONNX, recognised by how their nodes are connected.

From the scores back to the tokens: a linear map, perhaps after dense layers, activations and
layer normalisations, the operators LSTM, GRU or RNN, and a Gather of embeddings or a OneHot.
Operators that only move elements may lie between. ONNX orders the gates of an LSTM i, o, f, c
and of a GRU z, r, h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from unrolled_export.errors import CheckpointError
from unrolled_export.network import (
    Activation,
    Cell,
    Dense,
    Floats,
    Layer,
    LayerNorm,
    Network,
    Stage,
)
from unrolled_export.readers.onnx_files.graph import Graph, is_standard
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings

_RECURRENT = ("LSTM", "GRU", "RNN")
_ORDERS = {Cell.LSTM: (0, 2, 3, 1), Cell.GRU: (1, 0, 2), Cell.RNN_TANH: (0,), Cell.RNN_RELU: (0,)}
"""Where each of PyTorch's gates is found."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_DENSE = {"Relu": Activation.RELU, "Tanh": Activation.TANH, "Sigmoid": Activation.SIGMOID}
_MAX_IDENTITY = 1 << 13
_MOST_ITEMS = 100
_SCORES = ("LogSoftmax", "Softmax", "Log")
_QUANTISED = ("QLinear", "DynamicQuantize", "QuantizeLinear", "DequantizeLinear", "MatMulInteger")
_ONE_HOT_ASSUMED = "the graph's input is the token, one-hot"
_REASONS = {
    "clip": "clips its gates",
    "input_forget": "couples input and forget gate",
}
"""Attributes that are refused where they are not 0, and what they do."""


class OnnxFile:
    """A `.onnx` file of a language model with states as inputs and outputs, or none."""

    kind = "an ONNX model of LSTM, GRU or RNN operators, .onnx"

    def accepts(self, path: Path) -> bool:
        return path.is_file() and path.suffix == ".onnx"

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        model = _load(path)
        graph = Graph(path, model)
        parts = _Parts.of(graph)
        network = _network(graph, parts)
        start, end = (_told_token(model, key, network) for key in ("sos_id", "eos_id"))
        return Checkpoint(
            network,
            (path, *graph.files),
            f"ONNX graph: {parts.reading()}",
            start_token=start,
            end_tokens=() if end is None else (end,),
            assumptions=(_ONE_HOT_ASSUMED,) if parts.tokens is None else (),
        )


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(path, "damaged, cut off, or not an ONNX file") from error
    if not all(isinstance(name, str) for name in _names(model)):
        raise CheckpointError(path, "damaged: a name in it is not UTF-8")
    return model


def _names(model: onnx.ModelProto) -> Iterator[object]:
    """Every name that the reading looks at: where one is not UTF-8, protobuf gives bytes."""
    graph = model.graph
    for node in graph.node:
        yield from (node.op_type, node.name, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in graph.initializer:
        yield tensor.name
        yield from (text for e in tensor.external_data for text in (e.key, e.value))
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (text for entry in model.metadata_props for text in (entry.key, entry.value))
    yield from (opset.domain for opset in model.opset_import)


def _told_token(model: onnx.ModelProto, key: str, network: Network) -> str | None:
    """A token that icefall writes into its models, as `#ID`."""
    values = {entry.key: entry.value for entry in model.metadata_props}
    value = values.get(key, "")
    is_id = value.isascii() and value.isdigit() and len(value) < 10
    return f"#{int(value)}" if is_id and int(value) < network.vocabulary_size else None


@dataclass(frozen=True)
class _Linear:
    """A product, and its bias if it has one: names of constants."""

    weight: str
    is_transposed: bool
    """Whether the constant is [N, M], for x N wide and M results."""
    bias: str | None
    activation: Activation = Activation.LINEAR


@dataclass(frozen=True)
class _Norm:
    """A layer normalisation: names of constants."""

    weight: str
    bias: str | None
    epsilon: float


_Item = _Linear | _Norm | Activation
"""Above the recurrent layers; an activation alone is one of what is no product."""


@dataclass(frozen=True)
class _Parts:
    """The nodes of a language model."""

    items: tuple[_Item, ...]
    """From the top layer to the head, which is not among them."""
    head: _Linear
    recurrent: tuple[onnx.NodeProto, ...]
    """Bottom layer first."""
    tokens: onnx.NodeProto | None
    """Gather or OneHot; None where the graph's input is one-hot."""

    @classmethod
    def of(cls, graph: Graph) -> _Parts:
        """Find them. Raises CheckpointError where the graph is something else."""
        recurrent = [node for node in graph.nodes if _is(node, *_RECURRENT)]
        _refuse_quantised(graph)
        if not recurrent:
            raise graph.error("has no LSTM, GRU or RNN operator")
        head, name = _linear(graph, _scores(graph), Activation.LINEAR)
        items, name = _items(graph, name)
        layers: list[onnx.NodeProto] = []
        while (node := graph.producer(name)) is not None and _is(node, *_RECURRENT):
            if name not in node.output[:2] or (layers and name != node.output[0]):
                raise graph.error(f"{graph.shown(node)} passes on its cell or last state")
            layers.insert(0, node)
            name = graph.moved(graph.read(node, 0))
            if len(layers) > len(recurrent):
                raise graph.error(f"{graph.shown(node)} reads what it makes")
        is_input = node is None and name in graph.inputs
        if not is_input and (node is None or not _is(node, "Gather", "OneHot")):
            raise graph.error(_unread(graph, name, node))
        if len(layers) != len(recurrent):
            raise graph.error(
                f"has {len(recurrent)} recurrent nodes, of which {len(layers)} are in line from "
                "the tokens to the scores"
            )
        return cls(items, head, tuple(layers), node)

    def reading(self) -> str:
        """Which nodes were found, in words."""
        tokens = "one-hot input" if self.tokens is None else self.tokens.op_type
        layers = f"{len(self.recurrent)} {self.recurrent[0].op_type}"
        kinds = {_Linear: "dense", _Norm: "layer normalisation", Activation: "activation"}
        found = [next(kinds[kind] for kind in kinds if isinstance(i, kind)) for i in self.items]
        stages = "".join(f"{found.count(kind)} {kind}, " for kind in dict.fromkeys(found))
        return f"{tokens}, {layers}, {stages}head {self.head.weight!r}"


def _is(node: onnx.NodeProto, *operators: str) -> bool:
    return is_standard(node) and node.op_type in operators


def _refuse_quantised(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type.startswith(_QUANTISED) or node.op_type.endswith("Integer"):
            raise graph.error(
                f"{graph.shown(node)} is quantised: convert the float32 model it was made from"
            )


def _unread(graph: Graph, name: str, node: onnx.NodeProto | None) -> str:
    if node is None:
        return f"value {name!r} comes from no embedding of tokens"
    return f"{graph.shown(node)} is not read in this place"


def _scores(graph: Graph) -> str:
    """The value that the graph's output of scores is made of, before a softmax."""
    found = {}
    for output in graph.outputs:
        name = _before_softmax(graph, graph.moved(output))
        node = graph.producer(name)
        # States are outputs as well, stacked by a Concat where there are several.
        if node is not None and not _is(node, "Concat", *_RECURRENT):
            found[name] = output
    if len(found) != 1:
        outputs = ", ".join(ascii(name) for name in found.values()) or "none"
        raise graph.error(f"should have one output of scores beside the states, but has {outputs}")
    return next(iter(found))


def _before_softmax(graph: Graph, name: str) -> str:
    """What a value is the softmax of, or its logarithm; the value itself where it is neither.

    A softmax of logarithms of probabilities is these again; one of probabilities is refused.
    """
    passed = 0
    while (node := graph.producer(name)) is not None and _is(node, *_SCORES):
        passed += 1
        if passed > _MOST_ITEMS:
            raise graph.error("has a path of too many nodes")
        if node.op_type != "Log":
            graph.check_last_axis(node)
        name = graph.moved(graph.read(node, 0))
        below = graph.producer(name)
        if (node.op_type == "Log") != (below is not None and _is(below, "Softmax")):
            read = repr(name) if below is None else graph.shown(below)
            raise graph.error(f"{graph.shown(node)} is not read in this place, on {read}")
    return name


def _items(graph: Graph, name: str) -> tuple[tuple[_Item, ...], str]:
    """What stands between the recurrent layers and the head, and what the first of it reads."""
    items: list[_Item] = []
    while (node := graph.producer(name)) is not None and not _is(node, *_RECURRENT):
        if len(items) > _MOST_ITEMS:
            raise graph.error("has a path of too many nodes")
        item, name = _item(graph, name, node)
        items.insert(0, item)
    return tuple(items), name


def _item(graph: Graph, name: str, node: onnx.NodeProto) -> tuple[_Item, str]:
    """The part that `node` ends, which makes `name`, and what it reads."""
    if _is(node, "LayerNormalization"):
        return _norm(graph, node), graph.moved(graph.read(node, 0))
    if not _is(node, *_DENSE):
        return _linear(graph, name, Activation.LINEAR)
    activation, name = _DENSE[node.op_type], graph.moved(graph.read(node, 0))
    below = graph.producer(name)
    if below is not None and _is(below, "Add", "Gemm", "MatMul"):
        return _linear(graph, name, activation)
    return activation, name


def _norm(graph: Graph, node: onnx.NodeProto) -> _Norm:
    """Defaults are those of the operator."""
    told = graph.attributes(node)
    epsilon = told.get("epsilon", 1e-5)
    if told.get("axis", -1) != -1:
        raise graph.error(f"{graph.shown(node)} is over several axes (axis {told['axis']!r})")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise graph.error(f"{graph.shown(node)} has epsilon {epsilon!r}")
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    return _Norm(graph.read(node, 1), bias, epsilon)


def _linear(graph: Graph, name: str, activation: Activation) -> tuple[_Linear, str]:
    """The linear map that makes a value, and what it reads."""
    top, bias = graph.producer(name), None
    node = top
    if node is not None and _is(node, "Add") and len(node.input) == 2:
        constants = [index for index in (0, 1) if graph.constant(node.input[index]) is not None]
        if len(constants) == 1:
            bias = node.input[constants[0]]
            node = graph.producer(graph.moved(node.input[1 - constants[0]]))
    if node is not None and _is(node, "Gemm") and bias is None and _is_plain_gemm(graph, node):
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        is_transposed = not graph.attributes(node).get("transB", 0)
        linear = _Linear(node.input[1], is_transposed, bias, activation)
    elif node is not None and _is(node, "MatMul") and len(node.input) == 2:
        linear = _Linear(node.input[1], True, bias, activation)
    else:
        # A bias on a recurrent node is at fault, not that node.
        is_read = node is not None and _is(node, *_RECURRENT)
        raise graph.error(_unread(graph, name, top if is_read else node))
    return linear, graph.moved(graph.read(node, 0))


def _is_plain_gemm(graph: Graph, node: onnx.NodeProto) -> bool:
    told = graph.attributes(node)
    is_plain = told.get("alpha", 1.0) == 1 and told.get("beta", 1.0) == 1
    return is_plain and not told.get("transA", 0) and len(node.input) >= 2


def _network(graph: Graph, parts: _Parts) -> Network:
    head = _dense(graph, parts.head)
    embedding = _embedding(graph, parts, len(head.weight))
    below = len(head.weight) if embedding is None else int(embedding.shape[1])
    cell, reset_after = _cell(graph, parts.recurrent)
    layers: list[Layer] = []
    for node in parts.recurrent:
        layers.append(_layer(graph, node, cell, below))
        below = layers[-1].hidden_size
    stages: list[Stage] = []
    for item in parts.items:
        stages.append(_stage(graph, item, below))
        below = len(stages[-1].weight)
    _check_fits(graph, head, below)
    initial = _initial(graph, parts.recurrent, layers, cell)
    graph.check_all_used(parts.reading())
    return Network(
        cell,
        embedding,
        tuple(layers),
        head.weight,
        head.bias,
        _parameters(graph, parts),
        stages=tuple(stages),
        reset_after=reset_after,
        initial=initial,
    )


def _stage(graph: Graph, item: _Item, below: int) -> Stage:
    if isinstance(item, Activation):
        if below > _MAX_IDENTITY:
            raise graph.error(f"{item} of {below} units without a product is not read")
        return Dense(np.eye(below, dtype=np.float32), np.zeros(below, np.float32), item)
    if isinstance(item, _Norm):
        zeros = np.zeros(below, np.float32)
        bias = zeros if item.bias is None else graph.take(item.bias, (below,))
        return LayerNorm(graph.take(item.weight, (below,)), bias, item.epsilon)
    dense = _dense(graph, item)
    _check_fits(graph, dense, below)
    return dense


def _check_fits(graph: Graph, dense: Dense, below: int) -> None:
    if dense.weight.shape[1] != below:
        shape = list(dense.weight.shape)
        raise graph.error(f"a product with weights {shape} does not fit {below} inputs")


def _dense(graph: Graph, linear: _Linear) -> Dense:
    weight = graph.take(linear.weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise graph.error(f"{linear.weight!r} {list(weight.shape)} is not a matrix of weights")
    weight = np.ascontiguousarray(weight.T if linear.is_transposed else weight)
    if linear.bias is None:
        return Dense(weight, np.zeros(len(weight), np.float32), linear.activation)
    bias = graph.take(linear.bias)
    if bias.size != len(weight) or bias.size != bias.shape[-1:][0]:
        raise graph.error(f"{linear.bias!r} {list(bias.shape)} should be [{len(weight)}]")
    return Dense(weight, bias.reshape(-1), linear.activation)


def _embedding(graph: Graph, parts: _Parts, vocabulary: int) -> Floats | None:
    """The table of a Gather, None where the input is one-hot."""
    node = parts.tokens
    if node is None:
        return None
    name = graph.moved(graph.read(node, 1 if node.op_type == "Gather" else 0))
    if name not in graph.inputs:
        # Constant indices rearrange values, and look no tokens up.
        maker = node if graph.constant(name) is not None else graph.producer(name)
        raise graph.error(_unread(graph, name, maker))
    if node.op_type == "OneHot":
        _check_one_hot(graph, node, vocabulary)
        return None
    embedding = graph.take(node.input[0])
    if embedding.ndim != 2 or len(embedding) != vocabulary:
        shown = f"{node.input[0]!r} {list(embedding.shape)}"
        raise graph.error(f"{shown} is not an embedding of the head's {vocabulary} tokens")
    if graph.attributes(node).get("axis", 0) != 0:
        raise graph.error(f"{graph.shown(node)} does not select rows")
    return embedding


def _check_one_hot(graph: Graph, node: onnx.NodeProto, vocabulary: int) -> None:
    depth, values = (graph.constant(graph.read(node, index)) for index in (1, 2))
    is_depth = depth is not None and depth.array.ravel().tolist() == [vocabulary]
    if not is_depth or values is None or values.array.ravel().tolist() != [0, 1]:
        raise graph.error(f"{graph.shown(node)} is not one-hot over {vocabulary} tokens")
    graph.use(values)


def _cell(graph: Graph, nodes: tuple[onnx.NodeProto, ...]) -> tuple[Cell, bool]:
    """The cell, and whether the reset gate of a GRU comes after the product."""
    found = {_cell_of(graph, node) for node in nodes}
    if len(found) > 1:
        cells = ", ".join(sorted({node.op_type for node in nodes}))
        raise graph.error(f"has layers of different cells or variants: {cells}")
    return found.pop()


def _cell_of(graph: Graph, node: onnx.NodeProto) -> tuple[Cell, bool]:
    told, shown = graph.attributes(node), graph.shown(node)
    if told.get("direction", b"forward") != b"forward":
        raise graph.error(
            f"{shown} is bidirectional or reversed: it reads a text from its end and so cannot "
            "continue one"
        )
    for attribute, reason in _REASONS.items():
        if told.get(attribute, 0):
            raise graph.error(f"{shown} {reason} ({attribute}), which is not read")
    if len(node.input) > 4 and node.input[4]:
        raise graph.error(f"{shown} has lengths of sequences, which is not read")
    if len(node.input) > 7 and node.input[7]:
        raise graph.error(f"{shown} has peephole weights, which is not read")
    names = told.get("activations", [])
    activations = [
        name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
        for name in (names if isinstance(names, list) else [names])
    ] or _DEFAULTS[node.op_type]
    if node.op_type == "RNN" and activations == ["Relu"]:
        return Cell.RNN_RELU, True
    if activations != _DEFAULTS[node.op_type]:
        told_names = ascii(", ".join(activations))[1:-1]
        raise graph.error(f"{shown} has activations {told_names}, which are not read")
    if node.op_type == "GRU":
        return Cell.GRU, bool(told.get("linear_before_reset", 0))
    return (Cell.LSTM if node.op_type == "LSTM" else Cell.RNN_TANH), True


def _layer(graph: Graph, node: onnx.NodeProto, cell: Cell, below: int) -> Layer:
    if len(node.input) < 3:
        raise graph.error(f"{graph.shown(node)} has no weights")
    recurrence = graph.take(node.input[2])
    hidden = recurrence.shape[-1] if recurrence.ndim == 3 else 0
    rows = cell.gates * hidden
    if hidden == 0 or graph.attributes(node).get("hidden_size", hidden) != hidden:
        raise graph.error(f"{graph.shown(node)} has a hidden_size that its weights have not")
    weight_hh = graph.take(node.input[2], (1, rows, hidden))[0]
    weight_ih = graph.take(node.input[1], (1, rows, below))[0]
    bias = np.zeros((1, 2 * rows), np.float32)
    if len(node.input) > 3 and node.input[3]:
        bias = graph.take(node.input[3], (1, 2 * rows))
    return Layer(
        _torch_order(weight_ih, cell),
        _torch_order(weight_hh, cell),
        _torch_order(bias[0, :rows], cell),
        _torch_order(bias[0, rows:], cell),
    )


def _torch_order(array: Floats, cell: Cell) -> Floats:
    blocks = np.split(array, cell.gates)
    return np.concatenate([blocks[gate] for gate in _ORDERS[cell]])


def _initial(
    graph: Graph, nodes: tuple[onnx.NodeProto, ...], layers: list[Layer], cell: Cell
) -> tuple[Floats, ...] | None:
    """The states before any token where the graph holds others than zeros."""
    kinds = (5, 6) if cell is Cell.LSTM else (5,)
    states = [
        _initial_state(graph, node, node.input[at] if at < len(node.input) else "", layer)
        for node, layer in zip(nodes, layers, strict=True)
        for at in kinds
    ]
    return tuple(states) if any(state.any() for state in states) else None


def _initial_state(graph: Graph, node: onnx.NodeProto, name: str, layer: Layer) -> Floats:
    """A constant [.., H], or zeros where the state is an input of the graph or left out."""
    zeros, shown = np.zeros(layer.hidden_size, np.float32), graph.shown(node)
    name = name and _unexpanded(graph, name)
    if not name or (source := graph.moved(name)) in graph.inputs:
        return zeros
    if graph.constant(source) is None:
        maker = graph.producer(source)
        if maker is not None and _is(maker, "ConstantOfShape") and _fills_zeros(graph, maker):
            return zeros
        raise graph.error(f"{shown}: its first state is neither an input nor a constant")
    if source != name and not graph.take(source).any():
        return zeros
    state = graph.take(name)
    rows = state.reshape(-1, layer.hidden_size) if state.size % layer.hidden_size == 0 else None
    if rows is None or len(rows) == 0 or (rows != rows[0]).any():
        raise graph.error(f"{shown}: its first state {list(state.shape)} is not that of one row")
    first: Floats = rows[0]
    return first


def _unexpanded(graph: Graph, name: str) -> str:
    """What a first state repeats for each row, where it does."""
    node = graph.producer(graph.moved(name))
    return graph.read(node, 0) if node is not None and _is(node, "Expand") else name


def _fills_zeros(graph: Graph, node: onnx.NodeProto) -> bool:
    value = graph.attributes(node).get("value")
    return value is None or (isinstance(value, onnx.TensorProto) and not graph.array(value).any())


def _parameters(graph: Graph, parts: _Parts) -> int:
    """Numbers in the weights that were taken, those of a tied head once."""
    above = [item for item in (*parts.items, parts.head) if not isinstance(item, Activation)]
    names = [name for item in above for name in (item.weight, item.bias) if name]
    names += [name for node in parts.recurrent for name in node.input[1:4] if name]
    if parts.tokens is not None and parts.tokens.op_type == "Gather":
        names.append(parts.tokens.input[0])
    constants = [constant for name in names if (constant := graph.constant(name)) is not None]
    return graph.size(constants)

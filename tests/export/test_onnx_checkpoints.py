"""ONNX language models made elsewhere, against what onnxruntime computes of them."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Dense, Network
from unrolled_export.portable_graph import portable_graph
from unrolled_export.readers.onnx_files.checkpoint import OnnxFile
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.reference_numpy import NumpyReference

Array = NDArray[Any]
TOKENS, UNITS, WIDTH = 7, 4, 3
IDS = np.array([[3, 1, 4, 1, 5, 0, 2, 6, 6, 3]])
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass
class Made:
    """A graph under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{operator}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, names[0], **attributes))
        return names

    def one(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.node(operator, *inputs, **attributes)[0]

    def tensor(self, name: str, array: Array) -> str:
        self.tensors[name] = array
        return name

    def integers(self, *values: int) -> str:
        return self.tensor("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def input(self, name: str, kind: int, *shape: str | int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: str) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name))
        self.outputs.append(name)

    def model(self, opset: int = 17) -> onnx.ModelProto:
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        constants = [numpy_helper.from_array(a, name) for name, a in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "lm", self.inputs, outputs, constants)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def icefall(
    operator: str = "LSTM", layers: int = 2, *, tied: bool = False, **attributes: Any
) -> Made:
    """As icefall exports its language models: x (N, L), states stacked in (layers, N, H)."""
    made, width = Made(), UNITS if tied else WIDTH
    x = made.input("x", TensorProto.INT64, "N", "L")
    kinds = ("h", "c") if operator == "LSTM" else ("h",)
    states = [made.input(f"{k}0", TensorProto.FLOAT, layers, "N", UNITS) for k in kinds]
    embedding = made.tensor("embedding", random(TOKENS, width, seed=1))
    value = made.one("Transpose", made.one("Gather", embedding, x), perm=[1, 0, 2])
    nexts: list[list[str]] = []
    for layer in range(layers):
        value, after = recurrent(made, operator, layer, value, states, width, attributes)
        nexts.append(after)
        width = UNITS
    value = made.one("Transpose", value, perm=[1, 0, 2])
    head = "embedding" if tied else made.tensor("head", random(TOKENS, UNITS, seed=2))
    product = made.one("MatMul", value, made.one("Transpose", head, perm=[1, 0]))
    logits = made.one("Add", made.tensor("bias", random(TOKENS, seed=3)), product)
    made.output("log_softmax", made.one("LogSoftmax", logits, axis=-1))
    for kind, parts in zip(kinds, zip(*nexts, strict=True), strict=True):
        made.output(f"next_{kind}0", made.one("Concat", *parts, axis=0))
    return made


def recurrent(
    made: Made,
    operator: str,
    layer: int,
    value: str,
    states: list[str],
    width: int,
    attributes: dict[str, Any],
) -> tuple[str, list[str]]:
    rows, first = GATES[operator] * UNITS, made.integers(layer)
    last, axes = made.integers(layer + 1), made.integers(0)
    befores = [made.one("Slice", state, first, last, axes) for state in states]
    weights = [
        made.tensor(f"W{layer}", random(1, rows, width, seed=10 + layer) / 2),
        made.tensor(f"R{layer}", random(1, rows, UNITS, seed=20 + layer) / 2),
        made.tensor(f"B{layer}", random(1, 2 * rows, seed=30 + layer)),
    ]
    y, *after = made.node(
        operator,
        value,
        *weights,
        "",
        *befores,
        outputs=1 + len(befores),
        hidden_size=UNITS,
        **attributes,
    )
    return made.one("Squeeze", y, made.integers(1)), after


def save(made: Made | onnx.ModelProto, folder: Path, **options: Any) -> Path:
    model, path = (made.model() if isinstance(made, Made) else made), folder / "lm.onnx"
    onnx.save(model, str(path), **options)
    return path


def read(path: Path) -> Checkpoint:
    reader = OnnxFile()
    assert reader.accepts(path)
    return reader.read(path, Settings())


def logprobs(network: Network) -> Array:
    initial = network.initial or [np.zeros(s.size, np.float32) for s in network.states]
    states = {s.input: a[None] for s, a in zip(network.states, initial, strict=True)}
    result: Array = NumpyReference(network).advance(IDS, states)[0]
    return result


def run(path: Path, first: Any = IDS) -> Array:
    """The first output, from zero states, as onnxruntime computes it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        feeds[value.name] = np.zeros(shape, np.float32) if feeds else first
    return np.asarray(session.run(None, feeds)[0])


def log_softmax(logits: Array) -> Array:
    shifted: Array = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def check(path: Path, first: Any = IDS) -> Checkpoint:
    """Read the file and compare with onnxruntime; returns what was read."""
    checkpoint = read(path)
    expected = log_softmax(run(path, first)).reshape(1, -1, TOKENS)
    np.testing.assert_allclose(logprobs(checkpoint.network), expected, rtol=0, atol=1e-5)
    return checkpoint


@pytest.mark.parametrize(
    ("operator", "attributes", "cell", "reset_after"),
    [
        ("LSTM", {}, Cell.LSTM, True),
        ("GRU", {}, Cell.GRU, False),
        ("GRU", {"linear_before_reset": 1}, Cell.GRU, True),
        ("RNN", {}, Cell.RNN_TANH, True),
        ("RNN", {"activations": ["Relu"]}, Cell.RNN_RELU, True),
    ],
)
def test_stacked_states(
    operator: str, attributes: dict[str, Any], cell: Cell, reset_after: bool, tmp_path: Path
) -> None:
    made = icefall(operator, **attributes)
    network = check(save(made, tmp_path)).network
    assert (network.cell, network.reset_after) == (cell, reset_after)
    weights = ("embedding", "head", "bias", "W0", "R0", "B0", "W1", "R1", "B1")
    assert network.parameters == sum(made.tensors[name].size for name in weights)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    network = check(save(icefall(tied=True, layers=1), tmp_path)).network
    assert network.parameters == TOKENS * (UNITS + 1) + 4 * UNITS * (2 * UNITS + 2)


def scored(*operators: str) -> Made:
    """With these after the head in place of a LogSoftmax."""
    made = icefall("GRU")
    at = next(at for at, node in enumerate(made.nodes) if node.op_type == "LogSoftmax")
    old, value = made.nodes.pop(at), made.nodes[at - 1].output[0]
    for operator in operators:
        value = made.one(operator, value, **({} if operator == "Log" else {"axis": -1}))
    next(node for node in made.nodes if old.output[0] in node.input).input[0] = value
    made.nodes.sort(key=lambda node: node.op_type in ("Identity", "Concat"))
    return made


@pytest.mark.parametrize(
    "operators",
    [(), ("LogSoftmax",), ("Softmax", "Log"), ("LogSoftmax", "LogSoftmax")],
    ids=" ".join,
)
def test_what_makes_probabilities(operators: tuple[str, ...], tmp_path: Path) -> None:
    check(save(scored(*operators), tmp_path))


def test_probabilities(tmp_path: Path) -> None:
    path = save(scored("Softmax"), tmp_path)
    expected = np.log(run(path)).reshape(1, -1, TOKENS)
    np.testing.assert_allclose(logprobs(read(path).network), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("operators", "problem"),
    [
        (("Softmax", "LogSoftmax"), "LogSoftmax LogSoftmax_1"),
        (("Softmax", "Softmax"), "Softmax Softmax_1"),
        (("Log",), "Log Log_1"),
        (("LogSoftmax", "Log"), "Log Log_1"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_softmax_or_logarithm_too_many(
    operators: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    assert problem in refusal(save(scored(*operators), tmp_path))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("axis", "rank", "opset", "is_served"),
    [
        (2, 3, 17, True),
        (2, None, 17, False),
        (1, 3, 17, False),
        (-2, 3, 17, False),
        (2, 3, 12, True),
        (None, 3, 12, False),
    ],
)
def test_the_axis_of_a_softmax(
    operator: str, axis: int | None, rank: int | None, opset: int, is_served: bool, tmp_path: Path
) -> None:
    made = scored(operator)
    node = next(node for node in made.nodes if node.op_type == operator)
    del node.attribute[:]
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    model = made.model(opset)
    if rank is not None:
        shape: list[str | int | None] = ["N", "L", TOKENS]
        value = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)
        model.graph.value_info.append(value)
    path = save(model, tmp_path)
    if is_served:
        read(path)
    else:
        assert f" is over axis {1 if axis is None else axis} of" in refusal(path)


@pytest.mark.parametrize("operator", ["LogSoftmax", "Identity", "Relu", "Add", "LSTM"])
def test_a_node_that_reads_its_own_output(operator: str, tmp_path: Path) -> None:
    made = icefall()
    node = next((node for node in made.nodes if node.op_type == operator), None)
    if node is None:
        node = helper.make_node(operator, ["x"], ["own"], "own")
        last = next(node for node in made.nodes if "log_softmax" in node.output)
        made.nodes.append(node)
        last.input[0] = "own"
    node.input[-1 if operator == "Add" else 0] = node.output[0]
    assert refusal(save(made, tmp_path))


def test_tokens_that_icefall_names(tmp_path: Path) -> None:
    model = icefall().model()
    helper.set_model_props(model, {"sos_id": "1", "eos_id": "2", "version": "1"})
    checkpoint = check(save(model, tmp_path))
    assert (checkpoint.start_token, checkpoint.end_tokens) == ("#1", ("#2",))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("embedding", [None, WIDTH])
def test_the_portable_graph_of_this_project(
    cell: str, embedding: int | None, tmp_path: Path
) -> None:
    path = save(icefall({"rnn": "RNN"}.get(cell, cell.upper())), tmp_path)
    network = read(path).network
    if not network.reset_after:
        network = Network(**{**vars(network), "reset_after": True})
    if embedding is None:
        first = network.layers[0]
        rows = len(first.weight_ih)
        layer = type(first)(**{**vars(first), "weight_ih": random(rows, TOKENS, seed=5)})
        layers = (layer, *network.layers[1:])
        network = Network(**{**vars(network), "embedding": None, "layers": layers})
    again = check(save(portable_graph(network), tmp_path)).network
    for (name, array), (other, expected) in zip(again.arrays(), network.arrays(), strict=True):
        assert name == other
        np.testing.assert_array_equal(array, expected)


class TorchModel(nn.Module):
    def __init__(self, kind: str, *, one_hot: bool = False, dense: bool = False) -> None:
        super().__init__()
        self.embedding = None if one_hot else nn.Embedding(TOKENS, WIDTH)
        module = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.rnn = module(TOKENS if one_hot else WIDTH, UNITS, 2, batch_first=True)
        middle = (nn.Linear(UNITS, 5), nn.ReLU()) if dense else ()
        self.head = nn.Sequential(*middle, nn.Linear(5 if dense else UNITS, TOKENS))

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> Any:
        values = x if self.embedding is None else self.embedding(x)
        given = (states[0] if len(states) == 1 else states) if states else None
        values, after = self.rnn(values, given)
        return self.head(values), after


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("folding", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("variant", ["", "one_hot", "dense", "stateless"])
def test_what_pytorch_exports(kind: str, folding: bool, variant: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = TorchModel(kind, one_hot=variant == "one_hot", dense=variant == "dense").eval()
    ids = torch.from_numpy(IDS)
    first = nn.functional.one_hot(ids, TOKENS).float() if variant == "one_hot" else ids
    count = 0 if variant == "stateless" else 2 if kind == "lstm" else 1
    states = tuple(torch.zeros(2, 1, UNITS) for _ in range(count))
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (first, *states),
            str(path),
            dynamo=False,
            do_constant_folding=folding,
            opset_version=14,
            input_names=["x", "h", "c"][: 1 + count],
        )
    checkpoint = check(path, first.numpy())
    assert checkpoint.network.parameters == sum(p.numel() for p in model.parameters())
    assert bool(checkpoint.assumptions) == (variant == "one_hot")
    assert len(checkpoint.network.stages) == (variant == "dense")


@pytest.mark.parametrize(
    ("middle", "stages"),
    [
        ([nn.ReLU()], ["relu"]),
        ([nn.Tanh(), nn.Sigmoid()], ["tanh", "sigmoid"]),
        ([nn.LayerNorm(UNITS, eps=0.5)], ["norm"]),
        ([nn.LayerNorm(UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS)], ["norm", "relu", "linear"]),
        ([nn.Linear(UNITS, UNITS), nn.Tanh(), nn.LayerNorm(UNITS)], ["tanh", "norm"]),
    ],
)
def test_what_stands_under_the_head(
    middle: list[nn.Module], stages: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model = TorchModel("gru").eval()
    model.head = nn.Sequential(*middle, nn.Linear(UNITS, TOKENS))
    for module in middle:
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    path, arguments = tmp_path / "m.onnx", (torch.from_numpy(IDS),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), dynamo=False, opset_version=17)
    network = check(path).network
    found = [stage.activation if isinstance(stage, Dense) else "norm" for stage in network.stages]
    assert found == stages
    assert network.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("operator", ["Elu", "Erf", "Softsign"])
def test_an_element_wise_node_under_the_head_is_named(operator: str, tmp_path: Path) -> None:
    made = icefall("GRU")
    product = next(node for node in made.nodes if node.op_type == "MatMul")
    product.input[0] = made.one("Relu", made.one(operator, product.input[0]))
    assert f"{operator} {operator}_" in refusal(save(made, tmp_path))


def test_a_shift_under_the_head_is_named(tmp_path: Path) -> None:
    made = icefall("GRU")
    product = next(node for node in made.nodes if node.op_type == "MatMul")
    shift = made.tensor("shift", random(UNITS, seed=7))
    product.input[0] = made.one("Add", product.input[0], shift)
    assert f"{made.nodes[-1].name} is not read" in refusal(save(made, tmp_path))


def test_a_norm_over_several_axes(tmp_path: Path) -> None:
    made = icefall("GRU")
    product = next(node for node in made.nodes if node.op_type == "MatMul")
    weight = made.tensor("gamma", random(10, UNITS, seed=7))
    product.input[0] = made.one("LayerNormalization", product.input[0], weight, axis=-2)
    assert "is over several axes" in refusal(save(made, tmp_path))


def test_a_first_state_that_is_not_zero(tmp_path: Path) -> None:
    made = icefall("GRU", layers=1)
    state = random(1, 1, UNITS, seed=8)
    made.inputs.pop()
    made.tensor("h0", state)
    network = check(save(made, tmp_path)).network
    assert network.initial is not None
    np.testing.assert_array_equal(network.initial[0], state[0, 0])


def test_a_first_state_that_is_repeated_for_each_row(tmp_path: Path) -> None:
    made = icefall("GRU", layers=1)
    state, shape = made.tensor("learned", random(1, 1, UNITS, seed=8)), made.integers(1, 1, UNITS)
    expand = helper.make_node("Expand", [state, shape], [made.inputs.pop().name], "repeated")
    made.nodes.insert(0, expand)
    network = check(save(made, tmp_path)).network
    assert network.initial is not None
    np.testing.assert_array_equal(network.initial[0], made.tensors["learned"][0, 0])


# --- What is refused ---------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("operator", "attributes", "problem"),
    [
        ("LSTM", {"clip": 3.0}, "clips its gates (clip)"),
        ("LSTM", {"input_forget": 1}, "couples input and forget gate"),
        ("LSTM", {"direction": "bidirectional"}, "bidirectional or reversed"),
        ("GRU", {"direction": "reverse"}, "bidirectional or reversed"),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "activations HardSigmoid, Tanh"),
        ("RNN", {"activations": ["Affine"]}, "activations Affine"),
    ],
)
def test_variants_that_are_not_read(
    operator: str, attributes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    text = refusal(save(icefall(operator, **attributes), tmp_path))
    assert f"{operator} {operator}_" in text
    assert problem in text


@pytest.mark.parametrize(
    ("at", "name", "problem"),
    [(4, "lengths", "lengths of sequences"), (7, "peepholes", "peephole weights")],
)
def test_inputs_that_are_not_read(at: int, name: str, problem: str, tmp_path: Path) -> None:
    model = icefall().model()
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.input.extend([""] * (at + 1 - len(node.input)))
    node.input[at] = name
    assert problem in refusal(save(model, tmp_path))


def changed(operator: str, replacement: str, domain: str = "") -> onnx.ModelProto:
    """A model with another operator in place of the first of a kind."""
    model = icefall().model()
    node = next(node for node in model.graph.node if node.op_type == operator)
    node.op_type, node.domain = replacement, domain
    return model


@pytest.mark.parametrize(
    ("operator", "replacement", "problem"),
    [
        ("Squeeze", "Mul", "Mul Squeeze_"),
        ("Add", "Sub", "Sub Add_"),
        ("Gather", "Add", "Add Gather_"),
        ("MatMul", "MatMulInteger", "is quantised: convert the float32 model"),
        ("LSTM", "DynamicQuantizeLSTM", "is quantised: convert the float32 model"),
        ("LSTM", "Scan", "Scan LSTM_"),
    ],
)
def test_nodes_that_are_not_read(
    operator: str, replacement: str, problem: str, tmp_path: Path
) -> None:
    assert problem in refusal(save(changed(operator, replacement), tmp_path))


def test_a_node_of_another_domain(tmp_path: Path) -> None:
    model = changed("MatMul", "MatMul", "com.example")
    assert "com.example.MatMul MatMul_" in refusal(save(model, tmp_path))


def test_no_recurrent_layer(tmp_path: Path) -> None:
    model = icefall().model()
    others = [node for node in model.graph.node if node.op_type != "LSTM"]
    del model.graph.node[:]
    model.graph.node.extend(others)
    assert "no LSTM, GRU or RNN" in refusal(save(model, tmp_path))


def test_a_sequence_turned_round(tmp_path: Path) -> None:
    made = icefall("GRU", layers=1)
    turned = made.node("Slice", "Gather_0_0", *(made.integers(n) for n in (-1, -99, 1, -1)))
    made.nodes.insert(1, made.nodes.pop())
    transpose = next(node for node in made.nodes if node.op_type == "Transpose")
    transpose.input[0] = turned[0]
    assert "Slice" in refusal(save(made, tmp_path))


def selecting(place: str, indices: tuple[int, ...], axis: int) -> Made:
    """With a Gather of constant indices below or above the recurrent layer."""
    made = icefall("GRU", layers=1)
    reader = next(node for node in made.nodes if node.op_type == place)
    at = made.nodes.index(reader)
    name = made.one("Gather", reader.input[0], made.integers(*indices), axis=axis)
    reader.input[0] = name
    made.nodes.insert(at, made.nodes.pop())
    return made


@pytest.mark.parametrize(
    ("place", "indices", "axis"),
    [
        ("GRU", (0, 1, 2), 2),
        ("MatMul", (0, 1, 2, 3), 2),
        ("MatMul", (-4, -3, -2, -1), 2),
        ("MatMul", (0,), 0),
    ],
)
def test_a_selection_that_keeps_the_order(
    place: str, indices: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    check(save(selecting(place, indices, axis), tmp_path))


@pytest.mark.parametrize(
    ("place", "indices", "axis"),
    [
        ("GRU", (2, 1, 0), 2),
        ("GRU", (0, 1, 1), 2),
        ("GRU", tuple(range(9, -1, -1)), 0),
        ("MatMul", (3, 2, 1, 0), 2),
        ("MatMul", (-2, -1, 0, 1), 2),
    ],
)
def test_a_selection_in_another_order(
    place: str, indices: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    text = refusal(save(selecting(place, indices, axis), tmp_path))
    assert "Gather Gather_" in text
    assert "is not read in this place" in text


def test_weights_that_are_left_over(tmp_path: Path) -> None:
    made = icefall()
    made.tensor("attention", random(3, 3, seed=1))
    assert "left over: 'attention' [3, 3] (read as" in refusal(save(made, tmp_path))


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        ("W1", np.full((1, 16, 4), np.nan, np.float32), "'W1' holds NaN"),
        ("W1", random(1, 16, 5, seed=1), "'W1' [1, 16, 5] should be [1, 16, 4]"),
        ("R0", random(16, 4, seed=1), "hidden_size"),
        ("B0", random(1, 16, seed=1), "'B0' [1, 16] should be [1, 32]"),
        ("embedding", random(TOKENS + 1, WIDTH, seed=1), "is not an embedding of the head's 7"),
        ("embedding", random(TOKENS, WIDTH + 1, seed=1), "'W0' [1, 16, 3] should be [1, 16, 4]"),
        ("bias", random(3, seed=1), "'bias' [3] should be [7]"),
        ("bias", np.arange(TOKENS), "'bias' holds int64"),
        ("head", random(TOKENS, UNITS, 1, seed=1), "does not fit its inputs"),
    ],
)
def test_weights_that_are_wrong(name: str, array: Array, problem: str, tmp_path: Path) -> None:
    made = icefall()
    made.tensors[name] = array
    assert problem in refusal(save(made, tmp_path))


def test_weights_beside_the_file(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    path = save(icefall(), tmp_path, **options)
    assert check(path).files == (path, tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("location", "../weights.bin", "lies in '../weights.bin', outside the folder"),
        ("location", "/etc/hostname", "lies in '/etc/hostname', outside the folder"),
        ("location", "gone.bin", "lies in 'gone.bin', which is not there"),
        ("location", "a\0b", "which is not there"),
        ("offset", "999999", "lies beyond the end of 'weights.bin'"),
        ("offset", "-8", "lies beyond the end of 'weights.bin'"),
        ("offset", "x", "is not whole"),
        ("length", "8", "is not as long as its data"),
    ],
)
def test_weights_beside_the_file_that_are_wrong(
    key: str, value: str, problem: str, tmp_path: Path
) -> None:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    path = save(icefall(), tmp_path, **options)
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "R1")
    entries = {entry.key: entry for entry in tensor.external_data}
    entries[key].value = value
    path.write_bytes(model.SerializeToString())
    text = refusal(path)
    assert "tensor 'R1'" in text
    assert problem in text


def test_tensors_that_are_not_whole(tmp_path: Path) -> None:
    for sizes in ([1, 16, 2**40], [1, 16, -4], [1, 16, 3]):
        model = icefall().model()
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "R1")
        del tensor.dims[:]
        tensor.dims.extend(sizes)
        assert "tensor 'R1'" in refusal(save(model, tmp_path))


def test_constants_that_would_grow_without_end(tmp_path: Path) -> None:
    made = icefall()
    name = made.tensor("seed", random(1, 16, UNITS, seed=1))
    for _ in range(40):
        name = made.one("Concat", name, name, axis=0)
    lstm = next(node for node in made.nodes if node.op_type == "LSTM")
    lstm.input[2] = name
    assert "makes more weights than the file has" in refusal(save(made, tmp_path))


def test_files_cut_off_or_with_flipped_bits_raise_nothing_else(tmp_path: Path) -> None:
    path = save(icefall(), tmp_path)
    data, random_state = path.read_bytes(), np.random.default_rng(6)
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refusal(path)
    for _ in range(300):
        flipped = bytearray(data)
        flipped[random_state.integers(len(data))] ^= 1 << random_state.integers(8)
        path.write_bytes(flipped)
        with contextlib.suppress(CheckpointError):
            read(path)

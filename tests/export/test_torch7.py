"""Torch7 files of torch-rnn and char-rnn, against their models' equations in float64."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Network
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.torch7_files.checkpoint import Torch7File
from unrolled_export.readers.torch7_files.t7_file import Table, load
from unrolled_export.reference_numpy import NumpyReference

Array = NDArray[Any]
PLACENAMES = Path("../shared/models/torch-rnn-placenames")
TOKENS = 6
UNITS = 4


@dataclass(eq=False)
class Instance:
    """An object of a Torch7 class."""

    name: str
    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Fields:
    """A Lua table that may be a key."""

    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Lua:
    """A Lua function."""

    bytecode: bytes


@dataclass(eq=False)
class Elements:
    """A storage of floats."""

    array: Array


class Writer:
    """Serialises as File.lua of torch7 does."""

    def __init__(self, *, ascii: bool = False, tensor: str = "Float") -> None:
        self._ascii, self._tensor = ascii, tensor
        self._out: list[bytes] = []
        self._written: dict[int, tuple[int, object]] = {}

    def file(self, path: Path, value: object) -> Path:
        self._object(value)
        path.write_bytes(b"".join(self._out))
        return path

    def _numbers(self, kind: str, *values: float) -> None:
        if self._ascii:
            text = " ".join(repr(value) for value in values)
            self._out.append(f"{text}\n".encode() if values else b"")
        else:
            self._out.append(struct.pack(f"<{len(values)}{kind}", *values))

    def _string(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self._numbers("i", len(data))
        self._out.append(data + (b"\n" if self._ascii and data else b""))

    def _object(self, value: Any) -> None:
        if value is None:
            self._numbers("i", 0)
        elif isinstance(value, bool):
            self._numbers("i", 5)
            self._numbers("i", int(value))
        elif isinstance(value, int | float):
            self._numbers("i", 1)
            self._numbers("d", value)
        elif isinstance(value, str | bytes):
            self._numbers("i", 2)
            self._string(value)
        else:
            self._indexed(value)

    def _indexed(self, value: Any) -> None:
        kind = {dict: 3, Fields: 3, Lua: 8}.get(type(value), 4)
        self._numbers("i", kind)
        seen = id(value) in self._written
        # Keeps the object, so that its id stays its own.
        index, _ = self._written.setdefault(id(value), (len(self._written) + 1, value))
        self._numbers("i", index)
        if not seen:
            self._content(value)

    def _content(self, value: Any) -> None:
        if isinstance(value, Lua):
            self._string(value.bytecode)
            self._object({})
        elif isinstance(value, dict | Fields):
            pairs = value if isinstance(value, dict) else value.fields
            self._numbers("i", len(pairs))
            for key, item in pairs.items():
                self._object(key)
                self._object(item)
        elif isinstance(value, Instance):
            self._class(value.name)
            self._object(Fields(value.fields))
        elif isinstance(value, Elements):
            self._class(f"torch.{self._tensor}Storage")
            self._numbers("q", value.array.size)
            self._numbers("d" if self._tensor == "Double" else "f", *value.array.ravel().tolist())
        else:
            self._array(value)

    def _class(self, name: str) -> None:
        self._string("V 1")
        self._string(name)

    def _array(self, array: Array) -> None:
        """Integers as a LongStorage, floats as a tensor."""
        if array.dtype.kind == "i":
            self._class("torch.LongStorage")
            self._numbers("q", array.size)
            self._numbers("q", *array.tolist())
            return
        self._class(f"torch.{self._tensor}Tensor")
        self._numbers("i", array.ndim)
        self._numbers("q", *array.shape)
        self._numbers("q", *(stride // array.itemsize for stride in array.strides))
        self._numbers("q", 1)
        self._object(Elements(array))


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(rows: int, columns: int, seed: int) -> Instance:
    fields = {"weight": random(rows, columns, seed=seed), "bias": random(rows, seed=seed + 1000)}
    return Instance("nn.Linear", {**fields, "gradWeight": random(rows, columns, seed=9)})


def read(path: Path) -> Checkpoint:
    reader = Torch7File()
    assert reader.accepts(path)
    return reader.read(path, Settings())


def logprobs(network: Network, ids: list[int]) -> Array:
    states = {s.input: np.zeros((1, s.size), np.float32) for s in network.states}
    result, _ = NumpyReference(network).advance(np.array([ids]), states)
    first: Array = result[0]
    return first


def log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max()
    result: Array = shifted - np.log(np.exp(shifted).sum())
    return result


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


Step = Callable[[Array, tuple[Array, Array]], tuple[Array, Array]]
"""One layer: input and (c, h) to the next (c, h)."""


def run(steps: list[Step], inputs: Array, ids: list[int], head: Callable[[Array], Array]) -> Array:
    """Log-probabilities after each token: layers in turn, token by token."""
    states = [(np.zeros(UNITS), np.zeros(UNITS))] * len(steps)
    rows = []
    for token in ids:
        x = inputs[token].astype(np.float64)
        for index, step in enumerate(steps):
            states[index] = step(x, states[index])
            x = states[index][1]
        rows.append(log_softmax(head(x)))
    return np.stack(rows)


IDS = [3, 1, 4, 1, 5, 0, 2, 2, 3]


def apply(module: Instance, x: Array) -> Array:
    weight, bias = module.fields["weight"].astype(np.float64), module.fields.get("bias")
    result: Array = weight @ x + (0 if bias is None else bias.astype(np.float64))
    return result


# --- torch-rnn ---------------------------------------------------------------------------------


@pytest.mark.skipif(not PLACENAMES.is_dir(), reason="the published model is not beside this tree")
def test_the_published_torch_rnn_model() -> None:
    checkpoint = read(PLACENAMES / "checkpoint_8450.t7")
    reference = json.loads((PLACENAMES / "reference.json").read_text())
    vocabulary = json.loads((PLACENAMES / "vocab.json").read_text())
    assert checkpoint.vocabulary == tuple(vocabulary)
    assert checkpoint.network.parameters == 84 * 64 + 512 * 193 + 512 * 257 + 84 * 129
    ids = reference["fixed_ids"]
    found = logprobs(checkpoint.network, ids)[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found, reference["logprobs"], rtol=0, atol=1e-4)


def torch_rnn(kind: str, *after_first: Instance, columns: int) -> dict[str, Any]:
    """A checkpoint of two layers, with modules after the first."""
    first = {"weight": random(3 + UNITS, columns, seed=1), "bias": random(columns, seed=2)}
    second = {"weight": random(2 * UNITS, columns, seed=3), "bias": random(columns, seed=4)}
    rnns = [Instance(kind, {**f, "h0": random(2, UNITS, seed=7)}) for f in (first, second)]
    modules = [
        Instance("nn.LookupTable", {"weight": random(TOKENS, 3, seed=5)}),
        rnns[0],
        *after_first,
        Instance("nn.Dropout", {"p": 0.5, "v2": True}),
        rnns[1],
        Instance("nn.View", {"size": np.array([10, -1])}),
        linear(TOKENS, UNITS, seed=6),
    ]
    net = Instance("nn.Sequential", {"modules": dict(enumerate(modules, 1))})
    tokens = dict(enumerate(["a", "b", "é", b"\xff", "\n", "[200]"], 1))
    model = {"net": net, "rnns": {1: rnns[0], 2: rnns[1]}, "idx_to_token": tokens}
    return {"i": 5, "model": Instance("nn.LanguageModel", model), "opt": {"note": Lua(b"\x1bLJ")}}


def parts(checkpoint: dict[str, Any]) -> tuple[Array, list[Instance], Instance]:
    """Embedding, layers and head."""
    modules = list(checkpoint["model"].fields["net"].fields["modules"].values())
    rnns = list(checkpoint["model"].fields["rnns"].values())
    return modules[0].fields["weight"], rnns, modules[-1]


def product(module: Instance, x: Array, h: Array) -> Array:
    both = np.concatenate([x, h]) @ module.fields["weight"].astype(np.float64)
    result: Array = both + module.fields["bias"]
    return result


def lua_lstm(module: Instance) -> Step:
    def step(x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, f, o, g = np.split(product(module, x, state[1]), 4)
        c = sigmoid(f) * state[0] + sigmoid(i) * np.tanh(g)
        return c, sigmoid(o) * np.tanh(c)

    return step


def lua_rnn(module: Instance) -> Step:
    return lambda x, state: (state[0], np.tanh(product(module, x, state[1])))


def lua_gru(module: Instance) -> Step:
    def step(x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        h = state[1]
        u, r = np.split(sigmoid(product(module, x, h)[: 2 * UNITS]), 2)
        n = np.tanh(product(module, x, r * h)[2 * UNITS :])
        return h, (1 - u) * h + u * n

    return step


@pytest.mark.parametrize("tensor", ["Float", "Double", "Cuda"])
@pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ascii"])
@pytest.mark.parametrize(
    ("kind", "columns", "step"),
    [
        ("nn.LSTM", 4 * UNITS, lua_lstm),
        ("nn.VanillaRNN", UNITS, lua_rnn),
        ("nn.GRU", 3 * UNITS, lua_gru),
    ],
)
def test_torch_rnn(
    kind: str,
    columns: int,
    step: Callable[[Instance], Step],
    ascii: bool,
    tensor: str,
    tmp_path: Path,
) -> None:
    content = torch_rnn(kind, columns=columns)
    checkpoint = read(Writer(ascii=ascii, tensor=tensor).file(tmp_path / "m.t7", content))
    embedding, rnns, head = parts(content)
    expected = run([step(rnn) for rnn in rnns], embedding, IDS, lambda h: apply(head, h))
    np.testing.assert_allclose(logprobs(checkpoint.network, IDS), expected, rtol=0, atol=1e-5)
    assert checkpoint.vocabulary == ("a", "b", "é", "\udcff", "\n", "\udcc8")
    weights = [embedding.size, *(rnn.fields["weight"].size + columns for rnn in rnns)]
    assert checkpoint.network.parameters == sum(weights) + TOKENS * (UNITS + 1)


@pytest.mark.parametrize("version", [1, 2])
def test_torch_rnn_with_batch_normalisation(version: int, tmp_path: Path) -> None:
    fields = {
        n: random(UNITS, seed=30 + i) for i, n in enumerate(("weight", "bias", "running_mean"))
    }
    variance = np.exp(random(UNITS, seed=40))
    inverse = 1 / np.sqrt(variance.astype(np.float64) + 1e-5)
    kept = (
        {"running_std": inverse.astype(np.float32)} if version == 1 else {"running_var": variance}
    )
    norm = Instance("nn.BatchNormalization", {**fields, **kept, "eps": 1e-5, "momentum": 0.1})
    content = torch_rnn("nn.LSTM", norm, columns=4 * UNITS)
    network = read(Writer().file(tmp_path / "m.t7", content)).network
    embedding, rnns, head = parts(content)

    def normalised(x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x = (x - fields["running_mean"]) * inverse * fields["weight"] + fields["bias"]
        return lua_lstm(rnns[1])(x, state)

    steps = [lua_lstm(rnns[0]), normalised]
    expected = run(steps, embedding, IDS, lambda h: apply(head, h))
    np.testing.assert_allclose(logprobs(network, IDS), expected, rtol=0, atol=1e-5)


# --- char-rnn ----------------------------------------------------------------------------------


class Graph:
    """Makes an nn.gModule as nngraph does."""

    def __init__(self, inputs: int) -> None:
        self.inner = Fields({"data": Fields(), "mapindex": Fields()})
        self.nodes: list[Fields] = []
        self.linears: list[Instance] = []
        self.inputs = [self.module("nn.Identity", self.inner) for _ in range(inputs)]
        for index, data in enumerate(self.inputs, 1):
            self.inner.fields["mapindex"].fields |= {index: data, data: index}

    def module(self, kind: str, *read: Fields, name: str | None = None, **fields: Any) -> Fields:
        return self.node(*read, name=name, module=Instance(kind, fields))

    def node(self, *read: Fields, name: str | None = None, **entries: Any) -> Fields:
        mapindex = Fields({**dict(enumerate(read, 1)), **{r: i for i, r in enumerate(read, 1)}})
        annotations = {"_debugLabel": "[x.lua]:1", **({"name": name} if name else {})}
        data = Fields({**entries, "annotations": annotations, "mapindex": mapindex})
        self.nodes.append(data)
        return data

    def linear(self, rows: int, columns: int, read: Fields, name: str | None = None) -> Fields:
        module = linear(rows, columns, seed=50 + len(self.linears))
        self.linears.append(module)
        return self.node(read, name=name, module=module)

    def add(self, *read: Fields) -> Fields:
        return self.module("nn.CAddTable", *read)

    def multiply(self, *read: Fields) -> Fields:
        return self.module("nn.CMulTable", *read)

    def sigmoid(self, read: Fields) -> Fields:
        return self.module("nn.Sigmoid", read)

    def tanh(self, read: Fields) -> Fields:
        return self.module("nn.Tanh", read)

    def checkpoint(self, outputs: list[Fields]) -> dict[str, Any]:
        """The file, its nodes listed in an order that is not the one they were made in."""
        scores = self.linear(TOKENS, UNITS, outputs[-1], "decoder")
        outputs = [*outputs, self.module("nn.LogSoftMax", scores)]
        end = {"data": Fields({"mapindex": Fields(dict(enumerate(outputs, 1)))})}
        order = np.random.default_rng(8).permutation(len(self.nodes))
        listed = {i: Fields({"data": self.nodes[at]}) for i, at in enumerate(order, 1)}
        fields = {"innode": {"data": self.inner}, "outnode": end, "forwardnodes": listed}
        vocab = {"q": 1, " ": 2, b"\xc3": 3, b"\xa9": 4, "\n": 5, "1": 6}
        return {"protos": {"rnn": Instance("nn.gModule", fields)}, "vocab": vocab}


def char_lstm(narrow: bool) -> tuple[dict[str, Any], list[Step], Instance]:
    graph = Graph(5)
    x, outputs, size = graph.module("OneHot", graph.inputs[0]), [], TOKENS
    for layer in range(2):
        c, h = graph.inputs[1 + 2 * layer : 3 + 2 * layer]
        i2h = graph.linear(4 * UNITS, size, x, f"i2h_{layer + 1}")
        h2h = graph.linear(4 * UNITS, UNITS, h, f"h2h_{layer + 1}")
        total = graph.add(i2h, h2h)
        i, f, o, g = (narrow_gates if narrow else split_gates)(graph, total)
        after = graph.add(graph.multiply(f, c), graph.multiply(i, g))
        outputs += [after, graph.multiply(o, graph.tanh(after))]
        x, size = graph.module("nn.Dropout", outputs[-1], p=0.3, v2=True), UNITS
    content = graph.checkpoint(outputs)
    return (
        content,
        [char_lstm_step(*graph.linears[at : at + 2]) for at in (0, 2)],
        graph.linears[-1],
    )


def split_gates(graph: Graph, total: Fields) -> list[Fields]:
    shaped = graph.module("nn.Reshape", total, size=np.array([4, UNITS]))
    split = graph.node(graph.module("nn.SplitTable", shaped, dimension=2), nSplitOutputs=4)
    parts = [graph.node(split, selectindex=index, input={}) for index in range(1, 5)]
    return [*(graph.sigmoid(part) for part in parts[:3]), graph.tanh(parts[3])]


def narrow_gates(graph: Graph, total: Fields) -> list[Fields]:
    def narrow(read: Fields, at: int, size: int) -> Fields:
        return graph.module("nn.Narrow", read, dimension=2, index=at * UNITS + 1, length=size)

    squashed = graph.sigmoid(narrow(total, 0, 3 * UNITS))
    return [*(narrow(squashed, at, UNITS) for at in range(3)), graph.tanh(narrow(total, 3, UNITS))]


def char_lstm_step(i2h: Instance, h2h: Instance) -> Step:
    def step(x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        gates = apply(i2h, x) + apply(h2h, state[1])
        i, f, o = np.split(sigmoid(gates[: 3 * UNITS]), 3)
        c = f * state[0] + i * np.tanh(gates[3 * UNITS :])
        return c, o * np.tanh(c)

    return step


def char_gru() -> tuple[dict[str, Any], list[Step], Instance]:
    graph = Graph(3)
    x, outputs, size = graph.module("OneHot", graph.inputs[0]), [], TOKENS
    for h in graph.inputs[1:]:
        update, reset = (
            graph.sigmoid(graph.add(graph.linear(UNITS, size, x), graph.linear(UNITS, UNITS, h)))
            for _ in range(2)
        )
        p2 = graph.linear(UNITS, UNITS, graph.multiply(reset, h))
        p1 = graph.linear(UNITS, size, x)
        candidate = graph.tanh(graph.add(p1, p2))
        negative = graph.module("nn.MulConstant", update, constant_scalar=-1)
        rest = graph.module("nn.AddConstant", negative, constant_scalar=1)
        zh, zhm1 = graph.multiply(update, candidate), graph.multiply(rest, h)
        outputs.append(graph.add(zh, zhm1))
        x, size = outputs[-1], UNITS
    content = graph.checkpoint(outputs)
    return content, [char_gru_step(graph.linears[at : at + 6]) for at in (0, 6)], graph.linears[-1]


def char_gru_step(linears: list[Instance]) -> Step:
    update_i, update_h, reset_i, reset_h, p2, p1 = linears

    def step(x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        h = state[1]
        z = sigmoid(apply(update_i, x) + apply(update_h, h))
        r = sigmoid(apply(reset_i, x) + apply(reset_h, h))
        n = np.tanh(apply(p1, x) + apply(p2, r * h))
        return h, z * n + (1 - z) * h

    return step


def char_rnn(layers: int) -> tuple[dict[str, Any], list[Step], Instance]:
    graph = Graph(1 + layers)
    x, outputs, size = graph.inputs[0], [], TOKENS
    for h in graph.inputs[1:]:
        total = graph.add(graph.linear(UNITS, size, x), graph.linear(UNITS, UNITS, h))
        outputs.append(graph.tanh(total))
        x, size = outputs[-1], UNITS
    steps = [char_rnn_step(*graph.linears[at : at + 2]) for at in range(0, 2 * layers, 2)]
    return graph.checkpoint(outputs), steps, graph.linears[-1]


def char_rnn_step(i2h: Instance, h2h: Instance) -> Step:
    return lambda x, state: (state[0], np.tanh(apply(i2h, x) + apply(h2h, state[1])))


CHAR_MODELS: list[Any] = [
    pytest.param(lambda: char_lstm(narrow=False), Cell.LSTM, id="lstm"),
    pytest.param(lambda: char_lstm(narrow=True), Cell.LSTM, id="lstm-narrow"),
    pytest.param(char_gru, Cell.GRU, id="gru"),
    pytest.param(lambda: char_rnn(1), Cell.RNN_TANH, id="rnn"),
    pytest.param(lambda: char_rnn(3), Cell.RNN_TANH, id="rnn-3-layers"),
]
Made = Callable[[], tuple[dict[str, Any], list[Step], Instance]]


@pytest.mark.parametrize(("make", "cell"), CHAR_MODELS)
def test_char_rnn(make: Made, cell: Cell, tmp_path: Path) -> None:
    content, steps, head = make()
    checkpoint = read(Writer().file(tmp_path / "m.t7", content))
    assert checkpoint.network.cell is cell
    assert checkpoint.assumptions == ()
    assert checkpoint.vocabulary == ("q", " ", "\udcc3", "\udca9", "\n", "1")
    expected = run(steps, np.eye(TOKENS), IDS, lambda h: apply(head, h))
    np.testing.assert_allclose(logprobs(checkpoint.network, IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("make", "cell"), CHAR_MODELS)
def test_char_rnn_without_connections(make: Made, cell: Cell, tmp_path: Path) -> None:
    """Some tools keep the modules alone: then their order has to do, and is said."""
    content, steps, head = make()
    module = content["protos"]["rnn"].fields
    linears = {
        i: {"data": {"module": m}} for i, m in enumerate(linears_of(content, steps, head), 1)
    }
    module["forwardnodes"] = linears
    del module["innode"]
    checkpoint = read(Writer().file(tmp_path / "m.t7", content))
    assert checkpoint.assumptions == ("the modules are in the order in which char-rnn makes them",)
    expected = run(steps, np.eye(TOKENS), IDS, lambda h: apply(head, h))
    np.testing.assert_allclose(logprobs(checkpoint.network, IDS), expected, rtol=0, atol=1e-5)


def linears_of(content: dict[str, Any], steps: list[Step], head: Instance) -> list[Instance]:
    """The linear modules in the order they were made: their biases' seeds are in that order."""
    nodes = content["protos"]["rnn"].fields["forwardnodes"].values()
    modules = [node.fields["data"].fields.get("module") for node in nodes]
    linears = [module for module in modules if module and module.name == "nn.Linear"]
    first = {float(random(1, seed=1050 + k)[0]): k for k in range(len(linears))}
    return sorted(linears, key=lambda module: first[float(module.fields["bias"][0])])


def test_a_bias_that_is_absent(tmp_path: Path) -> None:
    content, steps, head = char_lstm(narrow=False)
    for module in linears_of(content, steps, head)[1:4:2]:
        del module.fields["bias"]
    network = read(Writer().file(tmp_path / "m.t7", content)).network
    expected = run(steps, np.eye(TOKENS), IDS, lambda h: apply(head, h))
    np.testing.assert_allclose(logprobs(network, IDS), expected, rtol=0, atol=1e-5)
    assert not network.layers[0].bias_hh.any()


# --- What is refused ---------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def small(tmp_path: Path, *, ascii: bool = False) -> bytes:
    return Writer(ascii=ascii).file(tmp_path / "small.t7", char_gru()[0]).read_bytes()


@pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ascii"])
def test_files_cut_off(ascii: bool, tmp_path: Path) -> None:
    data, path = small(tmp_path, ascii=ascii), tmp_path / "m.t7"
    for size in [*range(40), *range(40, len(data) - 1, len(data) // 40)]:
        path.write_bytes(data[:size])
        assert "damaged, cut off, or not a Torch7 file" in refusal(path)


@pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ascii"])
def test_files_with_flipped_bits_raise_nothing_else(ascii: bool, tmp_path: Path) -> None:
    data, path = small(tmp_path, ascii=ascii), tmp_path / "m.t7"
    random_state = np.random.default_rng(5)
    for _ in range(80):
        flipped = bytearray(data)
        flipped[random_state.integers(len(data))] ^= 1 << random_state.integers(8)
        path.write_bytes(flipped)
        with contextlib.suppress(CheckpointError):
            read(path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "4 bytes wanted where 0 are left"),
        (struct.pack("<i", 9), "an object of type 9"),
        (struct.pack("<ii", 2, 2**31 - 1), "2,147,483,647 bytes wanted"),
        (struct.pack("<ii", 2, -1), "-1 bytes wanted"),
        (struct.pack("<iii", 3, 1, -1), "a table of negative size"),
        (struct.pack("<iiii", 3, 1, 1, 0), "a table with a nil key"),
        (
            struct.pack("<iii3si18si", 4, 1, 3, b"V 1", 18, b"torch.DoubleTensor", 99),
            "99 dimensions",
        ),
        (
            struct.pack("<iii3si19sq", 4, 1, 3, b"V 1", 19, b"torch.DoubleStorage", 2**60),
            "bytes wanted",
        ),
        (struct.pack("<iii3si3sid", 4, 1, 3, b"V 1", 3, b"a.B", 1, 5.0), "'a.B' without fields"),
    ],
)
def test_sizes_are_checked_before_anything_is_made(
    data: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.t7"
    path.write_bytes(data)
    assert problem in refusal(path)


def test_nesting_of_any_depth(tmp_path: Path) -> None:
    path, depth = tmp_path / "m.t7", 20_000
    key = struct.pack("<id", 1, 1.0)
    path.write_bytes(b"".join(struct.pack("<iii", 3, n, 1) + key for n in range(depth)) + bytes(4))
    assert "neither a checkpoint of torch-rnn" in refusal(path)


def test_functions_are_passed_over_and_objects_shared(tmp_path: Path) -> None:
    shared = {"x": 1}
    content = {"f": Lua(b"not bytecode"), "a": shared, "b": shared, "c": [None, True][1]}
    loaded = load(Writer().file(tmp_path / "m.t7", content))
    assert isinstance(loaded, Table)
    assert loaded.get("a") is loaded.get("b")
    assert loaded.get("c") is True


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "m.t7"
    data = Writer().file(path, torch_rnn("nn.LSTM", columns=16)).read_bytes()
    sizes = struct.pack("<qq", TOKENS, 3)
    assert data.count(sizes) == 1
    for wrong in (struct.pack("<qq", TOKENS, 4), struct.pack("<qq", 2**40, 2**40)):
        path.write_bytes(data.replace(sizes, wrong))
        assert "does not lie within its storage" in refusal(path)


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    content = torch_rnn("nn.LSTM", columns=16)
    parts(content)[1][0].fields["weight"][1, 1] = np.nan
    assert "model.net.2.weight holds NaN" in refusal(Writer().file(tmp_path / "m.t7", content))


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (Instance("nn.ReLU"), "model.net.3: nn.ReLU is not read in this place"),
        (Instance("nn.Dropout", {"p": 0.5, "v2": False}), "nn.Dropout of the first version"),
        (Instance("nn.BatchNormalization", {"eps": 1e-5}), "no tensor model.net.3.running_mean"),
    ],
)
def test_modules_that_are_not_read(module: Instance, problem: str, tmp_path: Path) -> None:
    content = torch_rnn("nn.LSTM", module, columns=16)
    assert problem in refusal(Writer().file(tmp_path / "m.t7", content))


def test_tokens_that_do_not_fit(tmp_path: Path) -> None:
    content = torch_rnn("nn.LSTM", columns=16)
    tokens = content["model"].fields["idx_to_token"]
    tokens[9] = tokens.pop(6)
    assert "idx_to_token: no token of id 6" in refusal(Writer().file(tmp_path / "a.t7", content))
    del tokens[9]
    assert "has 5 tokens where the weights have 6" in refusal(
        Writer().file(tmp_path / "b.t7", content)
    )


def test_a_gru_of_other_equations(tmp_path: Path) -> None:
    """h' = u * h + (1 - u) * n is not what char-rnn computes, though all shapes are the same."""
    content = char_gru()[0]
    nodes = content["protos"]["rnn"].fields["forwardnodes"].values()
    for node in nodes:
        module = node.fields["data"].fields["module"]
        if module.name == "nn.AddConstant":
            module.fields["constant_scalar"] = 2
    assert "does not compute what" in refusal(Writer().file(tmp_path / "m.t7", content))


def test_batch_normalisation_inside_the_recurrence(tmp_path: Path) -> None:
    content = char_lstm(narrow=False)[0]
    for node in content["protos"]["rnn"].fields["forwardnodes"].values():
        module = node.fields["data"].fields.get("module")
        if module and module.name == "nn.Dropout":
            module.name = "nn.BatchNormalization"
    text = refusal(Writer().file(tmp_path / "m.t7", content))
    assert "batch normalisation inside the recurrence" in text


def test_other_contents(tmp_path: Path) -> None:
    contents: list[object] = [{"protos": {}}, {"model": 3}, Instance("nn.Sequential"), "text"]
    for content in contents:
        refusal(Writer().file(tmp_path / "m.t7", content))

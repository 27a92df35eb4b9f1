"""Keras checkpoints against the equations in Keras' documentation, and against Keras itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from unrolled_export.errors import CheckpointError, ExportError, SettingNeeded
from unrolled_export.network import Cell, Gate, Network
from unrolled_export.readers import Checkpoint, Settings, read_checkpoint
from unrolled_export.reference_numpy import NumpyReference

Array = NDArray[Any]
Weights = dict[str, Array]
Model = dict[str, Weights]
"""Weights by role, by layer."""

V, E, H = 6, 3, 4
TOKENS = [1, 4, 0, 5, 5, 2, 3]
PUBLISHED = Path(__file__).parents[3] / "shared/models"


def read(path: Path, *settings: str) -> Checkpoint:
    return read_checkpoint(path, Settings(settings))


def logprobs(network: Network, tokens: Sequence[int]) -> Array:
    states = {state.input: np.zeros((1, state.size), np.float32) for state in network.states}
    result: Array = NumpyReference(network).advance(np.array([tokens]), states)[0][0]
    return result


# The oracle: https://keras.io/api/layers/recurrent_layers/ and the papers it names, row vectors
# times kernels as Keras keeps them.


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def fifth(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0.0, 1.0)


def sixth(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


def lstm(xs: Array, w: Weights, gate: Callable[[Array], Array] = sigmoid) -> Array:
    h = c = np.zeros(w["recurrent_kernel"].shape[0])
    hs = []
    for x in xs:
        i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs)


def gru(xs: Array, w: Weights, gate: Callable[[Array], Array] = sigmoid) -> Array:
    h = np.zeros(w["recurrent_kernel"].shape[0])
    u_z, u_r, u_h = np.split(w["recurrent_kernel"], 3, axis=1)
    hs = []
    for x in xs:
        if w["bias"].ndim == 2:
            x_z, x_r, x_h = np.split(x @ w["kernel"] + w["bias"][0], 3)
            b_z, b_r, b_h = np.split(w["bias"][1], 3)
            z, r = gate(x_z + h @ u_z + b_z), gate(x_r + h @ u_r + b_r)
            candidate = np.tanh(x_h + r * (h @ u_h + b_h))
        else:
            x_z, x_r, x_h = np.split(x @ w["kernel"] + w["bias"], 3)
            z, r = gate(x_z + h @ u_z), gate(x_r + h @ u_r)
            candidate = np.tanh(x_h + (r * h) @ u_h)
        h = z * h + (1 - z) * candidate
        hs.append(h)
    return np.stack(hs)


def log_softmax(logits: Array) -> Array:
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def expected(model: Model, cell: Callable[[Array, Weights], Array]) -> Array:
    """Of a model embedding, rnn, dense."""
    hidden = cell(model["embedding"]["embeddings"].astype(float)[TOKENS], model["rnn"])
    return log_softmax(hidden @ model["dense"]["kernel"] + model["dense"]["bias"])


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    random = np.random.default_rng(5)
    return {role: random.normal(0, 0.8, shape).astype("f4") for role, shape in shapes.items()}


def a_model(gates: int = 4, bias: tuple[int, ...] | None = None) -> Model:
    kernels = {"kernel": (E, gates * H), "recurrent_kernel": (H, gates * H)}
    return {
        "embedding": random_weights({"embeddings": (V, E)}),
        "rnn": random_weights({**kernels, "bias": bias or (gates * H,)}),
        "dense": random_weights({"kernel": (H, V), "bias": (V,)}),
    }


# The layouts.


def write_legacy(
    path: Path, model: Model, version: str | None = "2.11.0", group: str = "/", **attributes: str
) -> Path:
    """As Keras 2 writes, or Keras 1 where the roles are W, U_i and the like."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        holder = file.require_group(group)
        holder.attrs["layer_names"] = np.array(list(model), "S")
        if version is not None:
            holder.attrs["keras_version"] = version
        for name, weights in model.items():
            names = [
                f"{name}_{role}" if re.fullmatch("[WUb](_.)?", role) else f"{name}/{role}:0"
                for role in weights
            ]
            layer = holder.create_group(name)
            layer.attrs["weight_names"] = np.array(names, "S")
            for weight, array in zip(names, weights.values(), strict=True):
                layer[weight] = array
    return path


def write_positional(path: Path, model: Model) -> Path:
    """As Keras 3 writes: `rnn` is an LSTM."""
    places = {"embedding": "embedding", "rnn": "lstm/cell", "dense": "dense"}
    with h5py.File(path, "w") as file:
        for name, weights in model.items():
            for position, array in enumerate(weights.values()):
                file[f"layers/{places.get(name, name)}/vars/{position}"] = array
        file["optimizer/vars/0"] = np.int64(3)
    return path


def sequential(*layers: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    entries = [{"class_name": kind, "config": config} for kind, config in layers]
    return {"class_name": "Sequential", "config": {"name": "s", "layers": entries}}


def architecture(kind: str = "LSTM", **config: Any) -> dict[str, Any]:
    """Of `a_model`."""
    return sequential(
        ("Embedding", {"name": "embedding", "input_dim": V, "output_dim": E}),
        (kind, {"name": "rnn", "units": H, "recurrent_activation": "sigmoid", **config}),
        ("Dense", {"name": "dense", "units": V, "activation": "softmax"}),
    )


def functional(edges: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> dict[str, Any]:
    """Of Dense layers without weights; a layer that reads nothing is an input."""
    layers = [
        {
            "class_name": "Dense" if sources else "InputLayer",
            "config": {"name": name},
            "name": name,
            "inbound_nodes": [[[source, 0, 0, {}] for source in sources]] if sources else [],
        }
        for name, sources in edges.items()
    ]
    inputs = [[name, 0, 0] for name, sources in edges.items() if not sources]
    ends = {"input_layers": inputs, "output_layers": [[name, 0, 0] for name in outputs]}
    return {"class_name": "Functional", "config": {"name": "f", "layers": layers, **ends}}


@pytest.mark.parametrize("gate", [sigmoid, fifth])
@pytest.mark.parametrize("layout", ["weights", "whole model", "beside"])
def test_lstm_of_keras_2(layout: str, gate: Callable[[Array], Array], tmp_path: Path) -> None:
    model, said = a_model(), "sigmoid" if gate is sigmoid else "hard_sigmoid"
    text, path = json.dumps(architecture(recurrent_activation=said)), tmp_path / "m.h5"
    settings = [f"recurrent_activation={said}"] if layout == "weights" else []
    if layout == "whole model":
        write_legacy(path, model, group="model_weights", model_config=text)
    else:
        write_legacy(path, model)
    if layout == "beside":
        (tmp_path / "vocab.json").write_text('["a", "b"]')
        (tmp_path / "arch.json").write_text(json.dumps(text))
    found = read(tmp_path if layout == "beside" else path, *settings)
    np.testing.assert_allclose(
        logprobs(found.network, TOKENS),
        expected(model, lambda xs, w: lstm(xs, w, gate)),
        atol=1e-6,
    )
    assert found.network.parameters == sum(a.size for w in model.values() for a in w.values())


@pytest.mark.parametrize(("bias", "after"), [((2, 3 * H), True), ((3 * H,), False)])
def test_gru_before_and_after(bias: tuple[int, ...], after: bool, tmp_path: Path) -> None:
    model = a_model(3, bias)
    found = read(write_legacy(tmp_path / "m.h5", model))
    assert (found.network.cell, found.network.reset_after) == (Cell.GRU, after)
    np.testing.assert_allclose(logprobs(found.network, TOKENS), expected(model, gru), atol=1e-6)
    assert found.assumptions == (
        "texts read forwards",
        "no activation behind the last Dense but softmax",
        "no skip connections or scalings",
        "activation tanh",
        "recurrent_activation sigmoid, the default of Keras 2.11.0",
    )


def test_gates_of_keras_1(tmp_path: Path) -> None:
    model = a_model(3)
    split = {}
    for number, gate in enumerate("zrh"):
        for role, old in (("kernel", "W"), ("recurrent_kernel", "U"), ("bias", "b")):
            split[f"{old}_{gate}"] = np.split(model["rnn"][role], 3, axis=-1)[number]
    old_model: Model = {
        "embedding_1": {"W": model["embedding"]["embeddings"]},
        "gru_1": split,
        "dense_1": {"W": model["dense"]["kernel"], "b": model["dense"]["bias"]},
    }
    found = read(write_legacy(tmp_path / "m.h5", old_model, version=None))
    assert found.network.gate is Gate.HARD_SIGMOID_FIFTH
    wanted = expected(model, lambda xs, w: gru(xs, w, fifth))
    np.testing.assert_allclose(logprobs(found.network, TOKENS), wanted, atol=1e-6)


@pytest.mark.parametrize("gates", [3, 4])
def test_layers_of_cudnn(gates: int, tmp_path: Path) -> None:
    """Converted as Keras itself does: kernel.T.reshape(kernel.shape, order="F") gate by gate."""
    model = a_model(gates, (2 * gates * H,))
    found = read(write_legacy(tmp_path / "m.h5", model, version="2.2.4"))
    held = model["rnn"]
    blocks = np.split(held["kernel"], gates, axis=1)
    plain = {
        "kernel": np.hstack([block.T.reshape(block.shape, order="F") for block in blocks]),
        "recurrent_kernel": np.hstack(
            [block.T for block in np.split(held["recurrent_kernel"], gates, axis=1)]
        ),
        "bias": held["bias"].reshape(2, -1) if gates == 3 else held["bias"].reshape(2, -1).sum(0),
    }
    wanted = expected({**model, "rnn": plain}, gru if gates == 3 else lstm)
    np.testing.assert_allclose(logprobs(found.network, TOKENS), wanted, atol=1e-6)


@pytest.mark.parametrize("layout", ["weights", "archive", "unpacked"])
def test_layout_of_keras_3(layout: str, tmp_path: Path) -> None:
    model = a_model()
    path = write_positional(tmp_path / "model.weights.h5", model)
    parts = {
        "config.json": json.dumps(architecture(recurrent_activation="hard_sigmoid")),
        "metadata.json": '{"keras_version": "3.1.0"}',
    }
    if layout == "unpacked":
        for name, text in parts.items():
            (tmp_path / name).write_text(text)
    if layout == "archive":
        with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
            archive.write(path, path.name)
            for name, text in parts.items():
                archive.writestr(name, text)
        path = tmp_path / "m.keras"
    gate = sigmoid if layout == "weights" else sixth
    wanted = expected(model, lambda xs, w: lstm(xs, w, gate))
    np.testing.assert_allclose(logprobs(read(path).network, TOKENS), wanted, atol=1e-6)


def test_a_token_as_one_number(tmp_path: Path) -> None:
    shapes = {"kernel": (1, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
    model: Model = {"rnn": random_weights(shapes), "dense": a_model()["dense"]}
    path = write_legacy(tmp_path / "m.h5", model)
    with pytest.raises(SettingNeeded, match="input=scaled-id or --set input=id"):
        read(path)
    hidden = lstm(np.array(TOKENS)[:, None] / V, model["rnn"])
    wanted = log_softmax(hidden @ model["dense"]["kernel"] + model["dense"]["bias"])
    found = logprobs(read(path, "input=scaled-id").network, TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_windows_are_an_assumption(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.h5", a_model())
    (tmp_path / "a.json").write_text(json.dumps(architecture(return_sequences=False)))
    assert read(path).assumptions == ("trained on windows that start from the zero state",)


def without_bias(model: Model) -> Model:
    return {**model, "rnn": {k: v for k, v in model["rnn"].items() if k != "bias"}}


@pytest.mark.parametrize(
    ("model", "version", "key"),
    [
        (a_model(4), "2.2.4-tf", "recurrent_activation"),
        (a_model(4), None, "recurrent_activation"),
        (without_bias(a_model(3)), "2.11.0", "reset_after"),
        (a_model(1), "2.11.0", "nonlinearity"),
    ],
)
def test_what_weights_do_not_tell_is_asked(
    model: Model, version: str | None, key: str, tmp_path: Path
) -> None:
    path = write_legacy(tmp_path / "m.h5", model, version)
    with pytest.raises(SettingNeeded) as needed:
        read(path)
    assert needed.value.key == key
    for choice in needed.value.choices:
        read(path, f"{key}={choice}")


REFUSED = {
    "attends to all steps": sequential(("Concatenate", {}), ("AttentionWeightedAverage", {})),
    "reads a text from its end": sequential(("Bidirectional", {"layer": {"class_name": "LSTM"}})),
    "looks at several steps": sequential(("Conv1D", {})),
    "layer r (RNN) is of PeepholeCell": sequential(
        ("RNN", {"name": "r", "cell": {"class_name": "PeepholeCell"}})
    ),
    "runs code": sequential(("Lambda", {})),
    "of a class that this release does not read": architecture("PeepholeLSTM"),
    "(go_backwards)": architecture(go_backwards=True),
    "activation 'relu', where this release reads tanh": architecture(activation="relu"),
    "recurrent_activation 'tanh'": architecture(recurrent_activation="tanh"),
    "should have 5 units": architecture(units=5),
    "several layers read layer a": functional({"i": [], "a": ["i"], "b": ["a"], "c": ["a"]}, "c"),
    "layer c reads a, b": functional({"i": [], "a": ["i"], "b": ["i"], "c": ["a", "b"]}, "c"),
    "2 inputs (i, j)": functional({"i": [], "j": [], "a": ["i"], "b": ["j"]}, "a"),
    "2 outputs (a, b)": functional({"i": [], "a": ["i"], "b": ["a"]}, ["a", "b"]),
    "layer a of its graph is missing or reads itself": functional({"i": [], "a": ["a"]}, "a"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_architectures_that_are_refused(reason: str, tmp_path: Path) -> None:
    model = REFUSED[reason]
    path = write_legacy(tmp_path / "m.h5", a_model(), model_config=json.dumps(model))
    with pytest.raises(CheckpointError) as refused:
        read(path)
    assert reason in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_join_that_only_a_name_tells(tmp_path: Path) -> None:
    model = a_model()
    with pytest.raises(CheckpointError, match="layer add_1 joins branches"):
        read(write_legacy(tmp_path / "m.h5", {**model, "add_1": {}}))
    path = write_positional(tmp_path / "m.weights.h5", model)
    with h5py.File(path, "a") as file:
        file.create_group("layers/add_1/vars")
    with pytest.raises(CheckpointError, match="layer add_1 joins branches"):
        read(path)


def weightless(path: Path, *names: str) -> Path:
    """A file of weights in the layout of Keras 3 with layers that have none."""
    write_positional(path, a_model())
    with h5py.File(path, "a") as file:
        for name in names:
            file.create_group(f"{name}/vars")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "layers/rescaling",
        "layers/unit_normalization",
        "layers/re_lu_1",
        "layers/sequential/layers/rescaling",
        "layers/time_distributed/layer",
        "scale",
    ],
)
def test_a_layer_without_weights_that_may_matter(name: str, tmp_path: Path) -> None:
    path = weightless(tmp_path / "m.weights.h5", name)
    with pytest.raises(CheckpointError, match="has no weights, and the file does not tell what"):
        read(path)


def test_layers_without_weights_that_do_nothing(tmp_path: Path) -> None:
    names = ("layers/input_layer", "layers/spatial_dropout1d_2", "layers/gaussian_noise", "drop")
    path = weightless(tmp_path / "m.weights.h5", *names, "layers/activation_3")
    assert "layer activation_3 is the softmax of the output" in read(path).assumptions
    found = logprobs(read(path).network, TOKENS)
    np.testing.assert_allclose(found, expected(a_model(), lstm), atol=1e-6)


def test_an_activation_is_the_softmax_only_where_it_is_last(tmp_path: Path) -> None:
    two = weightless(tmp_path / "m.weights.h5", "layers/activation", "layers/activation_1")
    model = a_model()
    dense = model.pop("dense")
    below: Model = {**model, "activation_1": {}, "dense": dense}
    for path in (two, write_legacy(tmp_path / "m.h5", below)):
        with pytest.raises(CheckpointError, match=r"layer activation(_1)? has no weights"):
            read(path)
    above = {**a_model(), "activation_1": {}}
    noted = read(write_legacy(tmp_path / "m.h5", above)).assumptions
    assert "layer activation_1 is the softmax of the output" in noted


def normalised(xs: Array, w: Weights) -> Array:
    centred = xs - xs.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3)
    result: Array = centred / deviation * w["gamma"] + w["beta"]
    return result


@pytest.mark.parametrize("units", [H, E])
def test_a_normalisation_without_architecture(units: int, tmp_path: Path) -> None:
    """Its width tells what it stands on, unless the embedding is as wide as the LSTM."""
    model = a_model()
    shapes = {
        "kernel": (E, 4 * units),
        "recurrent_kernel": (units, 4 * units),
        "bias": (4 * units,),
    }
    model["rnn"] = random_weights(shapes)
    model["layer_normalization"] = random_weights({"gamma": (units,), "beta": (units,)})
    model["dense"] = random_weights({"kernel": (units, V), "bias": (V,)})
    path, settings = write_positional(tmp_path / "m.weights.h5", model), list[str]()
    if units == E:
        with pytest.raises(SettingNeeded, match="which layer it stands on") as needed:
            read(path)
        assert needed.value.choices == ("embedding", "lstm")
        settings.append(f"{needed.value.key}=lstm")
    tokens = model["embedding"]["embeddings"].astype(float)[TOKENS]
    hidden = normalised(lstm(tokens, model["rnn"]), model["layer_normalization"])
    wanted = log_softmax(hidden @ model["dense"]["kernel"] + model["dense"]["bias"])
    found = logprobs(read(path, *settings).network, TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_model_class_of_its_own(tmp_path: Path) -> None:
    model, config = a_model(), '{"class_name": "MyModel", "config": {"vocab_size": 6}}'
    checkpoint = read(write_legacy(tmp_path / "m.h5", model, model_config=config))
    assert checkpoint.assumptions[0].startswith("a model class of its own")
    found = logprobs(checkpoint.network, TOKENS)
    np.testing.assert_allclose(found, expected(model, lstm), atol=1e-6)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"max_value": 6.0}, "has a max_value"),
        ({"negative_slope": 0.1}, "has a negative_slope"),
        ({"threshold": 0.5}, "has a threshold"),
    ],
)
def test_variants_of_relu(option: dict[str, float], problem: str, tmp_path: Path) -> None:
    entries = architecture()["config"]["layers"]
    entries.insert(2, {"class_name": "ReLU", "config": {"name": "r", **option}})
    text = json.dumps({"class_name": "Sequential", "config": {"layers": entries}})
    with pytest.raises(CheckpointError, match=rf"layer r \(ReLU\) {problem}"):
        read(write_legacy(tmp_path / "m.h5", a_model(), model_config=text))


def test_masks_are_not_branches(tmp_path: Path) -> None:
    """Keras 3 makes a layer NotEqual of an Embedding's mask_zero."""

    def call(source: str, **mask: Any) -> list[Any]:
        history = {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
        return [{"args": [history], "kwargs": {"mask": history} if mask else {}}]

    entries = architecture()["config"]["layers"]
    calls = [call("tokens"), call("embedding", mask=True), call("rnn")]
    layers = [
        {**entry, "inbound_nodes": nodes} for entry, nodes in zip(entries, calls, strict=True)
    ]
    layers.append({"class_name": "NotEqual", "name": "ne", "inbound_nodes": call("tokens")})
    layers.append({"class_name": "InputLayer", "config": {"name": "tokens"}, "inbound_nodes": []})
    ends = {"input_layers": ["tokens", 0, 0], "output_layers": ["dense", 0, 0]}
    graph = {"class_name": "Functional", "config": {"layers": layers, **ends}}
    model = a_model()
    path = write_legacy(tmp_path / "m.h5", model, model_config=json.dumps(graph))
    found = logprobs(read(path).network, TOKENS)
    np.testing.assert_allclose(found, expected(model, lstm), atol=1e-6)


def test_mixed_cells_are_refused(tmp_path: Path) -> None:
    shapes = {"kernel": (H, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (2, 3 * H)}
    model = a_model()
    mixed = {
        "embedding": model["embedding"],
        "rnn": model["rnn"],
        "gru": random_weights(shapes),
        "dense": model["dense"],
    }
    with pytest.raises(CheckpointError, match=r"layer gru \(GRU\) is gru, .* below lstm"):
        read(write_legacy(tmp_path / "m.h5", mixed))


def bad(role: str, array: Array, layer: str = "rnn") -> Model:
    model = a_model()
    return {**model, layer: {**model[layer], role: array}}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (bad("bias", np.full(4 * H, np.nan)), "rnn/rnn/bias:0 holds NaN"),
        (bad("bias", np.zeros(5)), "layer rnn (LSTM) has a bias [5], where [16] would fit"),
        (bad("kernel", np.zeros((2, 4 * H))), "reads 2 numbers a step"),
        (bad("kernel", np.zeros((H, 9)), "dense"), "has a vector of 6 numbers where 9 would fit"),
        (bad("peephole", np.zeros(H)), "tensors left over: rnn/rnn/peephole:0"),
        (bad("bias", np.array(["x"], object)), "holds object, not numbers"),
        ({"attention": {"attention_W": np.zeros((9, 1))}}, "attention over all steps"),
        (bad("kernel", np.zeros((H, 1)), "dense"), "makes one number of a step"),
        ({"forward_lstm": a_model()["rnn"]}, "bidirectional"),
        ({"embedding": a_model()["embedding"]}, "no recurrent layer"),
        ({}, "no recurrent layer"),
    ],
)
def test_weights_that_are_refused(model: Model, problem: str, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.h5", model)
    with pytest.raises(CheckpointError) as refused:
        read(path)
    assert problem in str(refused.value)


def test_numbers_elsewhere_are_refused(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.h5", a_model())
    hostile: dict[str, Callable[[h5py.File], object]] = {
        "is a link": lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
        "in another file": lambda file: file.create_dataset(
            "x", (8,), "f4", external=[("/etc/passwd", 0, 32)]
        ),
        "more than the file can": lambda file: file.create_dataset(
            "x", (1 << 40,), "f4", chunks=True
        ),
    }
    for problem, add in hostile.items():
        with h5py.File(path, "a") as file:
            add(file)
        with pytest.raises(CheckpointError, match=f"'x'.* {problem}|{problem}"):
            read(path)
        with h5py.File(path, "a") as file:
            del file["x"]


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".keras"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    """Whatever happens to the bytes, the outcome is a network or one line naming the file."""
    whole, path = tmp_path / "whole.h5", tmp_path / f"damaged{suffix}"
    if suffix == ".h5":
        write_legacy(whole, a_model(), model_config=json.dumps(architecture()))
    else:
        write_positional(whole, a_model())
    if suffix == ".keras":
        content = whole.read_bytes()
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("model.weights.h5", content)
            archive.writestr("config.json", json.dumps(architecture()))
            archive.writestr("metadata.json", "{}")
    content, random = whole.read_bytes(), np.random.default_rng(1)
    for round_ in range(120):
        damaged = bytearray(content)
        if round_ % 3 == 0:
            del damaged[random.integers(len(content)) :]
        else:
            for place in random.integers(len(content), size=4):
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        line = what_is_wrong(path)
        assert line is None or (line.startswith(f"{path}: ") and line.isprintable())


def what_is_wrong(path: Path) -> str | None:
    try:
        read(path)
    except ExportError as error:
        return str(error)
    return None


def test_several_files_in_a_folder(tmp_path: Path) -> None:
    write_legacy(tmp_path / "a.h5", a_model())
    write_legacy(tmp_path / "b.h5", a_model())
    with pytest.raises(CheckpointError, match=r"more than one checkpoint \(a\.h5, b\.h5\)"):
        read(tmp_path)


def test_which_of_several_architectures(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.h5", a_model())
    for name, said in (("a.json", "sigmoid"), ("b.json", "hard_sigmoid")):
        (tmp_path / name).write_text(json.dumps(architecture(recurrent_activation=said)))
    (tmp_path / "other.json").write_text(json.dumps(architecture(units=9)))
    with pytest.raises(SettingNeeded, match=r"architecture=a\.json or --set architecture=b\.json"):
        read(path)
    assert read(path, "architecture=b.json").network.gate is Gate.HARD_SIGMOID_FIFTH


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published models beside the repository")
def test_a_published_model() -> None:
    folder = PUBLISHED / "keras-lstm-chem"
    reference = json.loads((folder / "reference.json").read_text())
    ids = reference["fixed_ids"]
    found = logprobs(read(folder).network, ids[:-1])
    chosen = np.take_along_axis(found, np.array(ids[1:])[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, reference["logprobs"], atol=1e-4)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published models beside the repository")
def test_a_published_model_with_attention() -> None:
    with pytest.raises(CheckpointError, match="attention over all steps"):
        read(PUBLISHED / "refuse-textgenrnn")


KERAS = """
import sys
import keras
import numpy as np
from keras import layers as k

folder, cell = sys.argv[1:]
options = {} if cell == "SimpleRNN" else {"recurrent_activation": "hard_sigmoid"}
layer = getattr(k, cell, k.GRU)
model = keras.Sequential([
    keras.Input((None,)), k.Embedding(6, 3), k.Dense(4, "tanh"), k.LayerNormalization(),
    layer(5, return_sequences=True, **options),
    k.LayerNormalization(), k.BatchNormalization(), k.Dropout(0.5), k.Dense(3),
    layer(4, return_sequences=True, **options),
    k.BatchNormalization(), k.TimeDistributed(k.Dense(5)), k.BatchNormalization(),
    k.Activation("relu"), k.LayerNormalization(), k.Dense(7), k.ReLU(), k.Dense(6), k.Softmax(),
])
if sys.argv[2] == "cells":
    rnn = k.RNN([k.GRUCell(4), k.GRUCell(5)], return_sequences=True)
    top = k.RNN(k.GRUCell(3), return_sequences=True)
    model = keras.Sequential([
        keras.Input((None,)), k.Embedding(6, 3), rnn, top, k.Dense(6, "softmax"),
    ])
random = np.random.default_rng(2)
for weight in model.weights:
    values = random.normal(0, 0.5, weight.shape)
    weight.assign(np.abs(values) + 0.3 if "variance" in weight.path else values)
model.save(f"{folder}/m.keras")
model.save(f"{folder}/m.h5")
tokens = np.array([[1, 4, 0, 5, 5, 2, 3]])
np.save(f"{folder}/expected.npy", np.log(np.asarray(model(tokens).detach())[0]))
"""


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN", "cells"])
def test_against_keras(cell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", KERAS, str(tmp_path), cell]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("m.keras", "m.h5"):
        found = logprobs(read(tmp_path / name).network, TOKENS)
        np.testing.assert_allclose(found, np.load(tmp_path / "expected.npy"), atol=1e-5)

"""TensorFlow 1 models in raw files, against their cells' equations in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from unrolled_export.errors import CheckpointError
from unrolled_export.network import Network
from unrolled_export.readers.ml5 import Ml5Folder
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.reference_numpy import NumpyReference

Array = NDArray[Any]
DARWIN = Path("../shared/models/ml5-darwin")
TOKENS, UNITS, WIDTH = 5, 3, 2
IDS = [3, 1, 4, 1, 0, 2, 2, 3]
CHARACTERS = {"b": 1, "a": 0, "\n": 4, "é": 2, " ": 3}


def random(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("<f4")


def write(folder: Path, arrays: dict[str, Array], **others: object) -> Path:
    """A folder as ml5's training script dumps it; `others` are JSON files."""
    folder.mkdir()
    manifest = {}
    for name, array in arrays.items():
        filename = name.replace("/", "_")
        array.tofile(folder / filename)
        manifest[name] = {"filename": filename, "shape": list(array.shape)}
    for name, content in {"manifest": manifest, **others}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder: Path) -> Checkpoint:
    return Ml5Folder().read(folder, Settings())


def logprobs(network: Network, ids: list[int]) -> Array:
    states = {s.input: np.zeros((1, s.size), np.float32) for s in network.states}
    result, _ = NumpyReference(network).advance(np.array([ids]), states)
    first: Array = result[0]
    return first


@pytest.mark.skipif(not DARWIN.is_dir(), reason="the published model is not beside this tree")
def test_the_published_model() -> None:
    checkpoint = read(DARWIN)
    reference = json.loads((DARWIN / "reference.json").read_text())
    ids = reference["fixed_ids"]
    assert checkpoint.vocabulary is not None
    assert "".join(checkpoint.vocabulary[index] for index in ids) == reference["fixed_text"]
    assert checkpoint.assumptions == ("forget_bias 1.0, added to the forget gate once",)
    assert checkpoint.network.parameters == 100 * 128 + 2 * 512 * 257 + 100 * 129
    found = logprobs(checkpoint.network, ids)[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found, reference["logprobs"], rtol=0, atol=1e-4)


def head(width: int = UNITS) -> dict[str, Array]:
    return {
        "Variable": random(1, seed=1).reshape(()),
        "embedding": random(TOKENS, WIDTH, seed=2),
        "rnnlm/softmax_w": random(width, TOKENS, seed=3),
        "rnnlm/softmax_b": random(TOKENS, seed=4),
    }


def lstm(prefix: str = "rnnlm/multi_rnn_cell", kernel: str = "kernel", bias: str = "bias") -> Any:
    arrays = head()
    for layer, below in enumerate((WIDTH, UNITS)):
        cell = f"{prefix}/cell_{layer}/basic_lstm_cell"
        arrays[f"{cell}/{kernel}"] = random(below + UNITS, 4 * UNITS, seed=10 + layer)
        arrays[f"{cell}/{bias}"] = random(4 * UNITS, seed=20 + layer)
    return arrays


def gru() -> dict[str, Array]:
    arrays = head()
    for layer, below in enumerate((WIDTH, UNITS)):
        cell = f"rnnlm/multi_rnn_cell/cell_{layer}/gru_cell"
        for part, gates in (("candidate", 1), ("gates", 2)):
            shape = (below + UNITS, gates * UNITS)
            arrays[f"{cell}/{part}/kernel"] = random(*shape, seed=30 + layer * 2 + gates)
            arrays[f"{cell}/{part}/bias"] = random(gates * UNITS, seed=40 + layer * 2 + gates)
    return arrays


def rnn() -> dict[str, Array]:
    arrays = head()
    arrays["rnnlm/basic_rnn_cell/kernel"] = random(WIDTH + UNITS, UNITS, seed=50)
    arrays["rnnlm/basic_rnn_cell/bias"] = random(UNITS, seed=51)
    return arrays


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def lstm_step(arrays: dict[str, Array], layer: int, x: Array, c: Array, h: Array) -> Any:
    kernel, bias = (a.astype(float) for n, a in arrays.items() if f"cell_{layer}/" in n)
    i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
    c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    return c, np.tanh(c) * sigmoid(o)


def gru_step(arrays: dict[str, Array], layer: int, x: Array, c: Array, h: Array) -> Any:
    part = {n.split(f"cell_{layer}/gru_cell/")[-1]: a.astype(float) for n, a in arrays.items()}
    gates = np.concatenate([x, h]) @ part["gates/kernel"] + part["gates/bias"]
    r, u = np.split(sigmoid(gates), 2)
    reset = np.concatenate([x, r * h])
    candidate = np.tanh(reset @ part["candidate/kernel"] + part["candidate/bias"])
    return c, u * h + (1 - u) * candidate


def rnn_step(arrays: dict[str, Array], layer: int, x: Array, c: Array, h: Array) -> Any:
    kernel, bias = (a.astype(float) for n, a in arrays.items() if "basic_rnn_cell" in n)
    return c, np.tanh(np.concatenate([x, h]) @ kernel + bias)


@pytest.mark.parametrize(
    ("arrays", "step", "layers"),
    [
        pytest.param(lstm(), lstm_step, 2, id="lstm"),
        pytest.param(lstm("a/b", "weights", "biases"), lstm_step, 2, id="lstm-older-names"),
        pytest.param(gru(), gru_step, 2, id="gru"),
        pytest.param(rnn(), rnn_step, 1, id="rnn"),
    ],
)
def test_cells(arrays: dict[str, Array], step: Any, layers: int, tmp_path: Path) -> None:
    checkpoint = read(write(tmp_path / "m", arrays, chars=CHARACTERS, config={"layers": layers}))
    assert checkpoint.vocabulary == ("a", "b", "é", " ", "\n")
    assert checkpoint.network.parameters == sum(a.size for a in arrays.values()) - 1
    states = [(np.zeros(UNITS), np.zeros(UNITS))] * layers
    expected = []
    for token in IDS:
        x = arrays["embedding"][token].astype(float)
        for layer in range(layers):
            states[layer] = step(arrays, layer, x, *states[layer])
            x = states[layer][1]
        logits = x @ arrays["rnnlm/softmax_w"].astype(float) + arrays["rnnlm/softmax_b"]
        expected.append(logits - np.log(np.exp(logits).sum()))
    np.testing.assert_allclose(logprobs(checkpoint.network, IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"chars": CHARACTERS, "vocab": CHARACTERS}, "abé \n"),
        ({"chars": CHARACTERS, "list": ["a", "b", "é", " ", "\n"]}, "abé \n"),
        ({"chars": CHARACTERS, "list": ["b", "a", "é", " ", "\n"]}, None),
        ({"chars": {"a": 0, "b": 1}}, None),
        ({"chars": {**CHARACTERS, "b": 0}}, None),
        ({"chars": {**CHARACTERS, "b": True}}, None),
    ],
)
def test_vocabularies(files: dict[str, object], expected: str | None, tmp_path: Path) -> None:
    found = read(write(tmp_path / "m", rnn(), **files)).vocabulary
    assert found == (None if expected is None else tuple(expected))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"filename": "../outside", "shape": [5]}, "'../outside', is outside the folder"),
        ({"filename": "/etc/hostname", "shape": [5]}, "is outside the folder"),
        ({"filename": "link", "shape": [5]}, "is outside the folder"),
        ({"filename": "missing", "shape": [5]}, "is not there"),
        ({"filename": "a\0b", "shape": [5]}, "is not there"),
        ({"filename": "rnnlm_softmax_b", "shape": [6]}, "is not [6] in float32"),
        ({"filename": "rnnlm_softmax_b", "shape": [2**70]}, "in float32"),
        ({"filename": "rnnlm_softmax_b", "shape": [-5]}, "not of whole numbers"),
        ({"filename": "rnnlm_softmax_w", "shape": [UNITS, TOKENS]}, "have the same file"),
        ({"filename": "rnnlm_softmax_b"}, "has not a filename and a shape"),
        ([], "has not a filename and a shape"),
    ],
)
def test_entries_that_are_wrong(entry: object, problem: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", rnn())
    (tmp_path / "outside").write_bytes(bytes(20))
    (folder / "link").symlink_to(tmp_path / "outside")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["rnnlm/softmax_b"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert problem in refusal(folder)


def test_which_folders_are_read(tmp_path: Path) -> None:
    assert Ml5Folder().accepts(write(tmp_path / "m", rnn()))
    assert not Ml5Folder().accepts(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "of something else"}')
    assert not Ml5Folder().accepts(tmp_path)
    assert not Ml5Folder().accepts(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": ', "[" * 100_000, f'{{"{"a" * 999}": []}}'])
def test_manifests_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refusal(tmp_path)


def test_weights_that_are_wrong(tmp_path: Path) -> None:
    bias, kernel = "rnnlm/basic_rnn_cell/bias", "rnnlm/basic_rnn_cell/kernel"
    nan, wide, extra, none = (rnn() for _ in range(4))
    nan[kernel][0, 0] = np.nan
    wide[kernel] = random(WIDTH + UNITS + 1, UNITS, seed=1)
    extra["rnnlm/attention/kernel"] = random(2, 2, seed=1)
    del none[kernel], none[bias]
    mixed = {n: a for n, a in (gru() | lstm()).items() if "0/basic" not in n and "1/gru" not in n}
    assert "basic_rnn_cell/kernel holds NaN" in refusal(write(tmp_path / "nan", nan))
    assert "kernel [6, 3] should be [5, 3]" in refusal(write(tmp_path / "wide", wide))
    assert "left over: rnnlm/attention/kernel [2, 2]" in refusal(write(tmp_path / "x", extra))
    assert "no recurrent layer" in refusal(write(tmp_path / "none", none))
    assert "different cells: gru, lstm" in refusal(write(tmp_path / "mixed", mixed))
    missing = lstm()
    del missing["rnnlm/multi_rnn_cell/cell_0/basic_lstm_cell/bias"]
    assert "a layer has no bias" in refusal(write(tmp_path / "missing", missing))
    gone = {n: a for n, a in lstm().items() if "cell_0" not in n}
    assert "layers 1, not from 0 on" in refusal(write(tmp_path / "gone", gone))


def test_what_an_optimiser_keeps_is_passed_over(tmp_path: Path) -> None:
    arrays = rnn()
    arrays["rnnlm/basic_rnn_cell/kernel/Adam_1"] = random(WIDTH + UNITS, UNITS, seed=1)
    arrays["optimizer/beta1_power"] = random(1, seed=2).reshape(())
    assert read(write(tmp_path / "m", arrays)).network.parameters == 10 + 18 + 20

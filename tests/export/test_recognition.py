"""Which tensors are taken for what, where names and shapes leave room for doubt."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike
from support.checkpoints import Arrays, convert, letters, read_manifest, refusal, save, state_dict
from unrolled.v1 import model_pb2
from unrolled_export.network import Network
from unrolled_export.readers import Settings, read_checkpoint

Capture = pytest.CaptureFixture[str]


def read(folder: Path, arrays: Arrays, *settings: str) -> Network:
    return read_checkpoint(Path(save(folder, arrays)[0]), Settings(settings)).network


def tied(names: tuple[str, ...], vocabulary: int = 6) -> Arrays:
    """A state dict of tied weights, which it holds under each of `names`."""
    arrays = state_dict("gru", vocabulary, embedding=4, hidden=4)
    weights, bias = arrays.pop("head.weight"), arrays.pop("head.bias")
    del arrays["embedding.weight"]
    return {**arrays, **dict.fromkeys(names, weights), "decoder.bias": bias}


@pytest.mark.parametrize(
    "names",
    [("encoder.weight", "decoder.weight"), ("encoder.weight",), ("decoder.weight",)],
)
def test_tied_weights_count_once(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = tied(names)
    network = read(tmp_path, arrays)
    assert network.embedding is not None
    np.testing.assert_array_equal(network.embedding, network.head_weight)
    np.testing.assert_array_equal(network.head_bias, arrays["decoder.bias"])
    assert network.parameters == 6 * 4 + 6 + 2 * (12 * 4 + 12)


@pytest.mark.parametrize("layers", [1, 3])
def test_wrappers_around_the_model(layers: int, tmp_path: Path) -> None:
    arrays = {f"_orig_mod.module.{name}": a for name, a in state_dict(layers=layers).items()}
    assert len(read(tmp_path, arrays).layers) == layers


def test_a_bias_tells_the_head_from_the_embedding(tmp_path: Path) -> None:
    arrays = state_dict(vocabulary=6, embedding=4)
    first, second = arrays.pop("embedding.weight"), arrays.pop("head.weight")
    bias = arrays.pop("head.bias")
    network = read(tmp_path, {**arrays, "a.weight": second, "b.weight": first, "a.bias": bias})
    np.testing.assert_array_equal(network.head_weight, second)


def unnamed() -> Arrays:
    arrays = state_dict(vocabulary=6, embedding=4)
    del arrays["head.bias"]
    first, second = arrays.pop("embedding.weight"), arrays.pop("head.weight")
    return {**arrays, "a.weight": first, "b.weight": second}


def test_two_tensors_that_may_be_the_head(tmp_path: Path, capsys: Capture) -> None:
    line = refusal(save(tmp_path, unnamed(), letters(6)), tmp_path / "models", capsys)
    assert "b.weight [6, 4] and a.weight [6, 4] may each be the head" in line
    assert "add --set head=b.weight or --set head=a.weight" in line


@pytest.mark.parametrize("head", ["a.weight", "b.weight"])
def test_the_user_names_the_head(head: str, tmp_path: Path) -> None:
    network = read(tmp_path, unnamed(), f"head={head}")
    np.testing.assert_array_equal(network.head_weight, unnamed()[head])


def test_one_tensor_that_may_be_tied_or_for_one_hot_input(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, tied(("decoder.weight",), vocabulary=4), letters(4))
    line = refusal(arguments, tmp_path / "models", capsys)
    assert "decoder.weight [4, 4] may be the head of a model with one-hot input or tied" in line
    assert "--set input=one-hot or --set input=embedding" in line


@pytest.mark.parametrize("form", ["one-hot", "embedding"])
def test_the_user_says_what_the_input_is(form: str, tmp_path: Path) -> None:
    network = read(tmp_path, tied(("decoder.weight",), vocabulary=4), f"input={form}")
    assert (network.embedding is None) == (form == "one-hot")


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_floats_of_other_widths(kind: DTypeLike, tmp_path: Path) -> None:
    arrays = {name: array.astype(kind) for name, array in state_dict().items()}
    network = read(tmp_path, arrays)
    assert network.head_weight.dtype == np.float32
    np.testing.assert_array_equal(network.head_weight, arrays["head.weight"].astype(np.float32))


def test_bfloat16_of_pytorch(tmp_path: Path) -> None:
    tensors = {name: torch.tensor(a, dtype=torch.bfloat16) for name, a in state_dict().items()}
    torch.save(tensors, tmp_path / "model.pt")
    network = read_checkpoint(tmp_path / "model.pt", Settings()).network
    expected = tensors["head.weight"].float().numpy()
    np.testing.assert_array_equal(network.head_weight, expected)


def test_a_file_of_an_old_torch_under_another_suffix(tmp_path: Path) -> None:
    tensors = {name: torch.tensor(array) for name, array in state_dict().items()}
    torch.save(tensors, tmp_path / "model.dat", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "model.dat", Settings()).network.vocabulary_size == 5


@pytest.mark.parametrize(
    ("said", "options", "start", "end"),
    [
        ({}, [], None, []),
        ({"start_token": "\n", "end_tokens": ["\n", "b"]}, [], 0, [0, 1]),
        ({"start_token": "\n", "end_tokens": ["b"]}, ["--end-token", "#2"], 0, [2]),
        ({"start_token": "\n"}, ["--start-token", "b"], 1, []),
    ],
)
def test_a_folder_of_our_own(
    said: dict[str, object], options: list[str], start: int | None, end: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "hello-1.2"
    folder.mkdir()
    save(folder, state_dict("rnn"))
    description = {
        "format": "unrolled-checkpoint/1",
        "cell": "rnn_relu",
        "characters": list("\nbcde"),
    }
    (folder / "model.json").write_text(json.dumps(description | said))
    exported = convert([str(folder), *options], tmp_path / "models")
    assert exported == tmp_path / "models" / "hello-1.2" / "1"
    manifest = read_manifest(exported)
    assert manifest.cell == model_pb2.CELL_RNN_RELU
    vocabulary = manifest.vocabulary
    assert vocabulary.HasField("start_token") == (start is not None)
    assert vocabulary.start_token == (start or 0)
    assert list(vocabulary.end_tokens) == end

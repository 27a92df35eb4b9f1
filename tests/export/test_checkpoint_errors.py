"""Checkpoints that cannot be read: one line that names file and tensor, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import (
    Arrays,
    convert,
    letters,
    read_manifest,
    refusal,
    save,
    state_dict,
)
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from unrolled_export.errors import ExportError
from unrolled_export.readers import Settings, read_checkpoint

Capture = pytest.CaptureFixture[str]


def renamed(arrays: Arrays, old: str, new: str) -> Arrays:
    return {new if name == old else name: array for name, array in arrays.items()}


def without(arrays: Arrays, name: str) -> Arrays:
    return {other: array for other, array in arrays.items() if other != name}


def with_values(arrays: Arrays, name: str, *values: float) -> Arrays:
    array = arrays[name].copy()
    array.flat[: len(values)] = values
    return {**arrays, name: array}


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


LSTM = state_dict("lstm", layers=2)

BAD_TENSORS: dict[str, tuple[Arrays, str]] = {
    "NaN": (
        with_values(LSTM, "rnn.weight_hh_l1", np.nan),
        "rnn.weight_hh_l1 holds NaN or infinite weights",
    ),
    "infinity": (
        with_values(LSTM, "head.bias", np.inf),
        "head.bias holds NaN or infinite weights",
    ),
    "too large for float32": (
        {**LSTM, "head.bias": np.full(5, 1e300)},
        "head.bias holds NaN or infinite weights",
    ),
    "integers": (
        {**LSTM, "head.bias": np.zeros(5, np.int64)},
        "head.bias holds int64, where weights are float32 or the like",
    ),
    "nothing at all": ({}, "no recurrent layer: no tensor is called weight_ih_l0"),
    "no recurrent layer": (
        {"embedding.weight": zeros(5, 3), "head.weight": zeros(5, 3)},
        "no tensor is called weight_ih_l0, nor weight_ih, but embedding.weight [5, 3], "
        "head.weight [5, 3]: a cell that computes as PyTorch's is read once its tensors are called",
    ),
    "left over": (
        {**LSTM, "norm.weight": zeros(4)},
        "tensors left over: norm.weight [4]",
    ),
    "left over matrix": (
        {**LSTM, "attention.weight": zeros(5, 9)},
        "tensors left over: attention.weight [5, 9]",
    ),
    "projection": (
        {**LSTM, "rnn.weight_hr_l0": zeros(2, 4)},
        "rnn.weight_hr_l0 [2, 4] should be [4, 4], to fit rnn.weight_hh_l0 [16, 4]",
    ),
    "bidirectional": (
        {**LSTM, "rnn.weight_ih_l0_reverse": zeros(16, 3)},
        "rnn.weight_ih_l0_reverse belongs to a bidirectional layer",
    ),
    "two modules": (
        {**LSTM, **renamed(state_dict(), "rnn.weight_ih_l0", "other.weight_ih_l0")},
        "no tensor other.weight_hh_l0",
    ),
    "missing layer": (without(LSTM, "rnn.weight_hh_l1"), "no tensor rnn.weight_hh_l1"),
    "missing bias": (without(LSTM, "rnn.bias_hh_l0"), "no tensor rnn.bias_hh_l0"),
    "gates": (
        {**LSTM, "rnn.weight_ih_l0": zeros(8, 3)},
        "rnn.weight_ih_l0 [8, 3] and rnn.weight_hh_l0 [16, 4] are not those of a recurrent layer",
    ),
    "hidden size": (
        {**LSTM, "rnn.weight_hh_l1": zeros(16, 5)},
        "rnn.weight_hh_l1 [16, 5] should be [20, 5], to fit 4 gates of 5 units",
    ),
    "input size": (
        {**LSTM, "rnn.weight_ih_l1": zeros(16, 3)},
        "rnn.weight_ih_l1 [16, 3] should be [16, 4], to fit rnn.weight_hh_l1 [16, 4] above 4 units",
    ),
    "bias size": (
        {**LSTM, "rnn.bias_ih_l0": zeros(4)},
        "rnn.bias_ih_l0 [4] should be [16], to fit rnn.weight_hh_l0 [16, 4]",
    ),
    "not a matrix": (
        {**LSTM, "rnn.weight_hh_l0": zeros(16)},
        "rnn.weight_hh_l0 [16] is not a matrix",
    ),
    "head bias size": (
        {**LSTM, "head.bias": zeros(6)},
        "head.bias [6] should be [5], to fit head.weight [5, 4]",
    ),
    "embedding and head": (
        {**LSTM, "embedding.weight": zeros(6, 3)},
        "embedding.weight [6, 3] would be the embedding and head.weight [5, 4] the head, but 6 "
        "tokens to read and 5 to write are not served",
    ),
    "no embedding": (
        {**LSTM, "embedding.weight": zeros(5, 2)},
        "no embedding [V, 3] and head [V, 4], nor a head [3, 4] for one-hot input, beside the "
        "recurrent layers: found embedding.weight [5, 2], head.bias [5], head.weight [5, 4]",
    ),
    "no head": (
        {name: array for name, array in LSTM.items() if not name.startswith("head")},
        "found embedding.weight [5, 3]",
    ),
    "empty": ({**LSTM, "embedding.weight": zeros(0, 3), "head.weight": zeros(0, 4)}, "[0, "),
    "unprintable name": ({**LSTM, "a\nb": zeros(1)}, r"a tensor is called 'a\nb'"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_are_no_network(case: str, tmp_path: Path, capsys: Capture) -> None:
    arrays, expected = BAD_TENSORS[case]
    line = refusal(save(tmp_path, arrays, letters(5)), tmp_path / "models", capsys)
    assert line.startswith(f"unrolled-export: {tmp_path / 'model.safetensors'}: ")
    assert expected in line


SETTINGS: dict[str, tuple[str, list[str], str]] = {
    "missing": ("rnn", [], "add --set nonlinearity=tanh or --set nonlinearity=relu"),
    "not a choice": ("rnn", ["nonlinearity=sin"], "nonlinearity=sin: not one of tanh, relu"),
    "unknown": (
        "lstm",
        ["color=red"],
        "--set color: not a setting of this checkpoint (its settings: head, ",
    ),
    "of another cell": ("gru", ["nonlinearity=tanh"], "--set nonlinearity: not a setting"),
    "malformed": ("lstm", ["nonlinearity"], "--set nonlinearity: not of the form KEY=VALUE"),
    "twice": ("rnn", ["nonlinearity=tanh", "nonlinearity=relu"], "--set nonlinearity: given twice"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit(case: str, tmp_path: Path, capsys: Capture) -> None:
    cell, pairs, expected = SETTINGS[case]
    arguments = save(tmp_path, state_dict(cell), letters(5))
    arguments += [word for pair in pairs for word in ("--set", pair)]
    assert expected in refusal(arguments, tmp_path / "models", capsys)


def test_a_vocabulary_of_another_size(tmp_path: Path, capsys: Capture) -> None:
    line = refusal(save(tmp_path, state_dict(), letters(4)), tmp_path / "models", capsys)
    assert f"{tmp_path / 'vocab.json'}: 4 tokens, but the weights of" in line
    assert line.endswith("have 5")


def test_no_vocabulary(tmp_path: Path, capsys: Capture) -> None:
    line = refusal(save(tmp_path, state_dict()), tmp_path / "models", capsys)
    assert line.endswith("holds no vocabulary: add --vocab FILE, of 5 tokens")


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:5],
    "first half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "another byte first": lambda content: flipped(content, 1),
    "text": lambda content: b"It was the best of times, it was the worst of times.\n" * 9,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage: str, suffix: str, tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict(), letters(5))
    path = (tmp_path / "model").with_suffix(suffix)
    if suffix == ".pt":
        torch.save({name: torch.tensor(array) for name, array in state_dict().items()}, path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    line = refusal([str(path), *arguments[1:]], tmp_path / "models", capsys)
    assert line.startswith(f"unrolled-export: {path}: ")
    assert "damaged" in line or "not a whole safetensors file" in line


def test_a_flipped_bit_in_the_weights_of_an_archive(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict(), letters(5))
    path = tmp_path / "model.pt"
    weights = state_dict()["rnn.weight_hh_l0"]
    torch.save({name: torch.tensor(array) for name, array in state_dict().items()}, path)
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(weights.tobytes()) + 9))
    line = refusal([str(path), *arguments[1:]], tmp_path / "models", capsys)
    assert "damaged" in line
    assert "does not match its checksum" in line


def test_any_flipped_bit_of_a_pickle_is_one_line_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tensors = {name: torch.tensor(array) for name, array in state_dict().items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    messages = []
    for offset in range(0, len(content), 7):
        path.write_bytes(flipped(content, offset))
        try:
            read_checkpoint(path, Settings())
        except ExportError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message]


class Hostile:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_a_command(archive: bool, tmp_path: Path, capsys: Capture) -> None:
    path, witness = tmp_path / "model.pt", tmp_path / "witness"
    content = {"head.weight": torch.zeros(2, 2), "extra": Hostile(f"touch {witness}")}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert f"asks for {os.system.__module__}.system, as a hostile file would" in line
    assert not witness.exists()


OTHER_PICKLES: dict[str, tuple[object, str]] = {
    "a module": (nn.LSTM(3, 4), "holds objects of classes (torch.nn.modules.rnn.LSTM)"),
    "a list": ([torch.zeros(2)], "holds no model: no map or module in it names tensors"),
    "a training run": (
        {"state_dict": {"head.weight": torch.zeros(2, 2)}, "epoch": 3},
        "no recurrent layer: no tensor is called weight_ih_l0",
    ),
}


@pytest.mark.parametrize("case", OTHER_PICKLES)
def test_pickles_of_something_else(case: str, tmp_path: Path, capsys: Capture) -> None:
    content, expected = OTHER_PICKLES[case]
    torch.save(content, tmp_path / "model.pth")
    line = refusal([str(tmp_path / "model.pth")], tmp_path / "models", capsys)
    assert expected in line


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_need_no_permission(whole: bool, tmp_path: Path, capsys: Capture) -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "head": nn.Linear(4, 5)})
    parts = {nn.LSTM, nn.Linear}
    packed = torch.ao.quantization.quantize_dynamic(model, parts)  # type: ignore[no-untyped-call]
    torch.save(packed if whole else packed.state_dict(), tmp_path / "model.pt")
    line = refusal([str(tmp_path / "model.pt")], tmp_path / "models", capsys)
    assert "holds quantised weights (torch." in line
    assert line.endswith("save the state_dict of the float32 model that they were made from")


def test_other_kinds_of_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert f"{path}: not a checkpoint that this release reads (" in line


def test_no_file(tmp_path: Path, capsys: Capture) -> None:
    line = refusal([str(tmp_path / "missing.pt")], tmp_path / "models", capsys)
    assert line.endswith("missing.pt: no such file or folder")


def test_numbers_that_numpy_does_not_know(tmp_path: Path, capsys: Capture) -> None:
    tensor = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"w": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert "w holds F8_E4M3: save it as float32" in line


DESCRIPTION = {"format": "unrolled-checkpoint/1", "cell": "lstm", "characters": letters(5)}

BAD_DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "model.json: not JSON"),
    "nested without end": ("[" * 100_000, "model.json: not JSON"),
    "not an object": ("[]", "model.json: not a JSON object"),
    "another format": (
        json.dumps({**DESCRIPTION, "format": "unrolled-checkpoint/2"}),
        'field "format" is not "unrolled-checkpoint/1"',
    ),
    "no such cell": (
        json.dumps({**DESCRIPTION, "cell": "mamba"}),
        'field "cell" is not one of rnn_tanh, rnn_relu, lstm, gru',
    ),
    "another cell": (json.dumps({**DESCRIPTION, "cell": "gru"}), "the cell is said to be gru"),
    "no characters": (
        json.dumps({"format": "unrolled-checkpoint/1", "cell": "lstm"}),
        'field "characters" is not a list of strings',
    ),
    "start token": (
        json.dumps({**DESCRIPTION, "start_token": 1}),
        'field "start_token" is not a string',
    ),
    "end tokens": (
        json.dumps({**DESCRIPTION, "end_tokens": "a"}),
        'field "end_tokens" is not a list of strings',
    ),
    "end token outside the vocabulary": (
        json.dumps({**DESCRIPTION, "end_tokens": ["z"]}),
        "end token 'z': not in the vocabulary of 5 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_descriptions_of_our_own(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, expected = BAD_DESCRIPTIONS[case]
    save(tmp_path, state_dict())
    (tmp_path / "model.json").write_text(text)
    assert expected in refusal([str(tmp_path)], tmp_path / "models", capsys)


def test_a_folder_that_lacks_its_weights(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.json").write_text(json.dumps(DESCRIPTION))
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert line.startswith(f"unrolled-export: {tmp_path / 'model.safetensors'}: no such file")


def test_a_folder_of_one_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, state_dict(), letters(5))
    (tmp_path / "LICENSE").write_text("Five\nlines of\na licence,\nperhaps\nan old one\n")
    model = read_manifest(convert([str(tmp_path)], tmp_path / "models"))
    assert list(model.vocabulary.tokens) == [letter.encode() for letter in letters(5)]


def test_a_folder_of_two_checkpoints(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path, state_dict())
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    save(tmp_path, state_dict())
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert "more than one checkpoint (model.safetensors, other.safetensors): name one" in line


def test_a_folder_of_two_vocabularies(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path, state_dict(), letters(5))
    (tmp_path / "other.json").write_text(json.dumps(list("vwxyz")))
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert "vocabularies that differ (other.json, vocab.json): add --vocab FILE" in line


FOLDERS = {
    "weights": (("model.ckpt-9.index", "model.ckpt-9.data-00000-of-00001"), "(model.ckpt-9.index)"),
    "a SavedModel": (("saved_model.pb", "variables.index"), "a SavedModel of TensorFlow"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_tensorflow(case: str, tmp_path: Path, capsys: Capture) -> None:
    names, expected = FOLDERS[case]
    for name in names:
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "chars_vocab.pkl").write_bytes(pickle.dumps((("a", "b"), {"a": 0, "b": 1})))
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert expected in line
    assert line.endswith("as .keras or .h5, other weights by name in a .safetensors file")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_a_distributed_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in LSTM.items()}
    save_distributed(tensors, checkpoint_id=tmp_path, no_dist=True)
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert "a distributed checkpoint of PyTorch: `python -m torch.distributed" in line


def test_a_folder_of_something_else(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    line = refusal([str(tmp_path)], tmp_path / "models", capsys)
    assert line == f"unrolled-export: {tmp_path}: no file in this folder is a checkpoint"


def test_a_name_that_is_none(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*save(tmp_path, state_dict(), letters(5)), "--name", "../elsewhere"]
    line = refusal(arguments, tmp_path / "models", capsys)
    assert "--name ../elsewhere: not a model name" in line

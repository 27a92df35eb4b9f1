"""What an export writes, and that it writes all of it or nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.checkpoints import convert, letters, read_manifest, refusal, save, state_dict
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2
from unrolled_export import portable_graph
from unrolled_export.__main__ import main

Capture = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_manifest(tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict("gru", layers=2), letters(5))
    folder = convert([*arguments, "--start-token", "a"], tmp_path / "models")
    assert folder == tmp_path / "models" / "model" / "1"
    manifest, files = read_manifest(folder), contents(folder)
    assert sorted(files) == ["engine.onnx", "manifest.json", "model.onnx", "prompt.onnx"]
    assert {file.name: (file.bytes, file.sha256) for file in manifest.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
        if name != "manifest.json"
    }
    assert (manifest.name, manifest.version) == ("model", 1)
    assert manifest.cell == model_pb2.CELL_GRU
    assert manifest.precision == model_pb2.PRECISION_FP32
    assert [(layer.input_size, layer.hidden_size) for layer in manifest.layers] == [(3, 4), (4, 4)]
    assert manifest.parameters == sum(array.size for array in state_dict("gru", layers=2).values())
    assert manifest.status == model_pb2.Model.STATUS_UNSPECIFIED


def test_states_of_an_lstm(tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict("lstm", layers=2), letters(5))
    manifest = read_manifest(convert(arguments, tmp_path / "models"))
    states = [(state.input, state.output, list(state.shape)) for state in manifest.states]
    names = ["h_00", "c_00", "h_01", "c_01"]
    assert states == [(name, f"next_{name}", [4]) for name in names]
    assert manifest.state_bytes == 4 * 4 * 4


def test_the_parity_report(tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict("lstm"), letters(5))
    parity = read_manifest(convert(arguments, tmp_path / "models")).parity
    assert parity.reference.startswith("torch ")
    assert parity.steps >= 1000
    assert 0 < parity.max_abs_logprob_error < parity.tolerance
    assert parity.greedy_identical
    assert parity.tolerance == 1e-4


def test_graphs_are_valid_and_name_their_maker(tmp_path: Path) -> None:
    folder = convert(save(tmp_path, state_dict("rnn"), letters(5)) + TANH, tmp_path / "models")
    for name in ("model.onnx", "engine.onnx", "prompt.onnx"):
        graph = onnx.load(folder / name)
        onnx.checker.check_model(graph, full_check=True)
        assert graph.producer_name == "unrolled"
        assert graph.doc_string == ""


TANH = ["--set", "nonlinearity=tanh"]


def test_what_the_command_prints(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("lstm"), letters(5))
    folder = convert([*arguments, "--end-token", "e"], tmp_path / "models")
    printed = capsys.readouterr().out
    assert "embedding embedding.weight, lstm rnn.*, head head.weight and head.bias" in printed
    assert "end tokens 'e'" in printed
    assert str(folder) in printed
    assert read_manifest(folder).fingerprint in printed


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_same_checkpoint_gives_the_same_bytes(cell: str, tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict(cell), letters(5))
    first, second = (convert(arguments, tmp_path / name) for name in ("one", "two"))
    assert contents(first) == contents(second)


def manifest_of(folder: Path, cell: str = "lstm", *options: str) -> model_pb2.Model:
    folder.mkdir()
    tokens = letters(5)
    return read_manifest(convert([*save(folder, state_dict(cell), tokens), *options], folder / "m"))


def test_the_fingerprint_stands_for_weights_vocabulary_and_cell(tmp_path: Path) -> None:
    plain = manifest_of(tmp_path / "plain")
    renamed = manifest_of(tmp_path / "renamed", "lstm", "--name", "another")
    start = manifest_of(tmp_path / "start", "lstm", "--start-token", "a")
    gru = manifest_of(tmp_path / "gru", "gru")
    assert plain.fingerprint == renamed.fingerprint == fingerprint(plain)
    assert plain.weights_sha256 == start.weights_sha256 != gru.weights_sha256
    assert len({plain.fingerprint, start.fingerprint, gru.fingerprint}) == 3


def test_nonlinearities_share_weights_but_no_fingerprint(tmp_path: Path) -> None:
    tanh = manifest_of(tmp_path / "tanh", "rnn", *TANH)
    relu = manifest_of(tmp_path / "relu", "rnn", "--set", "nonlinearity=relu")
    assert tanh.weights_sha256 == relu.weights_sha256
    assert tanh.fingerprint != relu.fingerprint


CHANGES: dict[str, dict[str, Any]] = {
    "weights_sha256": {"weights_sha256": "0"},
    "graph_revision": {"graph_revision": 99},
    "precision": {"precision": model_pb2.PRECISION_INT8},
    "layers": {"layers": [model_pb2.Model.Layer(input_size=1, hidden_size=2)]},
    "states": {"states": [model_pb2.Model.StateTensor(input="h_00", output="x", shape=[4])]},
    "tokens": {"vocabulary": model_pb2.Vocabulary(tokens=[b"b"])},
    "start token": {"vocabulary": model_pb2.Vocabulary(start_token=0)},
    "unknown token": {"vocabulary": model_pb2.Vocabulary(unknown_token=0)},
    "end tokens": {"vocabulary": model_pb2.Vocabulary(end_tokens=[0])},
}


def test_every_part_of_the_fingerprint_counts() -> None:
    changed = [fingerprint(model_pb2.Model(**change)) for change in CHANGES.values()]
    assert len({fingerprint(model_pb2.Model()), *changed}) == 1 + len(CHANGES)


def test_every_export_is_a_new_version(tmp_path: Path) -> None:
    arguments = save(tmp_path, state_dict(), letters(5))
    output = tmp_path / "models"
    (output / "model" / "7").mkdir(parents=True)
    (output / "model" / "08").mkdir()
    (output / "model" / "notes").mkdir()
    assert main(["convert", *arguments, "--output", str(output)]) == 0
    assert main(["convert", *arguments, "--output", str(output)]) == 0
    assert read_manifest(output / "model" / "8").version == 8
    assert read_manifest(output / "model" / "9").version == 9
    assert sorted(os.listdir(output)) == ["model"]


def test_folders_are_open_to_other_users(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    folder = convert(save(tmp_path, state_dict(), letters(5)), tmp_path / "models")
    expected = (tmp_path / "plain").stat().st_mode
    assert folder.stat().st_mode == folder.parent.stat().st_mode == expected


@pytest.mark.parametrize("before", [0, 1])
def test_a_failed_write_leaves_nothing(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*save(tmp_path, state_dict(), letters(5)), "--output", str(tmp_path / "models")]
    for _ in range(before):
        assert main(["convert", *arguments]) == 0

    def fail(*_: object) -> None:
        raise OSError("no space left")

    existing = sorted((tmp_path / "models").rglob("*"))
    monkeypatch.setattr(os, "rename", fail)
    assert main(["convert", *arguments]) == 1
    assert sorted((tmp_path / "models").rglob("*")) == existing


def test_weights_too_large_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(portable_graph, "LARGEST_FILE", 100)
    line = refusal(save(tmp_path, state_dict(), letters(5)), tmp_path / "models", capsys)
    assert "bytes of weights do not fit in an ONNX file, which holds 100" in line

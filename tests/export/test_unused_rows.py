"""Weights with more rows than there are tokens, against the PyTorch model that has them all."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import convert, letters, read_manifest, refusal, save, state_dict
from torch import nn
from unrolled_export.__main__ import main

Capture = pytest.CaptureFixture[str]

TOKENS, ROWS = 44, 48
DROP = ["--set", "unused_rows=drop"]


class Model(nn.Module):
    """A model whose vocabulary was filled up; `form` is how tokens enter it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.form = form
        if form != "one-hot":
            self.embedding = nn.Embedding(ROWS, 6)
        self.rnn = nn.LSTM(ROWS if form == "one-hot" else 6, 6, 2, batch_first=True)
        self.head = nn.Linear(6, ROWS)
        if form == "tied":
            self.head.weight = self.embedding.weight
        with torch.no_grad():
            self.head.weight.mul_(3)
            self.head.bias.normal_()

    @torch.no_grad()
    def logits(self, ids: list[int]) -> NDArray[np.float64]:
        """[T, ROWS] of what follows each of `ids`."""
        tokens = torch.tensor([ids])
        is_one_hot = self.form == "one-hot"
        inputs = torch.eye(ROWS)[tokens] if is_one_hot else self.embedding(tokens)
        found: NDArray[np.float64] = self.head(self.rnn(inputs)[0])[0].double().numpy()
        return found


def saved(folder: Path, model: Model) -> list[str]:
    """Arguments of `convert` for the model and a vocabulary of fewer tokens."""
    arrays = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    return save(folder, arrays, letters(TOKENS))


def renormalised(model: Model, ids: list[int]) -> NDArray[np.float64]:
    """Log-probabilities [T, TOKENS] of what follows each of `ids`, among the tokens alone."""
    return torch.from_numpy(model.logits(ids)[:, :TOKENS]).log_softmax(-1).numpy()


@pytest.mark.parametrize("form", ["embedding", "one-hot", "tied"])
def test_the_other_logits_stay(form: str, tmp_path: Path, capsys: Capture) -> None:
    model, reference = Model(form), tmp_path / "reference.json"
    ids = np.random.default_rng(1).integers(0, TOKENS, 40).tolist()
    rows = renormalised(model, ids[:-1])
    expected = rows[np.arange(len(ids) - 1), ids[1:]].tolist()
    reference.write_text(json.dumps({"fixed_ids": ids, "logprobs": expected}))
    arguments = [*saved(tmp_path, model), *DROP, "--reference", str(reference)]
    if form == "tied":
        arguments += ["--set", "input=embedding"]
    folder = convert(arguments, tmp_path / "models")
    manifest = read_manifest(folder)
    assert manifest.parity.scope.startswith("arithmetic verified, reading verified against")
    assert "without the rows of ids from 44 to 47, as of no token" in manifest.source
    assert "assumed  without the rows of ids from 44 to 47" in capsys.readouterr().out
    assert manifest.vocabulary.size == len(manifest.vocabulary.tokens) == TOKENS
    np.testing.assert_allclose(
        portable_logits(folder, ids), model.logits(ids)[:, :TOKENS], atol=1e-5
    )


def portable_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """[T, TOKENS], as onnxruntime computes the written graph from zero states."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokens, *states = session.get_inputs()
    feeds = {tokens.name: np.array([ids])} | {
        state.name: np.zeros((1, state.shape[-1]), np.float32) for state in states
    }
    found: NDArray[np.float32] = session.run([session.get_outputs()[0].name], feeds)[0][0]
    return found


def test_the_error_names_the_setting(tmp_path: Path, capsys: Capture) -> None:
    arguments = saved(tmp_path, Model("embedding"))
    line = refusal(arguments, tmp_path / "models", capsys)
    assert line.endswith(
        f"44 tokens, but the weights of {arguments[0]} have 48; where ids from 44 on are padding: "
        "add --set unused_rows=drop"
    )


def test_the_command_that_inspect_prints(tmp_path: Path, capsys: Capture) -> None:
    arguments = saved(tmp_path, Model("embedding"))
    assert main(["inspect", *arguments]) == 0
    printed = capsys.readouterr().out
    (command,) = [line for line in printed.splitlines() if line.startswith("convert ")]
    assert command.endswith("--set unused_rows=CHOOSE  # CHOOSE: drop")
    assert "vocabulary  44 tokens (characters)" in printed
    words = shlex.split(command, comments=True)[2:]
    filled = {".models": str(tmp_path / "models"), "unused_rows=CHOOSE": "unused_rows=drop"}
    assert main([filled.get(word, word) for word in words]) == 0


@pytest.mark.parametrize(
    ("tokens", "rows", "is_named"),
    [
        *((44, 48, True), (41, 64, True), (50, 64, True), (65, 128, True), (40, 48, True)),
        *((44, 50, False), (4, 48, False), (31, 72, False), (49, 48, False), (44, 45, False)),
    ],
)
def test_a_wrong_vocabulary_is_not_padding(
    tokens: int, rows: int, is_named: bool, tmp_path: Path, capsys: Capture
) -> None:
    """Only what rounding up may have made is offered as such; but who knows may say so."""
    arguments = save(tmp_path, state_dict(vocabulary=rows), letters(tokens))
    line = refusal(arguments, tmp_path / "models", capsys)
    assert f"{tokens} tokens, but the weights of {arguments[0]} have {rows}" in line
    assert ("unused_rows" in line) == is_named
    if tokens > rows:
        assert "have 48" in refusal([*arguments, *DROP], tmp_path / "models", capsys)
    elif not is_named:
        folder = convert([*arguments, *DROP], tmp_path / "models")
        assert read_manifest(folder).vocabulary.size == tokens


def test_nothing_to_drop(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict(vocabulary=8), letters(8))
    line = refusal([*arguments, *DROP], tmp_path / "models", capsys)
    assert "--set unused_rows=drop: " in line
    assert line.endswith("has as many tokens as the weights")

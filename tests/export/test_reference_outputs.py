"""Reference outputs prove how a checkpoint was read, or refuse the reading."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import convert, letters, read_manifest, refusal, save, state_dict
from torch import nn

Capture = pytest.CaptureFixture[str]

SIZE, COUNT = 5, 30


class Model(nn.Module):
    """The checkpoint's own program."""

    def __init__(self, nonlinearity: str = "tanh") -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, 3)
        self.rnn = nn.RNN(3, 4, batch_first=True, nonlinearity=nonlinearity)
        self.head = nn.Linear(4, SIZE)
        arrays = state_dict("rnn")
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.double()

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> np.ndarray:
        """[T, V]: of what follows each of `ids`."""
        logits = self.head(self.rnn(self.embedding(torch.tensor([ids])))[0])[0]
        result: np.ndarray = logits.log_softmax(-1).numpy()
        return result


def outputs(model: Model) -> dict[str, Any]:
    """What somebody who has the program would write down."""
    text = np.random.default_rng(0).integers(0, SIZE, COUNT + 1).tolist()
    prompt, greedy = [1, 2, 3], list[int]()
    for _ in range(COUNT):
        greedy.append(int(model.logprobs(prompt + greedy)[-1].argmax()))
    rows = model.logprobs(text[:-1])
    return {
        "model": "keys that nobody reads",
        "vocab_size": SIZE,
        "fixed_ids": text,
        "logprobs": rows[np.arange(COUNT), text[1:]].tolist(),
        "prompt_ids": prompt,
        "greedy_ids": greedy,
    }


def arguments(folder: Path, reference: object) -> list[str]:
    """Of a conversion; `reference` is a file's content, or what it is as JSON."""
    file = folder / "reference.json"
    file.write_text(reference if isinstance(reference, str) else json.dumps(reference))
    checkpoint = [*save(folder, state_dict("rnn"), letters(SIZE)), "--set", "nonlinearity=tanh"]
    return [*checkpoint, "--reference", str(file)]


def test_outputs_of_the_model_verify_the_reading(tmp_path: Path, capsys: Capture) -> None:
    folder = convert(arguments(tmp_path, outputs(Model())), tmp_path / "models")
    digest = hashlib.sha256((tmp_path / "reference.json").read_bytes()).hexdigest()
    scope = read_manifest(folder).parity.scope
    assert scope.startswith(
        f"arithmetic verified, reading verified against reference.json (SHA-256 {digest}): "
        f"{COUNT} log-probabilities within "
    )
    assert scope.endswith(f" nats in fp32, {COUNT} greedy tokens the same")
    worst = float(scope.split(" within ")[1].split()[0])
    assert 0 < worst < 1e-5
    assert scope in capsys.readouterr().out


@pytest.mark.parametrize("keys", [("fixed_ids", "logprobs"), ("prompt_ids", "greedy_ids")])
def test_either_pair_is_enough(keys: tuple[str, str], tmp_path: Path) -> None:
    whole = outputs(Model())
    folder = convert(arguments(tmp_path, {key: whole[key] for key in keys}), tmp_path / "models")
    counts = (COUNT, 0) if "logprobs" in keys else (0, COUNT)
    scope = read_manifest(folder).parity.scope
    assert f"): {counts[0]} log-probabilities within" in scope
    assert f", {counts[1]} greedy tokens the same" in scope


def test_without_outputs_the_reading_is_assumed(tmp_path: Path, capsys: Capture) -> None:
    folder = convert(arguments(tmp_path, "unread")[:-2], tmp_path / "models")
    assert read_manifest(folder).parity.scope == "arithmetic verified, reading assumed"
    assert "arithmetic verified, reading assumed" in capsys.readouterr().out


class Scriptable(nn.Module):
    """The same parts with a program that TorchScript takes."""

    def __init__(self) -> None:
        super().__init__()
        program = Model()
        self.embedding, self.rnn, self.head = program.embedding, program.rnn, program.head
        self.float()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embedding(tokens))
        logits: torch.Tensor = self.head(hidden)
        return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["script", "trace"])
def test_archives_of_torchscript(form: str, tmp_path: Path, capsys: Capture) -> None:
    scripted: Any
    if form == "script":
        scripted = torch.jit.script(Scriptable())
    else:
        tokens = torch.zeros(1, 4, dtype=torch.int64)
        scripted = torch.jit.trace(Scriptable(), tokens)  # type: ignore[no-untyped-call]
    _, *vocabulary, option, setting, proof, reference = arguments(tmp_path, outputs(Model()))
    torch.jit.save(scripted, tmp_path / "model.pt")
    given = [str(tmp_path / "model.pt"), *vocabulary, proof, reference]
    # A traced module keeps no attributes.
    folder = convert(given + [option, setting] * (form == "trace"), tmp_path / "models")
    assert "reading verified against" in read_manifest(folder).parity.scope
    assert capsys.readouterr().out.startswith("found    TorchScript Scriptable: ")


def test_outputs_of_another_reading(tmp_path: Path, capsys: Capture) -> None:
    """The weights are the same, the nonlinearity is not."""
    line = refusal(arguments(tmp_path, outputs(Model("relu"))), tmp_path / "models", capsys)
    assert f"{tmp_path / 'reference.json'}: logprobs[" in line
    assert line.endswith("it was read in a way that is not its own")


def test_a_wrong_log_probability(tmp_path: Path, capsys: Capture) -> None:
    wrong = outputs(Model())
    wrong["logprobs"][17] += 3e-4
    line = refusal(arguments(tmp_path, wrong), tmp_path / "models", capsys)
    assert f"reference.json: logprobs[17] is {wrong['logprobs'][17]:.6f}, the model as" in line


def test_a_wrong_greedy_token(tmp_path: Path, capsys: Capture) -> None:
    wrong = outputs(Model())
    right = wrong["greedy_ids"][4]
    wrong["greedy_ids"][4] = (right + 1) % SIZE
    line = refusal(arguments(tmp_path, wrong), tmp_path / "models", capsys)
    assert line.endswith(
        f"reference.json: greedy_ids[4] is {(right + 1) % SIZE}, the model as read chooses {right}"
    )


IDS = "is not a list of ids from 0 to 4"
NUMBERS = "is not a list of finite numbers"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "id too large": ({"fixed_ids": [0, 5, 1]}, f'"fixed_ids" {IDS}'),
    "id negative": ({"prompt_ids": [-1]}, f'"prompt_ids" {IDS}'),
    "id of another type": ({"greedy_ids": [1.0]}, f'"greedy_ids" {IDS}'),
    "id a truth value": ({"greedy_ids": [True]}, f'"greedy_ids" {IDS}'),
    "id a list": ({"fixed_ids": [[1]]}, f'"fixed_ids" {IDS}'),
    "id huge": ({"fixed_ids": [10**40]}, f'"fixed_ids" {IDS}'),
    "no list": ({"fixed_ids": "abc"}, '"fixed_ids" is not a list'),
    "null": ({"logprobs": None}, '"logprobs" is not a list'),
    "text": ({"logprobs": ["-1"] * COUNT}, f'"logprobs" {NUMBERS}'),
    "not a number": ({"logprobs": [float("nan")] * COUNT}, f'"logprobs" {NUMBERS}'),
    "infinite": ({"logprobs": [float("-inf")] * COUNT}, f'"logprobs" {NUMBERS}'),
    "huge": ({"logprobs": [10**400] * COUNT}, f'"logprobs" {NUMBERS}'),
    "too few": (
        {"logprobs": [-1.0]},
        '"logprobs" is not one number for each of fixed_ids but the first',
    ),
    "no text": ({"fixed_ids": []}, '"logprobs" is not one number for each of fixed_ids but'),
    "no prompt": ({"prompt_ids": []}, '"prompt_ids" is not what greedy_ids continue'),
    "another vocabulary": ({"vocab_size": 6}, '"vocab_size" is not that of the weights, 5'),
    "vocabulary of another type": ({"vocab_size": "5"}, '"vocab_size" is not that of the weights'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outputs(name: str, tmp_path: Path, capsys: Capture) -> None:
    change, expected = WRONG[name]
    line = refusal(arguments(tmp_path, outputs(Model()) | change), tmp_path / "models", capsys)
    assert f"{tmp_path / 'reference.json'}: {expected}" in line


FILES: dict[str, tuple[str, str]] = {
    "empty": ("", "not JSON ("),
    "truncated": ('{"fixed_ids": [1, 2', "not JSON ("),
    "deep": ("[" * 100_000, "not JSON ("),
    "digits": ('{"fixed_ids": [' + "9" * 5000 + "]}", "not JSON ("),
    "list": ("[1, 2]", "not a JSON object"),
    "nothing": ("{}", "neither fixed_ids with logprobs nor prompt_ids with greedy_ids"),
    "one token": ('{"fixed_ids": [1], "logprobs": []}', "neither fixed_ids with logprobs nor"),
    "prompt alone": ('{"prompt_ids": [1]}', "neither fixed_ids with logprobs nor"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_outputs(name: str, tmp_path: Path, capsys: Capture) -> None:
    content, expected = FILES[name]
    line = refusal(arguments(tmp_path, content), tmp_path / "models", capsys)
    assert f"{tmp_path / 'reference.json'}: {expected}" in line


def test_bytes_that_are_no_text(tmp_path: Path, capsys: Capture) -> None:
    words = arguments(tmp_path, "")
    (tmp_path / "reference.json").write_bytes(b'\xff\xfe\x00"\xd8')
    assert "reference.json: not JSON (" in refusal(words, tmp_path / "models", capsys)


def test_no_such_file(tmp_path: Path, capsys: Capture) -> None:
    words = arguments(tmp_path, "")
    (tmp_path / "reference.json").unlink()
    assert "reference.json" in refusal(words, tmp_path / "models", capsys)

"""The models in the repository: exported as `make serve` does, served, and as good as claimed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.calls import Stubs, connected
from support.server import running_server
from torch import nn
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled_export.__main__ import main as export_main

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "export" / "models"
CORPUS = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
SHAKESPEARE = ("shakespeare-lstm", "shakespeare-gru")
LARGEST = 8_000_000


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    repository = tmp_path_factory.mktemp("bundled")
    for folder in sorted(MODELS.iterdir()):
        assert export_main(["convert", str(folder), "--output", str(repository)]) == 0
    with running_server(repository) as server, connected(server.address) as stubs:
        yield stubs


class Checkpoint:
    """A bundled checkpoint in plain PyTorch modules."""

    def __init__(self, name: str) -> None:
        self.description = json.loads((MODELS / name / "model.json").read_text())
        recipe, self.characters = self.description["recipe"], self.description["characters"]
        weights = load_file(MODELS / name / "model.safetensors")
        kind = nn.LSTM if recipe["cell"] == "lstm" else nn.GRU
        self._rnn = kind(recipe["embedding"], recipe["hidden"], recipe["layers"], batch_first=True)
        named = {key[4:]: value for key, value in weights.items() if key.startswith("rnn.")}
        self._rnn.load_state_dict(named)
        self._weights = weights

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> np.ndarray:
        """[T, V] of what follows each of `ids` [T]."""
        hidden, _ = self._rnn(self._weights["embedding.weight"][torch.tensor([ids])])
        logits = hidden[0] @ self._weights["head.weight"].T + self._weights["head.bias"]
        result: np.ndarray = logits.log_softmax(-1).numpy()
        return result


def test_hello(bundled: Stubs) -> None:
    request = CompleteRequest(model="hello-rnn", prompt="h", temperature=0)
    assert bundled.completions.Complete(request).text == "ello"


@pytest.mark.parametrize("name", SHAKESPEARE)
def test_a_completion_is_that_of_pytorch(bundled: Stubs, name: str) -> None:
    response = bundled.completions.Complete(
        CompleteRequest(model=name, prompt="ROMEO:\n", max_tokens=300, seed=1, logprobs=0)
    )
    checkpoint = Checkpoint(name)
    prompt = [checkpoint.characters.index(character) for character in "ROMEO:\n"]
    rows = checkpoint.logprobs(prompt + list(response.token_ids))[len(prompt) - 1 : -1]
    reference = rows[np.arange(300), list(response.token_ids)]
    given = np.array([item.logprob for item in response.logprobs])
    assert np.abs(given - reference).max() <= 1e-4


@pytest.mark.parametrize("name", SHAKESPEARE)
def test_greedy_text_is_that_of_pytorch(bundled: Stubs, name: str) -> None:
    response = bundled.completions.Complete(
        CompleteRequest(model=name, prompt="ROMEO:\n", max_tokens=300, temperature=0)
    )
    checkpoint = Checkpoint(name)
    prompt = [checkpoint.characters.index(character) for character in "ROMEO:\n"]
    rows = checkpoint.logprobs(prompt + list(response.token_ids))[len(prompt) - 1 : -1]
    best = np.sort(rows)[:, ::-1]
    clear = best[:, 0] - best[:, 1] > 1e-3
    assert clear.mean() > 0.9
    assert (rows.argmax(-1) == np.array(response.token_ids))[clear].all()


@pytest.mark.parametrize("name", SHAKESPEARE)
def test_files_are_small_and_the_claimed_loss_is_reached(name: str) -> None:
    assert all(file.stat().st_size <= LARGEST for file in (MODELS / name).iterdir())
    assert Checkpoint(name).description["validation_nats"] <= 1.4697
    assert (
        f"{Checkpoint(name).description['validation_nats']:.4f}" in (ROOT / "README.md").read_text()
    )


@pytest.mark.parametrize("name", SHAKESPEARE)
def test_the_server_finds_unseen_text_as_likely_as_claimed(bundled: Stubs, name: str) -> None:
    if not CORPUS.exists():
        pytest.skip(f"the training text is not part of the repository: no {CORPUS.name} beside it")
    text = CORPUS.read_text()
    held_out = text[len(text) - round(len(text) * 0.1) :][:30_000]
    score = bundled.completions.Score(ScoreRequest(model=name, text=held_out))
    # Parts of the held-out text differ; all of it has the loss that model.json claims.
    assert -score.total_logprob / (len(held_out) - 1) <= 1.55


@pytest.mark.parametrize("name", SHAKESPEARE)
def test_the_manifest_says_what_was_checked(bundled: Stubs, name: str) -> None:
    model = bundled.models.GetModel(GetModelRequest(name=name)).model
    assert model.parity.greedy_identical
    assert model.parity.steps >= 1000
    assert 0 < model.parity.max_abs_logprob_error <= model.parity.tolerance == 1e-4
    assert model.source

"""Models that other people have trained and published: converted by one command each, checked
against outputs of the framework they come from, and served."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.calls import Stubs, connected
from support.oracle import LoneRun
from support.server import running_server
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse, ScoreRequest
from unrolled_export.__main__ import main as export_main

PUBLISHED = Path(__file__).parents[3] / "shared" / "models"

pytestmark = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="published checkpoints are not part of the repository"
)


@dataclass(frozen=True)
class Published:
    """A folder of published files, and how it is converted."""

    folder: str
    checkpoint: str = ""
    options: tuple[str, ...] = ()

    def arguments(self, repository: Path) -> list[str]:
        home = PUBLISHED / self.folder
        options = [
            str(home / option) if (home / option).exists() else option for option in self.options
        ]
        return [
            *("convert", str(home / self.checkpoint), *options),
            *("--output", str(repository), "--name", self.folder),
            *("--reference", str(home / "reference.json")),
        ]

    @property
    def reference(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((PUBLISHED / self.folder / "reference.json").read_text())
        return found


MODELS = (
    Published("chempleter-gru", "model.pt", ("--vocab", "stoi.json")),
    Published("char-rnn-pytorch-gru256", "model.pt", ("--allow-pickle",)),
    Published("char-rnn-pytorch-gru100x4", "RNN_4_layers.pt", ("--allow-pickle",)),
    Published("bimodal-lstm256x2-layernorm", options=("--allow-pickle",)),
    Published("torch-rnn-placenames", "checkpoint_8450.t7"),
    Published("ml5-darwin"),
    Published("keras-lstm-chem", "LSTM_Chem-22-0.45.hdf5", ("--vocab", "vocab.json")),
)
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("published")
    for model in MODELS:
        assert export_main(model.arguments(repository)) == 0
    return repository


@pytest.fixture(scope="module")
def stubs(converted: Path) -> Iterator[Stubs]:
    with running_server(converted) as server, connected(server.address) as stubs:
        yield stubs


def fed(run: LoneRun, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities [T, V] of what follows each of `ids` [T], from the first state."""
    state, rows = run.start(), []
    for token in ids:
        result = run.feed(state, token)
        state = result.state
        rows.append(result.logprobs)
    return np.array(rows)


@every_model
def test_log_probabilities_are_those_of_the_source(converted: Path, model: Published) -> None:
    reference = model.reference
    ids = reference["fixed_ids"]
    rows = fed(LoneRun(converted / model.folder / "1"), ids[:-1])
    found = rows[np.arange(len(rows)), ids[1:]]
    assert np.abs(found - reference["logprobs"]).max() <= 1e-4


@every_model
def test_scores_of_text_are_those_of_the_source(stubs: Stubs, model: Published) -> None:
    reference = model.reference
    request = ScoreRequest(model=model.folder, text=reference["fixed_text"], logprobs=0)
    score = stubs.completions.Score(request)
    assert [item.token_id for item in score.tokens] == reference["fixed_ids"]
    found = [item.logprob for item in score.tokens[1:]]
    assert np.abs(np.array(found) - reference["logprobs"]).max() <= 1e-4


@every_model
def test_greedy_text_is_that_of_the_source(stubs: Stubs, model: Published) -> None:
    reference = model.reference
    ids = reference["greedy_ids"]
    request = CompleteRequest(
        model=model.folder, prompt=reference["prompt"], max_tokens=len(ids), temperature=0
    )
    assert list(stubs.completions.Complete(request).token_ids) == ids


@every_model
def test_two_turns_are_one(stubs: Stubs, model: Published) -> None:
    def complete(session: str, prompt: str, tokens: int) -> CompleteResponse:
        request = CompleteRequest(session=session, prompt=prompt, max_tokens=tokens, logprobs=0)
        return stubs.completions.Complete(request)

    one, two = (stubs.create(model.folder, seed=11) for _ in range(2))
    prompt = model.reference["prompt"]
    whole = complete(one, prompt, 60)
    parts = [complete(two, prompt, 23), complete(two, "", 37)]
    assert whole.text == "".join(part.text for part in parts)
    assert list(whole.token_ids) == [token for part in parts for token in part.token_ids]
    assert list(whole.logprobs) == [item for part in parts for item in part.logprobs]
    assert stubs.position(one) == stubs.position(two)


@every_model
def test_the_manifest_says_that_the_reading_is_proved(converted: Path, model: Published) -> None:
    manifest = json.loads((converted / model.folder / "1" / "manifest.json").read_text())
    assert manifest["parity"]["scope"].startswith("arithmetic verified, reading verified against ")


def test_attention_over_all_steps_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = PUBLISHED / "refuse-textgenrnn"
    assert export_main(["convert", str(folder), "--output", str(tmp_path / "models")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "attention over all steps" in line
    assert not list(tmp_path.iterdir())

"""Training: it learns, it can be cut off and go on, and its checkpoints can be converted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from support.checkpoints import convert, read_manifest
from unrolled_export.__main__ import main
from unrolled_export.training.corpus import Streams, read_corpus
from unrolled_export.training.loop import Trainer

Capture = pytest.CaptureFixture[str]

RHYME = "Three blind mice. See how they run!\n" * 60
SMALL = ["--hidden", "12", "--embedding", "6", "--batch-size", "3", "--chunk", "16"]
FAST = ["--learning-rate", "0.03", "--warmup", "10", "--dropout", "0", "--weight-decay", "0"]
NO_SAMPLES = ["--sample-every", "1000000"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def train(folder: Path, text: str, *options: str) -> Path:
    """Train on a text; returns the checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text)
    arguments = ["train", str(folder / "text.txt"), "--output", str(folder / "checkpoint")]
    assert main([*arguments, *SMALL, *NO_SAMPLES, *options]) == 0
    return folder / "checkpoint"


def weights(checkpoint: Path, file: str = "model.safetensors") -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(checkpoint / file).items()}


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_a_few_epochs_lower_the_loss(cell: str, tmp_path: Path) -> None:
    checkpoint = train(tmp_path, RHYME, "--cell", cell, "--layers", "1", "--epochs", "3", *FAST)
    progress = json.loads((checkpoint / "resume.json").read_text())["progress"]
    losses = [loss for _, loss in progress["train"]]
    assert losses[-1] < 0.5 * losses[0]
    assert progress["best"] == min(loss for _, loss in progress["validation"])


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    options = ("--epochs", "1", "--cell", "gru", "--layers", "2", "--start-token", "\\n")
    checkpoint = train(tmp_path, RHYME, *options, "--end-token", "!", "--end-token", "#0")
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "losses.png",
        "model.json",
        "model.safetensors",
        "resume.json",
        "resume.safetensors",
    ]
    description = json.loads((checkpoint / "model.json").read_text())
    assert description["format"] == "unrolled-checkpoint/1"
    assert description["cell"] == "gru"
    assert description["characters"] == sorted(set(RHYME))
    assert description["start_token"] == "\n"
    assert description["end_tokens"] == ["!", "\n"]
    assert description["recipe"]["hidden"] == 12
    assert description["validation_nats"] > 0
    assert (checkpoint / "losses.png").read_bytes().startswith(b"\x89PNG")


class Interrupted(Exception):
    """As by control-C."""


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_resumed_run_ends_as_one_never_interrupted(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--cell", cell, "--layers", "2", "--epochs", "4")
    whole = train(tmp_path / "whole", RHYME, *options)

    close, closed = Trainer._close_epoch, []

    def interrupt(trainer: Trainer, state: torch.Tensor) -> str:
        closed.append(close(trainer, state))
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", interrupt)
        with pytest.raises(Interrupted):
            train(tmp_path / "parts", RHYME, *options)
    cut = json.loads((tmp_path / "parts" / "checkpoint" / "resume.json").read_text())
    parts = train(tmp_path / "parts", RHYME, *options, "--resume")

    done = json.loads((whole / "resume.json").read_text())
    assert 0 < cut["progress"]["updates"] < done["progress"]["updates"]
    assert (parts / "resume.json").read_bytes() == (whole / "resume.json").read_bytes()
    assert weights(parts, "resume.safetensors") == weights(whole, "resume.safetensors")
    assert weights(parts) == weights(whole)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "first", RHYME, "--epochs", "1")
    again = train(tmp_path / "again", RHYME, "--epochs", "1")
    other = train(tmp_path / "other", RHYME, "--epochs", "1", "--seed", "2")
    assert weights(first) == weights(again) != weights(other)


def test_samples_appear_as_often_as_asked(tmp_path: Path, capsys: Capture) -> None:
    options = ("--layers", "1", "--epochs", "1", "--sample-every")
    train(tmp_path / "often", "ab" * 500, *options, "10")
    often = capsys.readouterr().out
    train(tmp_path / "seldom", "ab" * 500, *options, "1000")
    assert len(often) > len(capsys.readouterr().out) + 300


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: Capture) -> None:
    checkpoint = train(tmp_path, RHYME, "--epochs", "1")
    before = weights(checkpoint)
    arguments = ["train", str(tmp_path / "text.txt"), "--output", str(checkpoint)]
    assert main([*arguments, *SMALL, "--epochs", "1", "--seed", "2"]) == 1
    assert f"{checkpoint}: holds a run" in capsys.readouterr().err
    assert weights(checkpoint) == before


def test_resuming_with_another_recipe(tmp_path: Path, capsys: Capture) -> None:
    checkpoint = train(tmp_path, RHYME, "--epochs", "1")
    arguments = ["train", str(tmp_path / "text.txt"), "--output", str(checkpoint), "--resume"]
    assert main([*arguments, *SMALL, "--epochs", "2", "--clip", "5"]) == 1
    assert "resume.json: made with another epochs, clip" in capsys.readouterr().err


def test_resuming_nothing(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.txt").write_text(RHYME)
    arguments = ["train", str(tmp_path / "text.txt"), "--output", str(tmp_path / "none")]
    assert main([*arguments, *SMALL, "--resume"]) == 1
    assert "resume.json: no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"a\xff", "text.txt: not UTF-8 at byte 1"), (b"a", "1 characters to train on")],
)
def test_texts_that_cannot_be_trained_on(
    text: bytes, expected: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    arguments = ["train", str(tmp_path / "text.txt"), "--output", str(tmp_path / "none")]
    assert main(arguments) == 1
    assert expected in capsys.readouterr().err


def test_streams_go_on_where_they_ended_and_around_the_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh")
    corpus = read_corpus(tmp_path / "text.txt", 0)
    streams = Streams(corpus.train, 2)
    inputs, targets = streams.next_chunk(3)
    assert inputs.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert targets.tolist() == [[1, 2, 3], [5, 6, 7]]
    inputs, targets = streams.next_chunk(3)
    assert inputs.tolist() == [[3, 4, 5], [7, 0, 1]]
    assert targets.tolist() == [[4, 5, 6], [0, 1, 2]]


def test_the_end_of_the_text_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * 45 + "c" * 10)
    corpus = read_corpus(tmp_path / "text.txt", 0.1)
    assert len(corpus.train) == 90
    assert corpus.validation.tolist() == [2] * 10


def test_hello(tmp_path: Path) -> None:
    """Karpathy's smallest example: after h comes ello, which takes a state to get right."""
    options = ["--cell", "rnn_tanh", "--layers", "1", "--hidden", "8", "--embedding", "4"]
    options += ["--batch-size", "1", "--chunk", "24", "--epochs", "300", "--validation", "0"]
    options += [
        "--dropout",
        "0",
        "--weight-decay",
        "0",
        "--learning-rate",
        "0.03",
        "--warmup",
        "10",
    ]
    checkpoint = train(tmp_path, "hello\n" * 16, *options)
    exported = convert([str(checkpoint)], tmp_path / "models")
    tokens = [token.decode() for token in read_manifest(exported).vocabulary.tokens]
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    state, text = np.zeros((1, 8), np.float32), "h"
    for _ in range(4):
        feeds = {"tokens": np.array([[tokens.index(text[-1])]]), "h_00": state}
        logits, state = session.run(["logits", "next_h_00"], feeds)
        text += tokens[int(logits[0, 0].argmax())]
    assert text == "hello"

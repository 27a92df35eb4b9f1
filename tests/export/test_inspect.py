"""What `unrolled-export inspect` says, and that the command it prints converts."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import letters, read_manifest, refusal, save, state_dict
from torch import nn
from unrolled.v1 import model_pb2
from unrolled_export.__main__ import main

Capture = pytest.CaptureFixture[str]
Lines = list[tuple[str, str]]

MODELS = Path(__file__).parents[2] / "export" / "models"


def inspected(capsys: Capture, *arguments: str) -> Lines:
    """Titles and lines of what is printed."""
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return [(line[:12].strip(), line[12:]) for line in printed.out.splitlines()]


def all_of(lines: Lines, title: str) -> list[str]:
    return [line for name, line in lines if name == title]


def converted(
    lines: Lines, output: Path, vocabulary_file: Path | None = None, **chosen: str
) -> Path:
    """The version's folder that the printed command makes, with its blanks filled in."""
    (command,) = all_of(lines, "convert")
    words = shlex.split(command, comments=True)
    assert words[:2] == ["unrolled-export", "convert"]
    filled = {".models": str(output)} | (
        {"VOCABULARY": str(vocabulary_file)} if vocabulary_file else {}
    )
    filled |= {f"{key}=CHOOSE": f"{key}={value}" for key, value in chosen.items()}
    assert main([filled.get(word, word) for word in words[1:]]) == 0
    (manifest,) = output.glob("*/*/manifest.json")
    return manifest.parent


def test_a_bundled_model(tmp_path: Path, capsys: Capture) -> None:
    lines = inspected(capsys, str(MODELS / "hello-rnn"))
    description = json.loads((MODELS / "hello-rnn" / "model.json").read_text())
    assert all_of(lines, "missing") == []
    assert all_of(lines, "assumed") == []
    assert all_of(lines, "cell") == [description["recipe"]["cell"]]
    assert f"{len(description['characters'])} tokens (characters)" in all_of(lines, "vocabulary")[0]
    assert all_of(lines, "convert") == [
        f"unrolled-export convert {MODELS / 'hello-rnn'} --output .models"
    ]
    converted(lines, tmp_path / "models")


def test_what_is_printed_of_the_network(tmp_path: Path, capsys: Capture) -> None:
    lines = inspected(capsys, *save(tmp_path, state_dict("lstm", layers=2), letters(5)))
    assert lines[:1] == [("checkpoint", str(tmp_path / "model.safetensors"))]
    assert all_of(lines, "cell") == ["lstm"]
    assert all_of(lines, "layer") == ["4 units, input of 3", "4 units, input of 4"]
    assert all_of(lines, "input") == ["embedding, 3 wide"]
    sizes = [array.size for array in state_dict("lstm", layers=2).values()]
    assert all_of(lines, "parameters") == [str(sum(sizes))]
    assert all_of(lines, "state") == ["64 bytes a session"]
    assert all_of(lines, "missing") == []


def test_a_plain_rnn_without_a_vocabulary(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("rnn"))
    lines = inspected(capsys, *arguments)
    nonlinearity, vocabulary = all_of(lines, "missing")
    assert "--set nonlinearity=tanh or --set nonlinearity=relu" in nonlinearity
    assert vocabulary.endswith("holds no vocabulary: add --vocab FILE, of 5 tokens")
    assert all_of(lines, "vocabulary") == ["5 tokens, which ones the file does not tell"]
    (command,) = all_of(lines, "convert")
    assert command.endswith(
        "--output .models --vocab VOCABULARY --set nonlinearity=CHOOSE  # CHOOSE: tanh or relu"
    )
    vocabulary_file = tmp_path / "tokens.txt"
    vocabulary_file.write_text("\n".join(letters(5)))
    folder = converted(lines, tmp_path / "models", vocabulary_file, nonlinearity="relu")
    assert read_manifest(folder).cell == model_pb2.CELL_RNN_RELU


def test_a_blank_that_is_left_fails(tmp_path: Path, capsys: Capture) -> None:
    (command,) = all_of(
        inspected(capsys, *save(tmp_path, state_dict("rnn"), letters(5))), "convert"
    )
    assert main(shlex.split(command, comments=True)[1:]) == 1
    error = capsys.readouterr().err
    assert error == "unrolled-export: --set nonlinearity=CHOOSE: not one of tanh, relu\n"


def test_several_blanks(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("rnn"), ["note_60", *letters(4)])
    (command,) = all_of(inspected(capsys, *arguments), "convert")
    assert command.endswith(
        "--set nonlinearity=CHOOSE --set vocabulary=CHOOSE"
        "  # CHOOSE: nonlinearity tanh or relu; vocabulary character or word"
    )


def test_what_is_given_is_not_missing(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("rnn"), letters(5))
    lines = inspected(capsys, *arguments, "--set", "nonlinearity=relu")
    assert all_of(lines, "missing") == []
    folder = converted(lines, tmp_path / "models")
    assert read_manifest(folder).cell == model_pb2.CELL_RNN_RELU


@pytest.mark.parametrize("has_file", [False, True])
def test_where_a_vocabulary_is(has_file: bool, tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("gru"), letters(5))
    path = tmp_path / "whole.pt"
    tensors = {name: torch.from_numpy(array) for name, array in state_dict("gru").items()}
    torch.save({"net": tensors, "data": {"itos": letters(5)}}, path)
    lines = inspected(capsys, str(path), *(arguments[1:] if has_file else ()))
    assert (("", "found at data.itos") in lines) is not has_file


def test_names_that_a_shell_would_take_apart(tmp_path: Path, capsys: Capture) -> None:
    odd = tmp_path / "it's a # folder"
    odd.mkdir()
    tokens = ["a b", "$c", "'", "#", "\n"]
    options = ["--start-token", "a b", "--end-token", "$c", "--end-token", "'"]
    lines = inspected(capsys, *save(odd, state_dict("gru"), tokens), *options)
    folder = converted(lines, tmp_path / "models", vocabulary="character")
    vocabulary = read_manifest(folder).vocabulary
    assert (vocabulary.start_token, list(vocabulary.end_tokens)) == (0, [1, 2])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("best-epoch=3-val_loss=1.25.ckpt", "best-epoch-3-val_loss-1.25"),
        ("my model.pt", "my-model"),
        ("épée.pt", "epee"),
        (".hid.pt", "hid"),
        ("модель.pt", "model"),
        ("_x_.pt", "x"),
    ],
)
def test_names_that_no_model_can_have(
    file: str, name: str, tmp_path: Path, capsys: Capture
) -> None:
    (written,) = save(tmp_path, state_dict("gru"))
    checkpoint, vocabulary = Path(written).rename(tmp_path / file), tmp_path / "tokens.txt"
    vocabulary.write_text("\n".join(letters(5)))
    arguments = [str(checkpoint), "--vocab", str(vocabulary)]
    line = refusal(arguments, tmp_path / "models", capsys)
    assert f"{checkpoint}: the file's name is no model name" in line
    assert line.endswith(f"add --name {name}")
    folder = converted(inspected(capsys, *arguments), tmp_path / "models")
    assert folder.parent.name == read_manifest(folder).name == name


def test_tokens_that_look_like_options(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("gru"), ["-", "a", "b", "-c", "-d"])
    lines = inspected(capsys, *arguments, "--start-token=-c", "--end-token=-d", "--end-token=-")
    vocabulary = read_manifest(converted(lines, tmp_path / "models")).vocabulary
    assert (vocabulary.start_token, list(vocabulary.end_tokens)) == (3, [0, 4])


class CharModel(nn.Module):
    """A model that is saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.rnn = nn.RNN(3, 4, nonlinearity="relu")
        self.decoder = nn.Linear(4, 5)


def test_a_pickled_module(tmp_path: Path, capsys: Capture) -> None:
    file, vocabulary = tmp_path / "whole.pt", tmp_path / "tokens.txt"
    torch.save(CharModel(), file)
    vocabulary.write_text("\n".join(letters(5)))
    lines = inspected(capsys, str(file), "--vocab", str(vocabulary))
    (missing,) = all_of(lines, "missing")
    assert str(file) in missing
    assert "--allow-pickle" in missing
    assert all_of(lines, "cell") == ["rnn_relu"]
    assert "--allow-pickle" in all_of(lines, "convert")[0]
    folder = converted(lines, tmp_path / "models")
    assert read_manifest(folder).cell == model_pb2.CELL_RNN_RELU


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("harmed"),)


def test_looking_runs_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {name: torch.from_numpy(array) for name, array in state_dict("gru").items()}
    torch.save({"model": arrays, "harm": _Harmful()}, "model.pt")
    main(["inspect", "model.pt"])
    assert "model.pt" in "".join(capsys.readouterr())
    assert not Path("harmed").exists()


def test_what_stands_behind_the_layers(tmp_path: Path, capsys: Capture) -> None:
    norm = {"norm.weight": np.ones(4, np.float32), "norm.bias": np.zeros(4, np.float32)}
    lines = inspected(capsys, *save(tmp_path, state_dict("gru") | norm, letters(5)))
    (missing,) = all_of(lines, "missing")
    assert "--set norm_epsilon=" in missing
    assert all_of(lines, "stage") == ["layer norm of 4, epsilon 1e-05"]
    converted(lines, tmp_path / "models", norm_epsilon="1e-5")


def refused(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_what_is_no_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "text.txt"
    assert f"{file}: no such file or folder" in refused(capsys, str(file))
    file.write_text("Once upon a time")
    assert f"{file}: not a checkpoint that this release reads" in refused(capsys, str(file))


def test_a_setting_that_nobody_asks_for(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, state_dict("gru"), letters(5))
    line = refused(capsys, *arguments, "--set", "nonlinearity=tanh")
    assert "--set nonlinearity: not a setting of this checkpoint" in line


def test_a_vocabulary_of_another_size_is_said(tmp_path: Path, capsys: Capture) -> None:
    lines = inspected(capsys, *save(tmp_path, state_dict("gru"), letters(4)))
    (missing,) = all_of(lines, "missing")
    assert "4 tokens, but the weights of" in missing

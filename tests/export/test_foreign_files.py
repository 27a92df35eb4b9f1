"""Files that are given in a checkpoint's or a vocabulary's place, and what is said of them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import refusal, save, state_dict
from torch import nn

Capture = pytest.CaptureFixture[str]


class Model(nn.Module):
    """A language model of five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embedding(tokens))
        logits: torch.Tensor = self.head(hidden)
        return logits


def zipped(content: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(content, content.name)


def tarred(content: Path, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(content, content.name)


PACKERS: dict[str, Callable[[Path, Path], object]] = {
    "model.zip": zipped,
    "zipped.pt": zipped,
    "model.tar": tarred,
    "tarred.bin": tarred,
    "model.pt.gz": lambda content, path: path.write_bytes(gzip.compress(content.read_bytes())),
    "gzipped.pt": lambda content, path: path.write_bytes(gzip.compress(content.read_bytes())),
    "model.bz2": lambda content, path: path.write_bytes(bz2.compress(content.read_bytes())),
    "model.xz": lambda content, path: path.write_bytes(lzma.compress(content.read_bytes())),
}


@pytest.mark.parametrize("name", PACKERS)
def test_archives(name: str, tmp_path: Path, capsys: Capture) -> None:
    content, path = Path(save(tmp_path, state_dict())[0]), tmp_path / name
    PACKERS[name](content, path)
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert line.endswith(f"{path}: an archive: unpack it")


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_archives_of_numpy(writer: Callable[..., None], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.npz"
    writer(path, **state_dict())
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert line.endswith(
        "an archive of NumPy arrays: save them by name in a .safetensors file instead"
    )


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore::DeprecationWarning")
def test_a_program_of_torch_export(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Model(), (torch.zeros(1, 3, dtype=torch.int64),)), path)
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert line.endswith("a program of torch.export: save the model's state_dict instead")


# Of what torch imports then.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module(tmp_path: Path, capsys: Capture) -> None:
    """Its pickle asks for an attribute of an object, which may be anything."""
    path = tmp_path / "model.pt"
    model: Any = torch.compile(Model())
    torch.save(model, path)
    line = refusal([str(path), "--allow-pickle"], tmp_path / "models", capsys)
    assert f"{path}: asks for builtins.getattr, as a hostile file would" in line
    assert "so does a torch.compile'd module: save its state_dict" in line
    torch.save(model.state_dict(), path)
    line = refusal([str(path)], tmp_path / "models", capsys)
    assert "holds no vocabulary" in line


WRITERS: dict[str, Callable[[Path], object]] = {
    "state_dict": lambda path: torch.save(Model().state_dict(), path),
    "legacy": lambda path: torch.save(
        Model().state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "bundle": lambda path: torch.save({"model": Model().state_dict(), "epoch": 3}, path),
    "safetensors": lambda path: Path(save(path.parent, state_dict())[0]).rename(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_checkpoint_as_vocabulary(name: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "vocabulary"
    WRITERS[name](path)
    arguments = save(tmp_path, state_dict())
    line = refusal([*arguments, "--vocab", str(path)], tmp_path / "models", capsys)
    assert line.endswith(f"{path}: a checkpoint, not a vocabulary")


def test_other_tensors_as_vocabulary(tmp_path: Path, capsys: Capture) -> None:
    """A damaged file and one without a model are what they are."""
    path, arguments = tmp_path / "vocabulary", save(tmp_path, state_dict())
    torch.save({"steps": torch.arange(5)}, path)
    line = refusal([*arguments, "--vocab", str(path)], tmp_path / "models", capsys)
    assert "is not a token and an id" in line
    torch.save(Model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    line = refusal([*arguments, "--vocab", str(path)], tmp_path / "models", capsys)
    assert "damaged, cut off" in line

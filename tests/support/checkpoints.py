"""Checkpoints of small models as other people's code would save them, and their conversion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray
from safetensors.numpy import save_file
from unrolled.v1 import model_pb2
from unrolled_export.__main__ import main

Arrays = dict[str, NDArray[Any]]

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def state_dict(
    cell: str = "lstm", vocabulary: int = 5, embedding: int = 3, hidden: int = 4, layers: int = 1
) -> Arrays:
    """A state dict `embedding`, `rnn`, `head` of random float32 weights, the same every time."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary, embedding)}
    rows = GATES[cell] * hidden
    for index in range(layers):
        shapes[f"rnn.weight_ih_l{index}"] = (rows, hidden if index else embedding)
        shapes[f"rnn.weight_hh_l{index}"] = (rows, hidden)
        shapes[f"rnn.bias_ih_l{index}"] = shapes[f"rnn.bias_hh_l{index}"] = (rows,)
    shapes |= {"head.weight": (vocabulary, hidden), "head.bias": (vocabulary,)}
    scale = hidden**-0.5
    return {
        name: random.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()
    }


def letters(count: int) -> list[str]:
    """A vocabulary."""
    return [chr(ord("a") + index) for index in range(count)]


def save(folder: Path, arrays: Arrays, tokens: Sequence[str] | None = None) -> list[str]:
    """Write a checkpoint and, unless None, its vocabulary; returns arguments of `convert`."""
    checkpoint, vocabulary = folder / "model.safetensors", folder / "vocab.json"
    save_file(arrays, checkpoint)
    if tokens is None:
        return [str(checkpoint)]
    vocabulary.write_text(json.dumps(tokens))
    return [str(checkpoint), "--vocab", str(vocabulary)]


def convert(arguments: Sequence[str], output: Path) -> Path:
    """Convert; returns the only version of the only model that `output` then holds."""
    assert main(["convert", *arguments, "--output", str(output)]) == 0
    (manifest,) = output.glob("*/*/manifest.json")
    return manifest.parent


def refusal(arguments: Sequence[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Convert what cannot be; returns the one line it says, after checking it wrote nothing."""
    capsys.readouterr()
    assert main(["convert", *arguments, "--output", str(output)]) == 1
    assert not list(output.rglob("*"))
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def read_manifest(folder: Path) -> model_pb2.Model:
    """The manifest of a version's folder."""
    text = (folder / "manifest.json").read_text()
    return json_format.Parse(text, model_pb2.Model())

"""Exported models, read back for evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2

from unrolled_export.errors import CheckpointError
from unrolled_export.reference import States
from unrolled_export.repository import ENGINE, MANIFEST, latest_version
from unrolled_export.runners import EngineRunner
from unrolled_export.tokenizer_files import SENTENCEPIECE_FILE, TOKENIZER_FILE


@dataclass(frozen=True)
class ExportedModel:
    """A version of a model repository."""

    manifest: model_pb2.Model
    files: Mapping[str, bytes]

    @property
    def initial(self) -> States:
        """The states of one row before any token."""
        return {state.input: _first(state) for state in self.manifest.states}

    def engine(self) -> EngineRunner:
        """Its engine's graph. Raises GraphError where onnxruntime refuses it."""
        names = {state.input: state.output for state in self.manifest.states}
        return EngineRunner(names, self.manifest.vocabulary.size, self.files[ENGINE])


def _first(state: model_pb2.Model.StateTensor) -> NDArray[np.float32]:
    """[1, ...]"""
    values = np.array(state.initial or [0] * math.prod(state.shape), np.float32)
    return values.reshape(1, *state.shape)


def find_exported(path: Path) -> Path | None:
    """The version's folder where `path` is one, or is a model's folder; else None."""
    if (path / MANIFEST).is_file():
        return path
    version = latest_version(path)
    return path / str(version) if version and (path / str(version) / MANIFEST).is_file() else None


def read_exported(folder: Path) -> ExportedModel:
    """Read a version's folder. Raises CheckpointError, naming the file, where it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = json_format.Parse(
            path.read_bytes().decode(), model_pb2.Model(), ignore_unknown_fields=True
        )
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"not a manifest ({error})") from error
    if manifest.fingerprint != fingerprint(manifest):
        raise CheckpointError(path, "damaged: its fingerprint is not that of the other fields")
    files = {file.name: _content(folder, file) for file in manifest.files}
    if ENGINE not in files:
        raise CheckpointError(path, f"files: {ENGINE} is not listed")
    _check_vocabulary(path, manifest.vocabulary, files)
    # No state is as large as the weights of one that is read.
    if not all(0 < math.prod(state.shape) < len(files[ENGINE]) for state in manifest.states):
        raise CheckpointError(path, f"states: {ENGINE} has none of such shapes")
    return ExportedModel(manifest, files)


def _check_vocabulary(
    path: Path, vocabulary: model_pb2.Vocabulary, files: Mapping[str, bytes]
) -> None:
    kinds = model_pb2.Vocabulary
    needed = {
        kinds.KIND_TOKENIZER: TOKENIZER_FILE,
        kinds.KIND_SENTENCEPIECE: SENTENCEPIECE_FILE,
    }.get(vocabulary.kind)
    if needed is not None and needed not in files:
        raise CheckpointError(path, f"files: {needed} is not listed")
    if vocabulary.size < 1 or (needed is None and vocabulary.size != len(vocabulary.tokens)):
        raise CheckpointError(path, "vocabulary: has not as many tokens as its size")


def _content(folder: Path, file: model_pb2.Model.File) -> bytes:
    path = folder / file.name
    if Path(file.name).name != file.name or file.name in ("", "..") or "\0" in file.name:
        raise CheckpointError(folder / MANIFEST, f"files: {file.name!r} is outside the folder")
    if not path.is_file():
        raise CheckpointError(path, "no such file, though the manifest lists it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise CheckpointError(path, "damaged: its SHA-256 is not that of the manifest")
    return content

"""Exported models, read back for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from unrolled.v1 import model_pb2

from unrolled_export.errors import CheckpointError
from unrolled_export.reference import States
from unrolled_export.repository import ENGINE, MANIFEST, latest_version
from unrolled_export.runners import EngineRunner


@dataclass(frozen=True)
class ExportedModel:
    """A version of a model repository."""

    manifest: model_pb2.Model
    files: Mapping[str, bytes]

    @property
    def initial(self) -> States:
        """The states of one row before any token."""
        return {
            state.input: np.array([state.initial or [0] * state.shape[0]], np.float32)
            for state in self.manifest.states
        }

    def engine(self) -> EngineRunner:
        """Its engine's graph. Raises GraphError where onnxruntime refuses it."""
        names = {state.input: state.output for state in self.manifest.states}
        return EngineRunner(names, self.manifest.vocabulary.size, self.files[ENGINE])


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
    files = {file.name: _content(folder, file) for file in manifest.files}
    if ENGINE not in files:
        raise CheckpointError(path, f"files: {ENGINE} is not listed")
    return ExportedModel(manifest, files)


def _content(folder: Path, file: model_pb2.Model.File) -> bytes:
    path = folder / file.name
    if Path(file.name).name != file.name:
        raise CheckpointError(folder / MANIFEST, f"files: {file.name!r} is outside the folder")
    if not path.is_file():
        raise CheckpointError(path, "no such file, though the manifest lists it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise CheckpointError(path, "damaged: its SHA-256 is not that of the manifest")
    return content

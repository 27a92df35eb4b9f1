"""What is served: every version of every model, with its engine, or why it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from unrolled.v1 import model_pb2

from unrolled_server.engine import Engine
from unrolled_server.errors import ModelNotFound
from unrolled_server.types import Floats
from unrolled_server.vocabulary import Vocabulary

LIST_BYTES = 3 << 20
"""Of all models in one message, with the tokens of their vocabularies: clients of gRPC take 4 MiB
unless told otherwise."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A version of a model that is ready."""

    name: str
    version: int
    fingerprint: str
    state_size: int
    """Numbers in a session's state."""
    vocabulary: Vocabulary
    engine: Engine
    device: str
    state_bounds: Floats | None = None
    """[S]: the largest magnitude of each number of a state; None: any finite one."""

    @property
    def label(self) -> str:
        """name/version"""
        return f"{self.name}/{self.version}"

    @property
    def state_bytes(self) -> int:
        return 4 * self.state_size

    def bears(self, state: Floats) -> bool:
        """Whether a session may go on from a state that comes from outside."""
        if state.shape != (self.state_size,):
            return False
        bounds = np.finfo(np.float32).max if self.state_bounds is None else self.state_bounds
        # Numbers that are not finite are within no bounds.
        return bool((np.abs(state) <= bounds).all())


@dataclass(frozen=True)
class Entry:
    """A version in the repository: its manifest as callers see it, and the model if ready."""

    manifest: model_pb2.Model
    model: ServedModel | None


class Models:
    """All entries, in the order of names and versions."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = sorted(entries, key=lambda e: (e.manifest.name, e.manifest.version))
        self.listed = _listed([entry.manifest for entry in self._entries])
        """Every entry as callers see it in a list."""

    def ready(self) -> Iterator[ServedModel]:
        """The models that take turns."""
        return (entry.model for entry in self._entries if entry.model is not None)

    def manifest(self, name: str) -> model_pb2.Model:
        """The entry for `name` (its latest ready version, else its latest) or `name/version`.

        Raises ModelNotFound.
        """
        return self._find(name).manifest

    def model(self, name: str) -> ServedModel:
        """The ready model for `name` (its latest ready version) or `name/version`.

        Raises ModelNotFound, also where the model failed to load.
        """
        entry = self._find(name)
        if entry.model is None:
            raise ModelNotFound(name, f"failed to load: {entry.manifest.status_detail}")
        return entry.model

    def with_fingerprint(self, fingerprint: str, label: str) -> ServedModel:
        """A ready model that goes on with the states of the model `label` with this fingerprint.

        That one where it is served, else the highest version of those that are its equals.
        Raises ModelNotFound.
        """
        equals = [model for model in self.ready() if model.fingerprint == fingerprint]
        if not equals:
            raise ModelNotFound(label, f"with fingerprint {fingerprint} is not served")
        return max(equals, key=lambda model: (model.label == label, model.version))

    def _find(self, name: str) -> Entry:
        base, _, version = name.partition("/")
        found = [
            entry
            for entry in self._entries
            if entry.manifest.name == base and version in ("", str(entry.manifest.version))
        ]
        if not found or name.endswith("/"):
            raise ModelNotFound(name)
        return max(found, key=lambda entry: (entry.model is not None, entry.manifest.version))

    def facts(self) -> Iterator[dict[str, str]]:
        """What the metrics tell of every entry."""
        for entry in self._entries:
            manifest = entry.manifest
            yield {
                "model": f"{manifest.name}/{manifest.version}",
                "cell": model_pb2.Cell.Name(manifest.cell).removeprefix("CELL_").lower(),
                "precision": _precision(manifest),
                "status": "failed" if entry.model is None else "ready",
                "fingerprint": manifest.fingerprint,
                "device": "" if entry.model is None else entry.model.device,
            }


def _listed(manifests: list[model_pb2.Model]) -> list[model_pb2.Model]:
    """The manifests, without the tokens of vocabularies where they would not fit in a message."""
    if sum(manifest.ByteSize() for manifest in manifests) <= LIST_BYTES:
        return manifests
    return [_without_tokens(manifest) for manifest in manifests]


def _without_tokens(manifest: model_pb2.Model) -> model_pb2.Model:
    model = model_pb2.Model()
    model.CopyFrom(manifest)
    if model.HasField("vocabulary"):
        model.vocabulary.ClearField("tokens")
    return model


def _precision(manifest: model_pb2.Model) -> str:
    return model_pb2.Precision.Name(manifest.precision).removeprefix("PRECISION_").lower()

"""Reads the model repository: `MODEL/VERSION/manifest.json` and the files it names."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2

from unrolled_server.engine import Engine
from unrolled_server.logs import log_event
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.opening import ENGINE, RunnerConfig, open_runners
from unrolled_server.running import AnyRunner, DeviceError, StateSpec
from unrolled_server.types import Floats
from unrolled_server.vocabulary import Vocabulary
from unrolled_server.vocabulary_loader import load_vocabulary

logger = logging.getLogger(__name__)

GRAPH_REVISION = 1
"""The revision of the engine's graph that this server runs."""

HIDDEN_BOUND = 1 + 2.0**-16
"""Of hidden states that products in bytes read: activations may round to a little over 1, and all
up to 1.004 becomes the byte of 1."""

VERSION = re.compile("[1-9][0-9]{0,17}")

StartEngine = Callable[[str, Sequence[AnyRunner], Vocabulary], Engine]


class LoadError(Exception):
    """A model cannot be served; the message names the file or field and says why."""


def load_models(
    repository: Path, rows: int, config: RunnerConfig, start_engine: StartEngine
) -> Models:
    """Load every version of every model; one that fails is listed with the reason."""
    folders = sorted(path for path in repository.iterdir() if _is_model(path))
    return Models(
        [
            _load_entry(folder, version, rows, config, start_engine)
            for folder in folders
            for version in _versions(folder)
        ]
    )


def _is_model(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _versions(folder: Path) -> Iterator[Path]:
    found = [path for path in folder.iterdir() if path.is_dir() and VERSION.fullmatch(path.name)]
    # A model without any version is listed as well, as version 0 that failed.
    yield from sorted(found, key=lambda path: int(path.name)) or [folder / "0"]


def _load_entry(
    folder: Path, version: Path, rows: int, config: RunnerConfig, start_engine: StartEngine
) -> Entry:
    started = time.perf_counter()
    # A name that is not UTF-8 is shown with question marks.
    name = folder.name.encode(errors="replace").decode()
    manifest = model_pb2.Model()
    try:
        manifest = _read_manifest(version)
        model = _load(version, manifest, rows, config, start_engine)
    except DeviceError:
        raise
    except Exception as error:
        # Whatever is wrong with one folder, the other models serve.
        manifest.name, manifest.version = name, int(version.name)
        manifest.status = model_pb2.Model.STATUS_FAILED
        manifest.status_detail = reason = str(error).encode(errors="replace").decode()
        label = f"{name}/{version.name}"
        log_event(logger, logging.ERROR, "model_failed", model=label, reason=reason)
        return Entry(manifest, None)
    manifest.status = model_pb2.Model.STATUS_READY
    seconds = time.perf_counter() - started
    log_event(
        logger,
        logging.INFO,
        "model_ready",
        model=model.label,
        device=model.device,
        parameters=manifest.parameters,
        state_bytes=manifest.state_bytes,
        fingerprint=manifest.fingerprint[:12],
        seconds=seconds,
    )
    return Entry(manifest, model)


def _load(
    folder: Path,
    manifest: model_pb2.Model,
    rows: int,
    config: RunnerConfig,
    start_engine: StartEngine,
) -> ServedModel:
    _check_manifest(folder, manifest)
    _check_files(folder, manifest)
    vocabulary = load_vocabulary(folder, manifest)
    states = tuple(_state(state) for state in manifest.states)
    files = {file.name for file in manifest.files}
    halves = manifest.precision == model_pb2.PRECISION_FP16
    runners = open_runners(folder, files, states, vocabulary.size, rows, config, halves=halves)
    label = f"{manifest.name}/{manifest.version}"
    return ServedModel(
        manifest.name,
        manifest.version,
        manifest.fingerprint,
        runners[0].state_size,
        vocabulary,
        start_engine(label, runners, vocabulary),
        runners[0].device,
        _state_bounds(manifest),
    )


def _state(state: model_pb2.Model.StateTensor) -> StateSpec:
    initial = np.array(state.initial, np.float32) if state.initial else None
    return StateSpec(state.input, state.output, state.shape[0], initial)


def _state_bounds(manifest: model_pb2.Model) -> Floats | None:
    """The bounds that products in bytes rely on: those of hidden states, not of an LSTM's cells."""
    if not manifest.quantized_weights:
        return None
    unbounded = np.finfo(np.float32).max
    return np.concatenate(
        [
            np.full(
                state.shape, HIDDEN_BOUND if state.input.startswith("h_") else unbounded, np.float32
            )
            for state in manifest.states
        ]
    )


def _read_manifest(folder: Path) -> model_pb2.Model:
    path = folder / "manifest.json"
    if not folder.exists():
        raise LoadError("there is no version folder, such as 1/ with a manifest.json")
    try:
        text = path.read_bytes().decode()
        # Fields of later releases are no reason to refuse a model.
        return json_format.Parse(text, model_pb2.Model(), ignore_unknown_fields=True)
    except FileNotFoundError as error:
        raise LoadError(f"{path.parent.name}/{path.name}: there is no such file") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise LoadError(f"manifest.json: {error}") from error


def _check_manifest(folder: Path, manifest: model_pb2.Model) -> None:
    place = f"{folder.parent.name}/{folder.name}"
    if f"{manifest.name}/{manifest.version}" != place:
        raise LoadError(f"manifest.json: is of {manifest.name}/{manifest.version}, not {place}")
    if manifest.fingerprint != fingerprint(manifest):
        raise LoadError("manifest.json: fingerprint does not fit the other fields")
    if manifest.graph_revision != GRAPH_REVISION:
        raise LoadError(
            f"manifest.json: graph_revision {manifest.graph_revision}, "
            f"this server runs {GRAPH_REVISION}; export the model again"
        )
    if any(len(state.shape) != 1 for state in manifest.states):
        raise LoadError("manifest.json: states: every shape has one dimension")
    if any(state.initial and len(state.initial) != state.shape[0] for state in manifest.states):
        raise LoadError("manifest.json: states: initial has not as many numbers as the shape")


def _check_files(folder: Path, manifest: model_pb2.Model) -> None:
    if ENGINE not in {file.name for file in manifest.files}:
        raise LoadError(f"manifest.json: files: {ENGINE} is not listed")
    for file in manifest.files:
        path = folder / file.name
        if "\0" in file.name or path.resolve().parent != folder.resolve():
            raise LoadError(f"manifest.json: files: {file.name!r} is outside the model's folder")
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise LoadError(f"{file.name}: there is no such file") from error
        if len(content) != file.bytes:
            raise LoadError(f"{file.name}: {len(content)} bytes, manifest.json has {file.bytes}")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise LoadError(f"{file.name}: SHA-256 differs from that in manifest.json")

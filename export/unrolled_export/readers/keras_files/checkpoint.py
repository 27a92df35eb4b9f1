"""Checkpoints of Keras: HDF5 of weights or of a whole model, and .keras archives.

The architecture comes from the file itself, from a JSON file beside it that fits the weights, or
else from the weights' names and shapes.
"""

from __future__ import annotations

import re
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.network import Gate
from unrolled_export.readers.keras_files.binding import find_architecture
from unrolled_export.readers.keras_files.recognition import reading, recognise
from unrolled_export.readers.keras_files.stack import Stack
from unrolled_export.readers.keras_files.weights import KerasWeights
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings

_SUFFIXES = (".h5", ".hdf5", ".keras")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = "model.weights.h5"


class KerasFile:
    """A file of Keras 1, 2 or 3."""

    kind = "a Keras file, .h5, .hdf5 or .keras"

    def accepts(self, path: Path) -> bool:
        return _is_keras(path)

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        weights = _read_weights(path)
        found = find_architecture(path, weights, settings)
        if found is None:
            parts, assumptions = recognise(weights, settings)
        else:
            weights = replace(weights, version=weights.version or found.version)
            parts, assumptions = found.parts, ()
        stack = Stack(weights.tensors, settings, lambda: _hard_sigmoid(weights, settings))
        for part in parts:
            stack.add(part)
        network = stack.network()
        weights.tensors.check_all_taken(reading(parts))
        return Checkpoint(
            network,
            (path,) if found is None or found.file == path else (path, found.file),
            f"Keras {weights.version or 'of unknown version'}: {reading(parts)}",
            assumptions=(*assumptions, *dict.fromkeys(stack.assumptions)),
        )


def _is_keras(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix in _SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    return head == _MAGIC or (head.startswith(b"PK") and _is_archive(path))


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except (
        *(OSError, zipfile.BadZipFile, ValueError, LookupError, EOFError),
        *(NotImplementedError, struct.error),
    ):
        # Whatever it is, it is not for this reader to say what is wrong with it.
        return False


def _read_weights(path: Path) -> KerasWeights:
    try:
        from unrolled_export.readers.keras_files.archive import read_archive
        from unrolled_export.readers.keras_files.hdf5 import read_hdf5
    except ModuleNotFoundError as error:
        raise CheckpointError(
            path, f"reading Keras files needs {error.name}: pip install '.[export]'"
        ) from error
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return read_archive(path) if is_zip else read_hdf5(path)


def _hard_sigmoid(weights: KerasWeights, settings: Settings) -> Gate:
    """Which function Keras calls by this name: it changed with Keras 3."""
    choices = ("2", "3")
    # Where Keras 3 writes the older layout, it never leaves its version out.
    unsaid = settings.choice("keras_version", choices) if weights.is_positional else "2"
    version = weights.version or unsaid
    if version is None:
        raise SettingNeeded(
            weights.tensors.file,
            "its hard_sigmoid is x/5 + 0.5 until Keras 2 and x/6 + 0.5 from Keras 3 on, and the "
            "file does not tell its version",
            "keras_version",
            choices,
        )
    major = re.match(r"[0-9]+", version)
    if major is None:
        raise weights.tensors.error(f"keras_version {version!r} is not a version")
    return Gate.HARD_SIGMOID_SIXTH if int(major[0]) >= 3 else Gate.HARD_SIGMOID_FIFTH

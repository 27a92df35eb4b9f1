"""A .keras archive: a zip of config.json, metadata.json and model.weights.h5."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.keras_files.hdf5 import read_hdf5
from unrolled_export.readers.keras_files.weights import KerasWeights, version_of

WEIGHTS = "model.weights.h5"
_MAX_EXPANSION = 4
_SLACK = 1 << 26


def read_archive(path: Path) -> KerasWeights:
    """Raises CheckpointError where it is damaged or not of Keras."""
    try:
        with zipfile.ZipFile(path) as archive:
            weights = _member(path, archive, WEIGHTS)
            architecture = _member(path, archive, "config.json").decode()
            version = version_of(_member(path, archive, "metadata.json"))
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(path, f"not a whole .keras file ({reason})") from error
    return replace(read_hdf5(path, weights), architecture=architecture, version=version)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    limit = _MAX_EXPANSION * path.stat().st_size + _SLACK
    if archive.getinfo(name).file_size > limit:
        raise CheckpointError(path, f"{name} unpacks to more than weights do")
    with archive.open(name) as member:
        # The declared size may be a lie: reading stops at it in any case.
        return member.read(limit)

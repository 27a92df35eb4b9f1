"""A model repository on disk: `NAME/VERSION/` for every model and version.

A version appears whole or not at all: it is written beside its place, under a name that no
reader of the repository takes for a model, and then renamed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unrolled_export.errors import RepositoryError

CONFIG = "config.pbtxt"
MANIFEST = "manifest.json"
PORTABLE = "model.onnx"
ENGINE = "engine.onnx"
PROMPT = "prompt.onnx"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RULE = "letters, digits, dot, dash and underscore, a letter or digit first"
_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")
_VERSION = re.compile(r"[1-9][0-9]*")


class Repository:
    """The models below a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def next_version(self, name: str) -> int:
        """One more than the highest version of the model, 1 where it has none."""
        return latest_version(self._folder / name) + 1

    def add(
        self, name: str, version: int, files: Mapping[str, bytes], beside: Mapping[str, bytes]
    ) -> Path:
        """Write a version's files, and those `beside` all versions (paths in the model's folder,
        replaced where they are there); returns the version's folder.

        Raises OSError where that fails, or where the version has come up in the meantime.
        """
        model = self._folder / name
        with self._staging(name) as staging:
            _write(staging, beside)
            _write(staging / str(version), files)
            if model.exists():
                os.rename(staging / str(version), model / str(version))
                for path in beside:
                    (model / path).parent.mkdir(exist_ok=True)
                    os.replace(staging / path, model / path)
            else:
                os.rename(staging, model)
        return model / str(version)

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """A folder that is gone in the end, unless it was renamed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = self._folder / f".{name}-{secrets.token_hex(4)}"
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)


def latest_version(model: Path) -> int:
    """The highest version in a model's folder, 0 where there is none."""
    entries = model.iterdir() if model.is_dir() else ()
    return max((int(entry.name) for entry in entries if _VERSION.fullmatch(entry.name)), default=0)


def check_name(name: str) -> str:
    """The name of a model, if it is one. Raises RepositoryError otherwise."""
    if not _NAME.fullmatch(name):
        raise RepositoryError(f"--name {name}: not a model name: {_RULE}")
    return name


def own_name(checkpoint: Path) -> str:
    """The name of a model after its checkpoint. Raises RepositoryError where it cannot have it."""
    if not has_own_name(checkpoint):
        raise RepositoryError(
            f"{checkpoint}: the file's name is no model name ({_RULE}): add --name "
            f"{suggested_name(checkpoint)}"
        )
    return _stem(checkpoint)


def has_own_name(checkpoint: Path) -> bool:
    """Whether a model may be called like its checkpoint."""
    return _NAME.fullmatch(_stem(checkpoint)) is not None


def suggested_name(checkpoint: Path) -> str:
    """What a checkpoint's name becomes as a model's: without accents, and with dashes in place of
    what cannot be in one."""
    plain = unicodedata.normalize("NFKD", _stem(checkpoint))
    without_accents = "".join(char for char in plain if not unicodedata.combining(char))
    return _OTHERS.sub("-", without_accents).strip("._-") or "model"


def _stem(checkpoint: Path) -> str:
    return checkpoint.stem if checkpoint.is_file() else checkpoint.resolve().name

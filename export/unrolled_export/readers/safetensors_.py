"""A state dict in a safetensors file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.json_hints import config_hints, metadata_hints
from unrolled_export.readers.pytorch_files.torch_file import is_torch_file
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import read_state_dict
from unrolled_export.readers.tensors import Tensors

_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.safetensors")


class SafetensorsFile:
    """A safetensors file of a PyTorch state dict, whatever it is called."""

    kind = ".safetensors"

    def accepts(self, path: Path) -> bool:
        if not path.is_file():
            return False
        is_called_so = path.suffix == ".safetensors"
        return _begins_like_safetensors(path) or (is_called_so and not is_torch_file(path))

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        if (match := _SHARD.fullmatch(path.name)) and int(match[1]) > 1:
            problem = f"one of {int(match[1])} files of a model: name their folder or .index.json"
            raise CheckpointError(path, problem)
        hints = config_hints(path) | metadata_hints(_metadata(path))
        reading = read_state_dict(read_tensors(path), settings, hints=hints)
        return Checkpoint(
            reading.network,
            (path,),
            f"safetensors state dict: {reading.text}",
            assumptions=reading.assumptions,
        )


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file.

    Raises CheckpointError where it is damaged, or holds numbers that NumPy does not know.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return Tensors(path, {name: _array(file, path, name) for name in file.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _metadata(path: Path) -> dict[str, str]:
    """Texts by name. Raises CheckpointError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: SafetensorError) -> CheckpointError:
    return CheckpointError(path, f"not a whole safetensors file ({' '.join(str(error).split())})")


def _begins_like_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a header that the file has room for, then the JSON."""
    head = _head(path)
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= path.stat().st_size - 8


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _array(file: Any, path: Path, name: str) -> NDArray[Any]:
    try:
        return np.asarray(file.get_tensor(name))
    except (TypeError, AttributeError) as error:
        # How safetensors reports a type that NumPy lacks.
        kind = file.get_slice(name).get_dtype()
        raise CheckpointError(path, f"{name} holds {kind}: save it as float32") from error

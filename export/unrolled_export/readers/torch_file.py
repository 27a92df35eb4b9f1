"""Files of `torch.save`, read without running any code that they hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError

_ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)")


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a plain state dict.

    Raises CheckpointError where the file is damaged or holds anything else.
    """
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(path, _refusal(f"this one holds a {type(loaded).__name__}"))
    return {str(name): _array(path, str(name), value) for name, value in loaded.items()}


def _load(path: Path) -> object:
    try:
        damaged = _damaged_record(path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _ASKED_FOR.search(str(error))
        found = f"this one asks for {asked[1]}" if asked else "this one holds something else"
        raise CheckpointError(path, _refusal(found)) from error
    # A damaged pickle can make the reader fail in any way.
    except Exception as error:
        raise CheckpointError(path, "damaged, cut off, or not a file of torch.save") from error
    if damaged:
        raise CheckpointError(path, f"damaged: {damaged} does not match its checksum")
    return loaded


def _damaged_record(path: Path) -> str | None:
    """The first record of an archive that does not match its checksum: torch reads on."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _array(path: Path, name: str, value: object) -> NDArray[Any]:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        kind = type(value).__name__
        raise CheckpointError(path, _refusal(f"entry {name!r} of this one is a {kind}"))
    tensor = value.detach()
    # NumPy has no bfloat16, nor narrower.
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _refusal(found: str) -> str:
    return f"only plain state dicts are read, saved by torch.save(model.state_dict(), ...): {found}"

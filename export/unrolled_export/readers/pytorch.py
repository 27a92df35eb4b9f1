"""A state dict in a file of `torch.save`."""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dict import read_state_dict
from unrolled_export.readers.tensors import Tensors

_SUFFIXES = (".pt", ".pth")
_MAGIC = (b"PK\x03\x04", b"\x80\x02")
"""A zip archive (torch 1.6 and later), a pickle (before)."""


class PytorchFile:
    """A file of `torch.save(model.state_dict(), ...)`."""

    kind = "a PyTorch state dict, .pt or .pth"

    def accepts(self, path: Path) -> bool:
        return path.is_file() and (path.suffix in _SUFFIXES or _head(path).startswith(_MAGIC))

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        try:
            from unrolled_export.readers.torch_file import load_arrays
        except ModuleNotFoundError as error:
            raise CheckpointError(
                path, f"reading PyTorch files needs {error.name}: pip install '.[train]'"
            ) from error
        network, reading = read_state_dict(Tensors(path, load_arrays(path)), settings)
        return Checkpoint(network, (path,), f"PyTorch state dict: {reading}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)

"""Readers of checkpoints: one module per family, all behind `Reader`."""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.folder import CheckpointFolder
from unrolled_export.readers.keras_files.checkpoint import KerasFile
from unrolled_export.readers.ml5 import Ml5Folder
from unrolled_export.readers.onnx_files.checkpoint import OnnxFile
from unrolled_export.readers.pytorch_files.checkpoint import PytorchFile
from unrolled_export.readers.pytorch_files.module_tree import may_hold_model
from unrolled_export.readers.pytorch_files.torch_file import read_tree
from unrolled_export.readers.reader import Checkpoint, Reader
from unrolled_export.readers.safetensors_ import SafetensorsFile
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.sharded import ShardedFile
from unrolled_export.readers.stand_ins import check_archive, check_content
from unrolled_export.readers.torch7_files.checkpoint import Torch7File
from unrolled_export.readers.trained import TrainedFolder

__all__ = ["READERS", "Checkpoint", "Reader", "Settings", "is_checkpoint", "read_checkpoint"]

_FILES: tuple[Reader, ...] = (
    SafetensorsFile(),
    ShardedFile(),
    KerasFile(),
    Torch7File(),
    OnnxFile(),
    PytorchFile(),
)
READERS: tuple[Reader, ...] = (*_FILES, TrainedFolder(), Ml5Folder(), CheckpointFolder(_FILES))
"""Asked in this order; the first that accepts a path reads it."""


def read_checkpoint(path: Path, settings: Settings) -> Checkpoint:
    """Read the checkpoint at `path`, a file or a folder.

    Raises CheckpointError where it is damaged, of no known kind or not a model that can be
    served, and SettingError where a setting was not used.
    """
    if not path.exists():
        raise CheckpointError(path, "no such file or folder")
    check_content(path)
    for reader in READERS:
        if reader.accepts(path):
            checkpoint = reader.read(path, settings)
            settings.check_all_used()
            return checkpoint
    check_archive(path)
    kinds = "; ".join(reader.kind for reader in READERS)
    raise CheckpointError(path, f"not a checkpoint that this release reads ({kinds})")


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a whole checkpoint rather than something else in a format of theirs."""
    reader = next((reader for reader in _FILES if reader.accepts(path)), None)
    if not isinstance(reader, PytorchFile):
        return reader is not None
    try:
        return may_hold_model(path, read_tree(path, allow_pickle=True))
    except CheckpointError:
        return False

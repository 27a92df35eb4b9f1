"""What lies in a checkpoint's place after a download that went wrong, or around it, recognised to
be said."""

from __future__ import annotations

import zipfile
from pathlib import Path

from unrolled_export.errors import CheckpointError

_ENOUGH = 512
_GIT_LFS = b"version https://git-lfs.github.com/"
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"7z\xbc\xaf'\x1c", b"Rar!\x1a\x07")
"""How files of gzip, bzip2, xz, zstd, 7-Zip and RAR begin: none of a checkpoint does."""
_UNPACK = "an archive: unpack it"
_KERAS = "save a model of Keras as .keras or .h5, other weights by name in a .safetensors file"
_DCP = "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt`"
_TAR = slice(257, 262)
_WEB_PAGE = (b"<!doctype html", b"<html")


def check_content(path: Path) -> None:
    """Raise CheckpointError where a file only stands in for another. A folder never does."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_ENOUGH)
    if head.startswith(_GIT_LFS):
        raise CheckpointError(
            path, "a pointer of Git LFS instead of the file itself, which `git lfs pull` fetches"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise CheckpointError(path, "a web page (HTML) instead of the file: download it again")
    if head.startswith(_PACKED):
        raise CheckpointError(path, _UNPACK)


def check_archive(path: Path) -> None:
    """Raise CheckpointError where a file that no reader accepts is an archive."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        is_tar = file.read(_ENOUGH)[_TAR] == b"ustar"
    if is_tar:
        raise CheckpointError(path, _UNPACK)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            raise CheckpointError(path, _of_zip(archive.namelist()))


def check_folder(path: Path) -> None:
    """Raise CheckpointError where a folder is a checkpoint of a kind that is not read."""
    names = {file.name for file in path.iterdir()}
    index = next((name for name in sorted(names) if name.endswith(".index")), None)
    if "saved_model.pb" in names:
        raise CheckpointError(path, f"a SavedModel of TensorFlow, which is not read: {_KERAS}")
    if index is not None and any(name.startswith(f"{index[:-6]}.data-") for name in names):
        problem = f"weights of TensorFlow ({index}), which are not read: {_KERAS}"
        raise CheckpointError(path, problem)
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        raise CheckpointError(path, f"a distributed checkpoint of PyTorch: {_DCP} makes one file")


def _of_zip(names: list[str]) -> str:
    if any(name.endswith("/archive_format") for name in names):
        return "a program of torch.export: save the model's state_dict instead"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays: save them by name in a .safetensors file instead"
    return _UNPACK

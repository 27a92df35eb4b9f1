"""Files of `torch.save` and other pickles, read without torch and without running any of them.

Formats: the zip archive of torch 1.6 and later and of TorchScript (`data.pkl`, and a record per
storage), the legacy one before (five pickles, then the storages), and a plain pickle.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.pickling.machine import load_pickle
from unrolled_export.readers.pickling.names import Names
from unrolled_export.readers.pytorch_files.storage import (
    Storage,
    StorageView,
    is_count,
    storage_type,
)

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle")
_HEAD = 512
"""Bytes that tell a kind of file: the first record of a torn archive, the header of a tar."""
_OLDEST = (b"sys_info", b"storages", b"tensors", b"pickle")
"""Members of the tar archives of torch 0.1."""
_DAMAGED = "damaged, cut off, or not a file of torch.save"
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    *(OSError, EOFError, ValueError, LookupError, struct.error),
)
"""All that damage in a zip archive makes the standard library raise."""


def is_torch_file(path: Path) -> bool:
    """Whether a file looks like one of torch.save or a pickle, by its first bytes or its name."""
    head = _head(path)
    if head.startswith(_ZIP):
        return _is_torch_archive(path, head)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return False
    return head.startswith(_PICKLES) or _is_tar(head) or path.suffix in _SUFFIXES


def read_tree(path: Path, allow_pickle: bool) -> object:
    """The object in a file, of plain values, tensors and inert objects.

    Raises CheckpointError where the file is damaged, hostile or none, PickleNeeded where it holds
    objects of classes and that is not allowed.
    """
    head = _head(path)
    if head.startswith(_ZIP):
        return _read_archive(path, allow_pickle)
    if _is_tar(head):
        raise CheckpointError(
            path, "a tar archive of torch 0.1, which is not read: save it again with a later one"
        )
    content = path.read_bytes()
    names = _Names(path, len(content), lambda inner: _read_inner(path, inner))
    tree = _read_stream(path, content, names)
    names.check_permitted(allow_pickle)
    return tree


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" and head.split(b"\0")[0].removeprefix(b"./") in _OLDEST


def _is_torch_archive(path: Path, head: bytes) -> bool:
    """By the record that holds the object; of a damaged archive by its first one, or its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _ZIP_ERRORS:
        return b"data.pkl" in head or path.suffix in _SUFFIXES
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in names)


def _read_archive(path: Path, allow_pickle: bool) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(path, archive)
            names = _ArchiveNames(path, archive)
            with io.BytesIO(archive.read(names.pickle)) as stream:
                tree = load_pickle(path, stream, names)
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        raise CheckpointError(path, _DAMAGED) from error
    names.check_permitted(allow_pickle)
    return tree


def _check_records(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError for records that are compressed, overlap or fail their checksum.

    But for TorchScript's code, which is compressed and not read.
    """
    records = [record for record in archive.infolist() if "/code/" not in record.filename]
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(path, "holds compressed records, which torch.save does not write")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(path, f"{_DAMAGED} (records larger than the file)")
    for record in records:
        _check_record(path, archive, record)


def _check_record(path: Path, archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    try:
        archive.read(record)
    except zipfile.BadZipFile as error:
        problem = f"damaged: {record.filename!r} does not match its checksum or header"
        raise CheckpointError(path, problem) from error


class _Names(Names):
    """The names in a legacy file or plain pickle, and the storages that it refers to."""

    def __init__(self, file: Path, size: int, load_bytes: Callable[[bytes], object] | None) -> None:
        super().__init__(file, size, load_bytes)
        self.storages: dict[str, Storage] = {}
        self.is_big_endian = False
        self.is_legacy = False

    def persistent(self, key: object) -> object:
        if not self.is_legacy:
            return super().persistent(key)
        if not isinstance(key, tuple):
            raise TypeError("not a reference to a storage")
        if _text(key[0]) == "module":
            # The class, the path and the text of its source.
            return key[1]
        kind, name, count, view = _storage_key(key)
        storage = self.storages.setdefault(name, self._storage(kind, count))
        if view is None:
            return storage
        _, start, length = view
        if not is_count(start) or not is_count(length) or start + length > storage.count:
            raise ValueError("a view beyond its storage")
        return StorageView(storage, start)

    def _storage(self, kind: str, count: int) -> Storage:
        return Storage(kind, count, is_big_endian=self.is_big_endian)


class _ArchiveNames(Names):
    """The names in a zip archive, and the storages in its records."""

    def __init__(self, file: Path, archive: zipfile.ZipFile) -> None:
        """Raises CheckpointError where it is none of torch.save."""
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise CheckpointError(file, "a zip archive, but not one of torch.save")
        (self.pickle,) = pickles
        super().__init__(file, archive.getinfo(self.pickle).file_size, None)
        self._archive = archive
        self._folder = self.pickle.removesuffix("data.pkl")
        self._is_big_endian = self._record("byteorder") == b"big"
        self._storages: dict[tuple[str, str], Storage] = {}

    def _record(self, name: str) -> bytes | None:
        path = self._folder + name
        return self._archive.read(path) if path in self._archive.namelist() else None

    def persistent(self, key: object) -> object:
        kind, name, count, _ = _storage_key(key)
        if (name, kind) not in self._storages:
            self._storages[name, kind] = self._read(kind, name, count)
        return self._storages[name, kind]

    def _read(self, kind: str, name: str, count: int) -> Storage:
        content = self._archive.read(f"{self._folder}data/{name}")
        storage = Storage(kind, count, content, self._is_big_endian)
        if len(content) != storage.size:
            raise ValueError("a record of another size than its storage")
        return storage


def _text(value: object) -> object:
    """Python 2 wrote some strings as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _storage_key(key: object) -> tuple[str, str, int, tuple[object, int, int] | None]:
    """Type of the numbers, name, count, and a view of a legacy file, as a pickle refers to them.

    Raises TypeError or ValueError where it refers to anything else.
    """
    if not isinstance(key, tuple) or _text(key[0]) != "storage":
        raise TypeError("not a reference to a storage")
    _, reference, name, _, count, *views = key
    view = views[0] if views else None
    name = _text(name)
    if not isinstance(name, str) or not is_count(count):
        raise TypeError("not a reference to a storage")
    if view is not None and not (isinstance(view, tuple) and len(view) == 3):
        raise TypeError("not a view of a storage")
    return storage_type(reference), name, count, view


def _read_stream(path: Path, content: bytes, names: _Names) -> object:
    """The object of a plain pickle or of a legacy file."""
    stream = io.BytesIO(content)
    first = load_pickle(path, stream, names)
    if first != _MAGIC_NUMBER:
        return first
    return _read_legacy(path, stream, names)


def _read_legacy(path: Path, stream: BinaryIO, names: _Names) -> object:
    """What follows the magic number. Raises CheckpointError where it is damaged."""
    if load_pickle(path, stream, names) != _PROTOCOL:
        raise CheckpointError(path, _DAMAGED)
    system = load_pickle(path, stream, names)
    names.is_big_endian = isinstance(system, dict) and system.get("little_endian") is False
    names.is_legacy = True
    tree = load_pickle(path, stream, names)
    keys = load_pickle(path, stream, names)
    if not isinstance(keys, (list, tuple)):
        raise CheckpointError(path, _DAMAGED)
    for key in map(_text, keys):
        _fill(path, stream, names.storages.get(key) if isinstance(key, str) else None)
    return tree


def _fill(path: Path, stream: BinaryIO, storage: Storage | None) -> None:
    """Read the storage that comes next: its count, then its numbers."""
    if storage is None:
        raise CheckpointError(path, f"{_DAMAGED} (a storage that nothing refers to)")
    order = ">" if storage.is_big_endian else "<"
    header = stream.read(8)
    if len(header) < 8 or struct.unpack(f"{order}q", header)[0] != storage.count:
        raise CheckpointError(path, f"{_DAMAGED} (a storage of another size)")
    data = stream.read(storage.size)
    if len(data) < storage.size:
        raise CheckpointError(path, f"{_DAMAGED} (a storage ends early)")
    storage.data = data


def _read_inner(path: Path, content: bytes) -> object:
    """A storage that a plain pickle holds as bytes of a legacy file."""
    return _read_stream(path, content, _Names(path, len(content), None))

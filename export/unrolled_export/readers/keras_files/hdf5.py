"""Keras weights from HDF5, read within limits.

Two layouts. Keras 1 and 2, and the legacy format of Keras 3: a group per layer whose attribute
`weight_names` lists its datasets, the layers in the attribute `layer_names` of the root or, where
the whole model was saved, of the group `model_weights`. The format of Keras 3 (`.weights.h5`,
and inside .keras files): groups by attribute path, each weight a dataset `vars/0`, `vars/1`, ...

Links, external and virtual datasets could lead to other files and are refused. What datasets
declare is compared with the file's size before any is read.
"""

from __future__ import annotations

import io
import math
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.keras_files.weights import (
    KerasWeights,
    WeightGroup,
    is_named_by_keras_1,
    owner_and_role,
)
from unrolled_export.readers.tensors import Tensors

_IGNORED = re.compile(
    r"_?optimizer(_weights)?|_?(compile_)?metrics|_?compile_loss|_?loss_tracker|seed_generator"
)
"""Groups of what training leaves behind."""
_MAX_DEPTH = 16
_MAX_OBJECTS = 20_000
_MAX_EXPANSION = 4
"""Trained weights hardly compress."""
_SLACK = 1 << 26
_MAX_TEXT = 1 << 26
_TEXT_TYPE = rb"\x19[\x01\x11\x21][\x00\x01]\x00\x10\x00\x00\x00"
"""A datatype: texts of variable length, 16 bytes each."""
_MAX_DATASPACE = 128
_MAX_MESSAGE = 1 << 16

Arrays = dict[str, NDArray[Any]]


def read_hdf5(path: Path, content: bytes | None = None) -> KerasWeights:
    """The weights in the file `path`, or in `content`, which came from it.

    Raises CheckpointError where it is damaged or not of Keras.
    """
    with hdf5_errors(path), _opened(path, content) as root:
        size = path.stat().st_size if content is None else len(content)
        _check_texts(path, content)
        arrays = _Datasets(path, size).read(root)
        holder = _subgroup(root, "model_weights") or root
        version = _text(path, holder, "keras_version") or _text(path, root, "keras_version")
        architecture = _text(path, root, "model_config")
        tensors = Tensors(path, arrays)
        if _has_list(holder, "layer_names"):
            groups = _listed_groups(path, holder, tensors)
            version = version or _version_by_names(groups)
            held = {group.layer for group in groups}
            names = _texts(path, holder, "layer_names")
            weightless = tuple(name for name in names if name not in held)
            last = names[-1] if names else None
            return KerasWeights(tensors, groups, False, weightless, last, version, architecture)
        groups = _positional_groups(tensors)
        weightless = tuple(_weightless(root, ""))
        return KerasWeights(tensors, groups, True, weightless, None, version, architecture)


@contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Turns what h5py raises on a damaged file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        OSError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        ArithmeticError,
        MemoryError,
        EOFError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(path, f"not a whole HDF5 file of Keras ({reason})") from error


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[Any]:
    with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
        yield file


def _check_texts(path: Path, content: bytes | None) -> None:
    """Refuse damaged texts, before libhdf5 allocates what they say or follows them for ever.

    A text of variable length is kept as its length, the address of a heap that starts with GCOL
    and its place in it, in 4, 8 and 4 bytes, soon after its datatype (HDF5 File Format
    Specification, sections III.E, IV.A.2.d and VIII.A).
    """
    if content is not None:
        return _check_lengths(path, content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _check_lengths(path, mapped)


def _check_lengths(path: Path, content: bytes | mmap.mmap) -> None:
    heaps = {match.start() for match in _limited(path, rb"GCOL\x01", content)}
    for heap in heaps:
        if not _is_whole(content, heap):
            raise CheckpointError(path, "not a whole HDF5 file of Keras (a damaged heap of texts)")
    for match in _limited(path, _TEXT_TYPE, content):
        for length in _lengths(content[match.end() : match.end() + _MAX_MESSAGE], heaps):
            if length > len(content):
                raise CheckpointError(path, f"a text of {length} bytes, more than the file has")


def _limited(path: Path, pattern: bytes, content: bytes | mmap.mmap) -> Iterator[re.Match[bytes]]:
    for count, match in enumerate(re.finditer(pattern, content, re.DOTALL)):
        if count == _MAX_OBJECTS:
            raise CheckpointError(path, "more texts than a model has")
        yield match


def _is_whole(content: bytes | mmap.mmap, heap: int) -> bool:
    """Whether the objects of a heap fill it; libhdf5 can look for the next of a wrong one for ever.

    After 16 bytes, of which the last 8 are the heap's size, each has a head of 16 with its index
    and size, and is padded to 8. Free space has index 0, counts its head and comes last.
    """
    at, end = heap + 16, heap + _number(content, heap + 8, 8)
    if end > len(content):
        return False
    while at + 16 <= end:
        index, size = _number(content, at, 2), _number(content, at + 8, 8)
        if index == 0:
            return at + size == end
        at += 16 + (size + 7) // 8 * 8
    return at <= end


def _lengths(message: bytes, heaps: set[int]) -> Iterator[int]:
    """Of the texts in the rest of an attribute, whose dataspace comes first."""
    starts = range(4, min(_MAX_DATASPACE, len(message)))
    start = next((at for at in starts if _number(message, at, 8) in heaps), len(message))
    for at in range(start, len(message), 16):
        if _number(message, at, 8) not in heaps:
            return
        yield _number(message, at - 4, 4)


def _number(message: bytes | mmap.mmap, at: int, size: int) -> int:
    return int.from_bytes(message[at : at + size], "little")


class _Datasets:
    """Reads every dataset of a file, after a look at all of them."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._bytes_left = _MAX_EXPANSION * size + _SLACK
        self._objects_left = _MAX_OBJECTS
        self._datasets: dict[str, Any] = {}

    def read(self, root: Any) -> Arrays:
        self._look(root, "", 0)
        return {name: self._array(name, dataset) for name, dataset in self._datasets.items()}

    def _look(self, group: Any, prefix: str, depth: int) -> None:
        for key in group:
            name = f"{prefix}{key}"
            if _IGNORED.fullmatch(key):
                continue
            self._objects_left -= 1
            if depth > _MAX_DEPTH or self._objects_left < 0:
                raise self._error(f"{name!r}: more groups than a model has")
            self._look_at(self._object(group, key, name), name, depth)

    def _object(self, group: Any, key: str, name: str) -> Any:
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise self._error(f"{name!r} is a link, which weights never are")
        return group[key]

    def _look_at(self, item: Any, name: str, depth: int) -> None:
        if isinstance(item, h5py.Group):
            self._look(item, f"{name}/", depth + 1)
        elif isinstance(item, h5py.Dataset):
            self._check(item, name)
            self._datasets[name] = item

    def _check(self, dataset: Any, name: str) -> None:
        if dataset.external or dataset.is_virtual:
            raise self._error(f"{name!r} keeps its numbers in another file")
        if dataset.shape is None or dataset.dtype.kind not in "fiubV" or dataset.dtype.names:
            raise self._error(f"{name!r} holds {dataset.dtype}, not numbers")
        self._bytes_left -= dataset.size * dataset.dtype.itemsize
        if self._bytes_left < 0:
            raise self._error(f"{name!r} {list(dataset.shape)} holds more than the file can")

    def _array(self, name: str, dataset: Any) -> NDArray[Any]:
        array: NDArray[Any] = np.asarray(dataset[()])
        if array.dtype == np.dtype("V2"):
            # How Keras writes bfloat16: the upper halves of float32, as bytes without a type.
            return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return array

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self._path, problem)


def _subgroup(group: Any, key: str) -> Any:
    """None where there is none."""
    return group[key] if key in group and isinstance(group[key], h5py.Group) else None


def _text(path: Path, group: Any, key: str) -> str | None:
    """An attribute that is text; None where there is none."""
    if key not in group.attrs:
        return None
    if _declared(group.attrs.get_id(key)) > _MAX_TEXT:
        raise CheckpointError(path, f"attribute {key} is longer than any Keras writes")
    value = group.attrs[key]
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise CheckpointError(path, f"attribute {key} is not text")
    return value


def _declared(attribute: Any) -> int:
    """Bytes that an attribute says it holds."""
    return int(math.prod(attribute.shape)) * int(attribute.dtype.itemsize)


def _has_list(group: Any, key: str) -> bool:
    return key in group.attrs or f"{key}0" in group.attrs


def _texts(path: Path, group: Any, key: str) -> list[str]:
    """An attribute that is a list of texts, in parts `key0`, `key1`, ... where it is long."""
    count = sum(re.fullmatch(rf"{key}[0-9]+", name) is not None for name in group.attrs)
    parts = [key] if key in group.attrs else [f"{key}{part}" for part in range(count)]
    texts: list[str] = []
    for part in parts:
        attribute = group.attrs.get_id(part)
        if len(attribute.shape) != 1 or _declared(attribute) > _MAX_TEXT:
            raise CheckpointError(path, f"attribute {part} is not a list of names")
        texts += [_name(path, part, value) for value in group.attrs[part]]
    return texts


def _name(path: Path, attribute: str, value: object) -> str:
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable():
        raise CheckpointError(path, f"attribute {attribute} holds {value!r}, which is not a name")
    return text


def _listed_groups(path: Path, holder: Any, tensors: Tensors) -> tuple[WeightGroup, ...]:
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for layer in _texts(path, holder, "layer_names"):
        group = _subgroup(holder, layer)
        if group is None:
            raise CheckpointError(path, f"no group {layer}, which layer_names lists")
        for weight in _texts(path, group, "weight_names"):
            owner, role = owner_and_role(weight)
            weights = groups.setdefault((layer, owner), {})
            # A role twice is one that no layer understood here has: it will be left over.
            name = f"{group.name}/{weight}".lstrip("/")
            tensors.shape(name)
            weights[weight if role in weights else role] = name
    return tuple(WeightGroup(layer, owner, weights) for (layer, owner), weights in groups.items())


def _version_by_names(groups: tuple[WeightGroup, ...]) -> str | None:
    """Early files have no version, but names that later ones do not have."""
    names = [name for group in groups for name in group.weights.values()]
    return "1" if names and all(is_named_by_keras_1(name) for name in names) else None


def _positional_groups(tensors: Tensors) -> tuple[WeightGroup, ...]:
    """Groups in the order of their paths, numbers in them counted as numbers."""
    groups: dict[str, dict[str, str]] = {}
    for name in tensors.left:
        match = re.fullmatch(r"(?:(.+)/)?vars/([0-9]{1,3})", name)
        if match is None:
            raise tensors.error(f"{tensors.shown(name)} is not a weight as Keras keeps them")
        groups.setdefault(match[1] or "", {})[match[2]] = name
    if not groups:
        raise tensors.error("an HDF5 file without weights of Keras")
    return tuple(
        WeightGroup(path.removesuffix("/cell").rpartition("/")[2], path, groups[path])
        for path in sorted(groups, key=_natural)
    )


def _weightless(group: Any, path: str) -> Iterator[str]:
    """Paths of layers that hold neither weights nor other layers, which have an empty `vars`."""
    inner = [
        key
        for key in group
        if key != "vars" and not _IGNORED.fullmatch(key) and _subgroup(group, key) is not None
    ]
    for key in inner:
        yield from _weightless(group[key], f"{path}/{key}" if path else key)
    own = _subgroup(group, "vars")
    if path and not inner and own is not None and not len(own):
        yield path.removeprefix("layers/")


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts lstm, lstm_2, lstm_10."""
    parts = re.split(r"([0-9]+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

"""Torch7's serialisation: files of `torch.save` in Lua, binary or ascii.

An object is an int that says its type, then its content:

0  nil
1  number     a double
2  string     an int, the length, and the bytes
3  table      an int, its index; where that is new: an int, the size, and pairs of objects
4  torch      an index; where that is new: "V 1" and the class name, each as a string is; then what
              the class writes, which for tensors and storages is binary, for all others an object
5  boolean    an int
6  function   a string and an object; 7 and 8 have an index before them

Ints have 4 bytes, longs and doubles 8, all little-endian; the ascii form writes numbers in
decimals, each array on a line. A tensor is an int, its dimensions, longs for sizes and strides,
a long for the place of its first element, counted from 1, and a storage; a storage is a long and
that many elements. Source: File.lua and generic/Tensor.c, generic/Storage.c of torch7.

Functions are bytecode: skipped, never run.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError

_ELEMENTS = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "<i2",
    "Int": "<i4",
    "Long": "<i8",
    "Half": "<f2",
    "Float": "<f4",
    "Double": "<f8",
}
_ARRAY_CLASS = re.compile(rf"torch\.(?:Cuda|Cl)?({'|'.join(_ELEMENTS)})?(Tensor|Storage)")
_MOST_DIMENSIONS = 32
_LONGEST_NAME = 200
_ASCII_START = re.compile(rb"[0-8]\n")


@dataclass(eq=False, repr=False)
class Table:
    """A Lua table, or an object with a table's fields. Compared by identity, as in Lua."""

    class_name: str = ""
    """Empty for a plain table."""
    fields: dict[object, object] = field(default_factory=dict)
    """Whole numbers are ints. Strings are text; bytes that are not UTF-8 are surrogate-escaped."""

    def get(self, key: object) -> object:
        """The field, None where there is none."""
        return self.fields.get(key)

    def listed(self) -> Iterator[object]:
        """Fields 1, 2, 3 and so on, up to the first that is missing: Lua's ipairs."""
        index = 1
        while index in self.fields:
            yield self.fields[index]
            index += 1


@dataclass(eq=False, repr=False)
class Function:
    """A Lua function, of which nothing is kept."""


@dataclass(eq=False, repr=False)
class Storage:
    """The elements that tensors share."""

    elements: NDArray[Any]


@dataclass(eq=False, repr=False)
class Tensor:
    """A strided view of a storage, not checked before `array`."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """Of the first element, from 0."""
    storage: Storage | None

    def array(self) -> NDArray[Any] | None:
        """The elements; None where they lie outside of the storage or are more than it holds."""
        if self.storage is None or not self.sizes:
            return np.zeros(0, np.float32)
        elements, count = self.storage.elements, math.prod(self.sizes)
        # The stride of a single element is never used, and may be any number.
        strides = [s if n > 1 else 0 for n, s in zip(self.sizes, self.strides, strict=True)]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.sizes, strides, strict=True))
        outside = self.offset < 0 or min(strides) < 0 or last >= len(elements)
        if outside or count > len(elements):
            return None
        steps = [stride * elements.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(
            elements[self.offset :], self.sizes, steps, writeable=False
        )


def load(path: Path) -> object:
    """The object in a file: a Table, Tensor, Storage, Function, str, bool, int, float or None.

    Raises CheckpointError where the file is not whole.
    """
    data = path.read_bytes()
    source = _Ascii(data) if _ASCII_START.match(data) else _Binary(data)
    try:
        return _Reading(source).run()
    except _Damage as damage:
        problem = f"damaged, cut off, or not a Torch7 file: {damage} at byte {source.position:,}"
        raise CheckpointError(path, problem) from damage


class _Damage(Exception):
    """Content that no Torch7 file has. Its text says what."""


class _Source(Protocol):
    """The numbers and bytes of a file, in order. Every method raises _Damage."""

    position: int

    def integers(self, kind: str, count: int) -> tuple[int, ...]:
        """`count` numbers of a NumPy kind, `<i4` or `<i8`."""

    def double(self) -> float: ...

    def characters(self, count: int) -> bytes: ...

    def array(self, kind: str, count: int) -> NDArray[Any]:
        """`count` numbers of any NumPy kind."""


class _Binary:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def integers(self, kind: str, count: int) -> tuple[int, ...]:
        code, size = ("q", 8) if kind == "<i8" else ("i", 4)
        return struct.unpack_from(f"<{count}{code}", self._data, self._skip(count * size))

    def double(self) -> float:
        value: float = struct.unpack("<d", self.characters(8))[0]
        return value

    def characters(self, count: int) -> bytes:
        start = self._skip(count)
        return self._data[start : self.position]

    def array(self, kind: str, count: int) -> NDArray[Any]:
        start = self._skip(count * np.dtype(kind).itemsize)
        return np.frombuffer(self._data, kind, count, start)

    def _skip(self, size: int) -> int:
        """Move on by `size` bytes; returns where they start."""
        start = self.position
        if not 0 <= size <= len(self._data) - start:
            raise _Damage(f"{size:,} bytes wanted where {len(self._data) - start:,} are left")
        self.position = start + size
        return start


class _Ascii:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def integers(self, kind: str, count: int) -> tuple[int, ...]:
        return tuple(self.array(kind, count).tolist())

    def double(self) -> float:
        return float(self.array("<f8", 1)[0])

    def characters(self, count: int) -> bytes:
        start = self.position
        if not 0 <= count <= len(self._data) - start:
            raise _Damage(f"{count:,} bytes wanted where {len(self._data) - start:,} are left")
        self.position = start + count
        if count and self._data[self.position : self.position + 1] == b"\n":
            self.position += 1
        return self._data[start : start + count]

    def array(self, kind: str, count: int) -> NDArray[Any]:
        if count == 0:
            return np.zeros(0, kind)
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise _Damage("a line that does not end")
        words = self._data[self.position : end].split()
        if len(words) != count:
            raise _Damage(f"{len(words):,} numbers in a line where {count:,} are wanted")
        try:
            numbers = [float(word) if "f" in kind else int(word) for word in words]
            array = np.array(numbers, kind)
        except (ValueError, OverflowError) as error:
            raise _Damage("not a number") from error
        self.position = end + 1
        return array


_Object = Generator["_Object", Any, object]
"""Reads an object. It yields the reading of each object inside it and is sent that object, so
that what is nested deeply does not nest calls."""


class _Reading:
    def __init__(self, source: _Source) -> None:
        self._source = source
        self._known: dict[int, object] = {}

    def run(self) -> object:
        """The first object of the file."""
        stack, value = [self._object()], None
        while stack:
            try:
                stack.append(stack[-1].send(value))
                value = None
            except StopIteration as done:
                stack.pop()
                value = done.value
        return value

    def _object(self) -> _Object:
        kind = self._integer()
        match kind:
            case 0:
                return None
            case 1:
                return _number(self._source.double())
            case 2:
                return self._string()
            case 5:
                return self._integer() != 0
            case 6:
                return (yield self._function())
            case 3 | 4 | 7 | 8:
                return (yield self._indexed(kind))
        raise _Damage(f"an object of type {kind}")

    def _indexed(self, kind: int) -> _Object:
        """An object that is written once and then referred to."""
        index = self._integer()
        if index in self._known:
            return self._known[index]
        if kind == 3:
            return (yield self._table(index))
        if kind == 4:
            return (yield self._torch(index))
        self._known[index] = Function()
        return (yield self._function())

    def _table(self, index: int) -> _Object:
        table = Table()
        self._known[index] = table
        size = self._integer()
        if size < 0:
            raise _Damage("a table of negative size")
        for _ in range(size):
            key = yield self._object()
            if key is None:
                raise _Damage("a table with a nil key")
            table.fields[key] = yield self._object()
        return table

    def _torch(self, index: int) -> _Object:
        version = self._string()
        # Files from before versions have the class name in its place.
        name = self._string() if version.startswith("V ") else version
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise _Damage("a class of no proper name")
        found = _ARRAY_CLASS.fullmatch(name)
        if found is None:
            return (yield self._instance(index, name))
        kind = _ELEMENTS[found[1] or "Float"]
        if found[2] == "Tensor":
            return (yield self._tensor(index))
        return self._storage(index, kind)

    def _instance(self, index: int, name: str) -> _Object:
        """An object of a class that writes its fields as a table."""
        instance = Table(name)
        self._known[index] = instance
        state = yield self._object()
        if not isinstance(state, Table):
            raise _Damage(f"an object of class {name!r} without fields")
        instance.fields = state.fields
        return instance

    def _tensor(self, index: int) -> _Object:
        dimensions = self._integer()
        if not 0 <= dimensions <= _MOST_DIMENSIONS:
            raise _Damage(f"a tensor of {dimensions} dimensions")
        sizes = self._source.integers("<i8", dimensions)
        strides = self._source.integers("<i8", dimensions)
        offset = self._source.integers("<i8", 1)[0] - 1
        if min(sizes, default=0) < 0:
            raise _Damage("a tensor of negative size")
        tensor = Tensor(sizes, strides, offset, None)
        self._known[index] = tensor
        storage = yield self._object()
        if storage is not None and not isinstance(storage, Storage):
            raise _Damage("a tensor without a storage")
        tensor.storage = storage
        return tensor

    def _storage(self, index: int, kind: str) -> Storage:
        count = self._source.integers("<i8", 1)[0]
        if count < 0:
            raise _Damage("a storage of negative size")
        if kind in ("u1", "i1"):
            elements = np.frombuffer(self._source.characters(count), kind)
        else:
            elements = self._source.array(kind, count)
        storage = Storage(elements)
        self._known[index] = storage
        return storage

    def _function(self) -> _Object:
        """Bytecode and the values it closes over."""
        self._source.characters(self._integer())
        yield self._object()
        return Function()

    def _integer(self) -> int:
        return self._source.integers("<i4", 1)[0]

    def _string(self) -> str:
        return self._source.characters(self._integer()).decode("utf-8", "surrogateescape")


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value

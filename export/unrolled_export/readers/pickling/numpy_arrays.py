"""NumPy's arrays and scalars as its pickles describe them, rebuilt from checked parts."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_CODE = re.compile(r"[?biufcSU][0-9]{0,9}")
"""Numbers and text of a fixed size; neither objects nor records."""


@dataclass(eq=False)
class NumpyType:
    """A dtype, whose byte order its state tells."""

    code: str
    order: Literal["<", ">", "=", "|"] = "="

    def set_state(self, state: object) -> None:
        """From NumPy's own: (version, byte order, and what only records need)."""
        if not isinstance(state, tuple) or state[1] not in ("<", ">", "=", "|"):
            raise TypeError("not the state of a dtype")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Raises TypeError where it is of anything but numbers and text."""
        if not _CODE.fullmatch(self.code):
            raise TypeError(f"dtype {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order)


@dataclass(eq=False)
class NumpyArray:
    """An array, empty until its state is set."""

    array: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.float32))
    items: list[object] | None = None
    """Of an array of objects of one dimension, whose `array` stays empty."""

    def load(self) -> NDArray[Any]:
        """The numbers in this machine's byte order."""
        return self.array.astype(self.array.dtype.newbyteorder("="), copy=False)

    def set_state(self, state: object) -> None:
        """From NumPy's own: (version, shape, dtype, whether in Fortran's order, data)."""
        if not isinstance(state, tuple):
            raise TypeError("not the state of an array")
        shape, kind, is_fortran, data = state[-4:]
        if isinstance(data, list):
            self.items = data if len(shape) == 1 else None
        else:
            self.array = array_of_parts(data, kind, shape, "F" if is_fortran else "C")


def array_of_parts(data: Any, kind: object, shape: object, order: Any) -> NDArray[Any]:
    """Raises TypeError or ValueError where the parts do not make an array."""
    if not isinstance(kind, NumpyType) or not isinstance(shape, tuple) or len(shape) > 8:
        raise TypeError("not the parts of an array")
    content = data.encode("latin1") if isinstance(data, str) else data
    if math.prod(shape) * kind.dtype().itemsize != len(content):
        raise ValueError("an array whose data does not fill its shape")
    array = np.frombuffer(content, kind.dtype())
    _check_text(content, array.dtype)
    return array.reshape(shape, order=order)


def _check_text(content: bytes, kind: np.dtype[Any]) -> None:
    """Raise ValueError for what is no character: NumPy itself does not look."""
    if kind.kind == "U":
        codes = np.frombuffer(content, np.dtype("u4").newbyteorder(kind.byteorder))
        if (codes > sys.maxunicode).any():
            raise ValueError("not Unicode")


def _dtype(code: str, *_: object) -> NumpyType:
    return NumpyType(code)


def _reconstruct(*_: object) -> NumpyArray:
    return NumpyArray()


def _scalar(kind: NumpyType, content: Any = b"") -> object:
    value = array_of_parts(content, kind, (), "C")
    return value.item()


def _from_buffer(content: Any, kind: object, shape: object, order: object = "C") -> NumpyArray:
    return NumpyArray(array_of_parts(content, kind, shape, "F" if order == "F" else "C"))


NUMPY_BUILDERS: Mapping[str, Callable[..., object]] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
"""By the name in current releases; before 2.0 `_core` was `core`."""

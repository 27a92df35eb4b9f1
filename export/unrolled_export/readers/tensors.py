"""The tensors of one checkpoint file, each to be taken for something or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Floats


class Tensors:
    """Arrays by name; remembers which have been taken."""

    def __init__(self, file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises CheckpointError where a name would garble the messages that quote it."""
        self.file = file
        for name in arrays:
            if not name.isprintable():
                raise self.error(f"a tensor is called {name!r}, which is not printable")
        self._arrays = dict(arrays)
        self._taken: set[str] = set()

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the tensors not taken so far, in the file's order."""
        return tuple(name for name in self._arrays if name not in self._taken)

    @property
    def numbers_taken(self) -> int:
        """How many numbers the taken tensors hold."""
        return sum(self._arrays[name].size for name in self._taken)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises CheckpointError where there is no such tensor."""
        if name not in self._arrays:
            raise self.error(f"no tensor {name}")
        return self._arrays[name].shape

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Raises CheckpointError where there is no such tensor, or not of two dimensions."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise self.error(f"{self.shown(name)} is not a matrix")
        return shape[0], shape[1]

    def shown(self, name: str) -> str:
        """The tensor's name and shape, for messages."""
        return f"{name} {list(self.shape(name))}"

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers in the same shape."""
        return np.array_equal(self._arrays[one], self._arrays[other])

    def take(self, name: str) -> Floats:
        """The tensor as float32.

        Raises CheckpointError where it is missing, not of floats, empty or not finite.
        """
        if 0 in self.shape(name):
            raise self.error(f"{self.shown(name)} is empty")
        array = self._arrays[name]
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise self.error(f"{name} holds {array.dtype}, where weights are float32 or the like")
        # A float64 beyond float32's range becomes infinite, and is refused as such below.
        with np.errstate(over="ignore"):
            floats = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(floats).all():
            raise self.error(f"{name} holds NaN or infinite weights")
        self._taken.add(name)
        return floats

    def check_all_taken(self, reading: str) -> None:
        """Raise CheckpointError for a tensor that `reading`, in words, does not use."""
        if self.left:
            unused = ", ".join(self.shown(name) for name in self.left[:3])
            more = f" and {len(self.left) - 3} more" if len(self.left) > 3 else ""
            raise self.error(f"tensors left over: {unused}{more} (read as {reading})")

    def error(self, problem: str) -> CheckpointError:
        """An error that names this file."""
        return CheckpointError(self.file, problem)

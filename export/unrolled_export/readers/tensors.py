"""The tensors of one checkpoint file, each to be taken for something or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.network import Floats

_LONGEST_NAME = 500
_COUNTER = re.compile(
    r"num_batches_tracked|n_averaged|(\w+_)?(steps?|iters?|iterations?|epochs?|updates?|batches"
    r"|calls|count(er|s)?|version)",
    re.IGNORECASE,
)


class Tensors:
    """Arrays by name; remembers which have been taken."""

    def __init__(self, file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises CheckpointError where a name would garble the messages that quote it."""
        self.file = file
        for name in arrays:
            if len(name) > _LONGEST_NAME:
                raise self.error(f"a tensor is called {name[:40]!r} and so on, which is too long")
            if not name.isprintable():
                raise self.error(f"a tensor is called {name!r}, which is not printable")
        self._arrays = dict(arrays)
        self._taken: set[str] = set()
        self._aside: dict[str, str | None] = {}
        self._untrained: set[str] = set()

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the tensors not taken so far, in the file's order."""
        used = self._taken | self._aside.keys()
        return tuple(name for name in self._arrays if name not in used)

    @property
    def numbers_taken(self) -> int:
        """How many trained numbers the taken tensors hold."""
        return sum(self._arrays[name].size for name in self._taken - self._untrained)

    @property
    def aside(self) -> tuple[str, ...]:
        """What was set aside and why, a phrase for each reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self._aside.items():
            if reason is not None:
                reasons.setdefault(reason, []).append(name)
        return tuple(f"without {_some(names)} ({reason})" for reason, names in reasons.items())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, as the file holds them."""
        return dict(self._arrays)

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

    def check_shape(self, name: str, shape: tuple[int, ...], beside: str) -> None:
        """Raise CheckpointError unless the tensor is there and of `shape`, to fit `beside`."""
        if self.shape(name) != shape:
            raise self.error(f"{self.shown(name)} should be {list(shape)}, to fit {beside}")

    def shown(self, name: str) -> str:
        """The tensor's name and shape, for messages."""
        return f"{name} {list(self.shape(name))}"

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers in the same shape."""
        first, second = self._arrays[one], self._arrays[other]
        if first.shape != second.shape or not np.array_equal(first[:1], second[:1]):
            return False
        return np.array_equal(first, second)

    def is_counter(self, name: str) -> bool:
        """Whether the tensor is a single integer that is called a count, which no output needs."""
        is_integer = self.shape(name) == () and self._arrays[name].dtype.kind in "iu"
        return is_integer and _COUNTER.fullmatch(name.rpartition(".")[2]) is not None

    def set_aside(self, names: Iterable[str], reason: str | None) -> None:
        """Use those of `names` that are left no further: they are neither left over nor counted.

        `reason` is what they are; None where the reading tells it anyway.
        """
        for name in names:
            if name in self._arrays and name not in self._taken:
                self._aside.setdefault(name, reason)

    def take(self, name: str, *, trained: bool = True) -> Floats:
        """The tensor as float32; `trained` unless it holds statistics.

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
        if not trained:
            self._untrained.add(name)
        return floats

    def without(self, names: Collection[str]) -> Tensors:
        """The others, none of which has been taken."""
        return Tensors(
            self.file, {name: it for name, it in self._arrays.items() if name not in names}
        )

    def check_all_taken(self, reading: str) -> None:
        """Raise CheckpointError for a tensor that `reading`, in words, does not use."""
        if self.left:
            raise self.left_over(self.left, reading)

    def left_over(self, names: Sequence[str], reading: str, remedy: str = "") -> CheckpointError:
        """An error for tensors that `reading`, in words, does not use."""
        unused = ", ".join(self.shown(name) for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        advice = remedy and f": {remedy}"
        return self.error(f"tensors left over: {unused}{more} (read as {reading}){advice}")

    def unsettled(
        self, problem: str, key: str, choices: Sequence[str], more: int = 0
    ) -> SettingNeeded:
        """An error that names this file and the `--set` that would settle what is open.

        `more` choices are left out.
        """
        return SettingNeeded(self.file, problem, key, choices, more)

    def error(self, problem: str) -> CheckpointError:
        """An error that names this file."""
        return CheckpointError(self.file, problem)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

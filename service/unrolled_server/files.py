"""Files that flags name, read whole: one that cannot be used is named together with its flag."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

MAX_BYTES = 16 << 20

T = TypeVar("T")


class FileError(Exception):
    """A file cannot be used; the message names its flag, the file and what is wrong."""


@dataclass(frozen=True)
class NamedFile:
    """A file and the flag that names it."""

    flag: str
    path: Path
    is_secret: bool = False
    """Whether it is refused where users beyond owner and group may read or change it."""

    def error(self, problem: str) -> FileError:
        """The error that says what is wrong with this file."""
        return FileError(f"{self.flag} {self.path}: {problem}")

    def read(self) -> bytes:
        """What is in it. Raises FileError."""
        try:
            # A pipe could be read once, and would keep whoever reads it again waiting.
            if self.path.exists() and not self.path.is_file():
                raise self.error("is not a regular file")
            with self.path.open("rb") as file:
                self._check_mode(os.fstat(file.fileno()).st_mode)
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise self.error(error.strerror or str(error)) from None
        if len(content) > MAX_BYTES:
            raise self.error(f"has more than {MAX_BYTES} bytes")
        return content

    def _check_mode(self, mode: int) -> None:
        if self.is_secret and mode & (stat.S_IROTH | stat.S_IWOTH):
            raise self.error(f"other users may read or change it: chmod 600 {self.path}")


@dataclass(frozen=True)
class Made(Generic[T]):
    """A value, and the contents of the files that it was made of."""

    contents: tuple[bytes, ...]
    value: T


class Recipe(Generic[T]):
    """Files, and how a value is made of what is in them."""

    def __init__(
        self, name: str, files: Sequence[NamedFile], make: Callable[[Sequence[bytes]], T]
    ) -> None:
        """`make` takes the contents in the order of `files`, and raises FileError."""
        self.name = name
        self._files = files
        self._make = make

    def read(self, last: Made[T] | None = None) -> Made[T]:
        """The value as the files have it now: `last` itself where that is unchanged.

        Raises FileError.
        """
        contents = tuple(file.read() for file in self._files)
        if last is not None and contents == last.contents:
            return last
        return Made(contents, self._make(contents))

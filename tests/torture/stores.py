"""The stores that servers are killed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from unrolled.v1.completion_pb2 import DURABILITY_FSYNC, Durability
from unrolled_server.failpoints import PLACES


@dataclass(frozen=True)
class TorturedStore:
    """A store that one server after the other opens."""

    path: Path
    flags: tuple[str, ...]
    """Of the server."""
    durability: Durability
    """What every outcome has to say."""
    places: tuple[str, ...]
    """Failpoints of a turn's commit in it."""


@contextmanager
def _sqlite(folder: Path) -> Iterator[TorturedStore]:
    path = folder / "sessions.db"
    yield TorturedStore(path, ("--store", f"sqlite:{path}"), DURABILITY_FSYNC, PLACES)


STORES: dict[str, Callable[[Path], AbstractContextManager[TorturedStore]]] = {"sqlite": _sqlite}
"""By what --store calls them; each opens a new store in a folder."""

"""The stores that servers are killed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.redis import running_redis
from unrolled.v1.completion_pb2 import DURABILITY_FSYNC, DURABILITY_PROCESS_CRASH, Durability
from unrolled_server.failpoints import PLACES


@dataclass(frozen=True)
class TorturedStore:
    """A store that one server after the other opens."""

    path: Path | None
    """The file; None where it is none."""
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


@contextmanager
def _redis(folder: Path) -> Iterator[TorturedStore]:
    """Redis itself goes on."""
    with running_redis(folder) as redis:
        yield TorturedStore(None, ("--store", redis.url), DURABILITY_PROCESS_CRASH, PLACES)


STORES: dict[str, Callable[[Path], AbstractContextManager[TorturedStore]]] = {
    "sqlite": _sqlite,
    "redis": _redis,
}
"""By name; each opens a new store in a folder."""

"""The stores that servers are killed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.redis import running_redis
from unrolled.v1.completion_pb2 import DURABILITY_FSYNC, DURABILITY_PROCESS_CRASH, Durability
from unrolled_server.failpoints import PLACES

from torture.outage import Absence


@dataclass(frozen=True)
class TorturedStore:
    """A store that one server after the other opens."""

    path: Path | None
    """The file; None where it is none."""
    flags: tuple[str, ...]
    """Of servers."""
    durability: Durability
    """What every outcome has to say."""
    places: tuple[str, ...]
    """Failpoints of a turn's commit in it."""
    absences: tuple[Absence, ...] = ()
    """How it can be gone while a server goes on."""
    impatient: tuple[str, ...] = ()
    """More flags of the server that goes on, which is to notice soon."""


@contextmanager
def _sqlite(folder: Path) -> Iterator[TorturedStore]:
    path = folder / "sessions.db"
    yield TorturedStore(path, ("--store", f"sqlite:{path}"), DURABILITY_FSYNC, PLACES)


@contextmanager
def _redis(folder: Path) -> Iterator[TorturedStore]:
    """Redis goes on when servers are killed; what it has answered outlives its own end."""
    with running_redis(folder, "--appendonly", "yes", "--appendfsync", "always") as redis:
        yield TorturedStore(
            None,
            # A store that is there may be slow, on a busy machine.
            ("--store", redis.url, "--store-timeout", "60s"),
            DURABILITY_PROCESS_CRASH,
            PLACES,
            (
                Absence("Redis stood still", redis.stop, redis.go_on),
                Absence("Redis was killed", redis.end, redis.start),
            ),
            ("--store-timeout", "5s"),
        )


STORES: dict[str, Callable[[Path], AbstractContextManager[TorturedStore]]] = {
    "sqlite": _sqlite,
    "redis": _redis,
}
"""By name; each opens a new store in a folder."""

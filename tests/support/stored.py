"""Servers that keep their sessions in a file, and what is done to that file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.calls import Stubs, connected
from support.metrics import Metrics
from support.server import RunningServer, running_server


@dataclass(frozen=True)
class Serving:
    """A server, and the services it offers."""

    server: RunningServer
    stubs: Stubs
    metrics: Metrics

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        self.server.process.kill()
        self.server.process.wait()


@contextmanager
def serving(
    models: Path, store: Path | str, *flags: str, failpoints: str = ""
) -> Iterator[Serving]:
    """A server whose store is this file, or at this URL; killed at the end."""
    environment = {"UNROLLED_FAILPOINTS": failpoints}
    flags = ("--store", store if isinstance(store, str) else f"sqlite:{store}", *flags)
    with (
        running_server(models, *flags, environment=environment) as server,
        connected(server.address) as stubs,
    ):
        yield Serving(server, stubs, Metrics(server.metrics_url))


def flip_a_bit(store: Path, session: str, column: str) -> None:
    """Damage one part of a session's record in the file, which no server has open."""
    id_ = bytes.fromhex(session.removeprefix("sessions/"))
    with sqlite3.connect(store) as db:
        query = f"SELECT {column} FROM sessions WHERE id = ?"  # noqa: S608 - a name of ours
        (part,) = db.execute(query, (id_,)).fetchone()
        damaged = bytearray(part)
        damaged[len(part) // 2] ^= 16
        change = f"UPDATE sessions SET {column} = ? WHERE id = ?"  # noqa: S608 - a name of ours
        db.execute(change, (bytes(damaged), id_))
    db.close()

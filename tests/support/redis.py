"""A real Redis server process, and what tests do to it."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from support.calls import SECONDS
from support.metrics import eventually
from support.programs import FETCHED, program
from support.tls import Files


class RunningRedis:
    """A Redis server in a folder that has its socket and its data. It answers once this is made."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder.resolve()
        self._socket = self.folder / "redis.sock"
        self._command = [
            *(program("redis-server", FETCHED), "--port", "0", "--unixsocket", str(self._socket)),
            *(
                "--dir",
                str(self.folder),
                "--logfile",
                str(self.folder / "log"),
                "--save",
                "",
                *settings,
            ),
        ]
        self.process = self._started()

    @property
    def url(self) -> str:
        """What --store takes."""
        return f"unix://{self._socket}?db=0"

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """A connection of its own."""
        with Redis(unix_socket_path=str(self._socket), socket_timeout=SECONDS) as client:
            yield client

    def listen(self) -> int:
        """A TCP port that it listens on as well."""
        port = _free_port()
        with self.client() as client:
            client.config_set("port", port)
        return port

    def listen_with_tls(
        self, shown: Files, clients: Path, *, port: int = 0, wants_clients: bool = False
    ) -> int:
        """A port on which it speaks TLS, the one given or a free one; skips where it cannot.

        It shows a certificate, and may want one that an authority in the file `clients` has made.
        """
        port = port or _free_port()
        settings = {
            "tls-cert-file": shown.cert,
            "tls-key-file": shown.key,
            "tls-ca-cert-file": clients,
            "tls-auth-clients": "yes" if wants_clients else "no",
            "tls-port": port,
        }
        with self.client() as client:
            if not client.config_get("tls-port"):
                pytest.skip("redis-server is built without TLS")
            first, *rest = (str(each) for setting in settings.items() for each in setting)
            client.config_set(first, *rest)
        return port

    def stop(self) -> None:
        """Let it stand still: connections stay open, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on with what has come meanwhile."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, stopped or not; what it has not written is lost."""
        self.process.kill()
        self.process.wait()

    def save(self) -> bytes:
        """What it has now."""
        with self.client() as client:
            client.save()
        return (self.folder / "dump.rdb").read_bytes()

    def start(self, saved: bytes | None = None) -> None:
        """Start it again, from what is in its folder, or was saved; returns once it answers."""
        if saved is not None:
            (self.folder / "dump.rdb").write_bytes(saved)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        process = subprocess.Popen(self._command)
        eventually(lambda: process.poll() is not None or self._answers(), "Redis answers")
        assert process.poll() is None, (self.folder / "log").read_text()
        return process

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (RedisConnectionError, FileNotFoundError):
            return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def running_redis(folder: Path, *settings: str) -> Iterator[RunningRedis]:
    """A Redis server with these settings, as on its command line; ended on exit."""
    redis = RunningRedis(folder, *settings)
    try:
        yield redis
    finally:
        redis.end()

"""A real server process on free ports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60.0


@dataclass
class RunningServer:
    """A server, which has said that it is ready once anybody else sees this."""

    process: subprocess.Popen[str]
    address: str
    """HOST:PORT of gRPC."""
    metrics_url: str
    log: list[str] = field(default_factory=list)
    """What it has logged until it was ready, or ever since if it is followed."""
    _reader: threading.Thread | None = None

    def follow_log(self) -> None:
        """Read on from now on: of a log that nobody reads, a server drops what does not fit."""
        if self.process.stderr is None:
            raise RuntimeError("the server's log is not a pipe")
        lines = self.process.stderr
        self._reader = threading.Thread(target=lambda: self.log.extend(lines))
        self._reader.start()

    def kill(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        if self._reader is not None:
            self._reader.join()
        self.process.communicate()

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM; returns the exit status and what was logged since it was ready."""
        self.process.terminate()
        _, log = self.process.communicate(timeout=START_SECONDS)
        return self.process.returncode, log


@contextmanager
def running_server(
    models: Path, *flags: str, environment: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """Start `unrolled-server` on the models of a repository; killed on exit if it still runs."""
    command = [sys.executable, "-m", "unrolled_server", "--models", str(models)]
    command += ["--port", "0", "--metrics-port", "0", *flags]
    with started(command, environment=environment) as running:
        yield running


@contextmanager
def started(
    command: list[str], *, environment: dict[str, str] | None = None, stdin: int | None = None
) -> Iterator[RunningServer]:
    """Start a server by this command; killed on exit if it still runs."""
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    running = RunningServer(process, "", "")
    try:
        _wait_until_ready(running)
        yield running
    finally:
        running.kill()


def _wait_until_ready(server: RunningServer) -> None:
    process, log = server.process, server.log
    if process.stderr is None:
        raise RuntimeError("the server's log is not a pipe")
    # A server that hangs is ended, which ends its log: reading needs no limit of its own.
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        for line in process.stderr:
            log.append(line)
            if _value(line, "event") == "serving":
                server.address, server.metrics_url = _value(line, "grpc"), _value(line, "metrics")
                return
    finally:
        watchdog.cancel()
    raise RuntimeError(f"the server ended with {process.wait()}: {''.join(log)}")


def wait_for_event(server: RunningServer, event: str) -> None:
    """Read the server's log up to the line of this event."""
    if server.process.stderr is None:
        raise RuntimeError("the server's log is not a pipe")
    for line in server.process.stderr:
        if _value(line, "event") == event:
            return
    raise AssertionError(f"the server ended without {event}")


def _value(line: str, key: str) -> str:
    """A fact of a line of the log, whichever its format; empty where it lacks it."""
    if line.startswith("{"):
        return str(json.loads(line).get(key, ""))
    match = re.search(rf"\b{key}=(\S+)", line)
    return match[1] if match else ""

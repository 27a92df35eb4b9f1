"""The naive server as a process, so that only it loads PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.server import RunningServer

THREADS = 10
"""Of its pool: as many streams advance at a time."""


@contextmanager
def running_naive(checkpoint: Path, *flags: str) -> Iterator[RunningServer]:
    """`bench.naive` on a checkpoint; killed at the end. It has no metrics."""
    command = [sys.executable, "-m", "bench.naive", str(checkpoint), "--threads", str(THREADS)]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip() if process.stdout else ""
        if not port:
            raise RuntimeError(f"the naive server ended with {process.wait()}")
        yield RunningServer(process, f"127.0.0.1:{port}", metrics_url="")
    finally:
        process.kill()
        process.communicate()

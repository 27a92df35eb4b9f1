"""The disk that a store lies on."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

FLUSHES = 50
BLOCK = bytes(4096)


@dataclass(frozen=True)
class Disk:
    """Where files of a folder lie."""

    text: str
    """File system and device."""
    flush_ms: float
    """Median time of a block that is appended to a file and flushed."""


def disk(folder: Path) -> Disk:
    """The disk of a folder, with nothing else to do."""
    return Disk(_text(folder), round(1e3 * statistics.median(_flushes(folder)), 3))


def _text(folder: Path) -> str:
    """Of the mount (proc(5), mounts) whose path is the longest that the folder is in."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    around = {folder.resolve(), *folder.resolve().parents}
    device, _, kind = max(
        (mount for mount in mounts if Path(mount[1]) in around), key=lambda mount: len(mount[1])
    )
    return f"{kind} on {device}"


def _flushes(folder: Path) -> list[float]:
    seconds = []
    with TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(FLUSHES):
            started = time.perf_counter()
            file.write(BLOCK)
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return seconds

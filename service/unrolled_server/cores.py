"""How many cores this process may use, of those that the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def usable_cores(
    membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Cores it may run on at once, at least 1: by its affinity and its control groups' quotas.

    A quota is of processor time, and rounded up to whole cores; one that cannot be read bounds
    nothing. Linux, Documentation: admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst
    (cpu.cfs_quota_us).
    """
    lines = []
    with suppress(OSError):
        lines = membership.read_text(errors="surrogateescape").splitlines()
    quotas = (quota for line in lines for quota in _quotas(line, groups))
    return max(1, math.ceil(min([float(_allowed()), *quotas])))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(line: str, groups: Path) -> Iterator[float]:
    """Cores that a line of a process's membership leaves it, in its group and those above."""
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    hierarchy = groups / "cpu" if controllers else groups
    group = PurePosixPath("/", path)
    # In a container the path may be that outside, of which only the root is there.
    for each in (group, *group.parents):
        folder = hierarchy / each.relative_to("/")
        with suppress(OSError, ValueError, ZeroDivisionError):
            yield _quota_1(folder) if controllers else _quota_2(folder)


def _quota_2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return math.inf if quota == "max" else int(quota) / int(period)


def _quota_1(folder: Path) -> float:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return math.inf if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())

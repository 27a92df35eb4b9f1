"""How many cores a process may use; groups and memberships as the kernel shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from unrolled_server import cores
from unrolled_server.cores import usable_cores

MANY = 64


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the groups of a process that may run on 64 cores."""
    monkeypatch.setattr(cores, "_allowed", lambda: MANY)
    return tmp_path


def usable(machine: Path, membership: str) -> int:
    (machine / "membership").write_text(membership)
    return usable_cores(machine / "membership", machine)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", MANY), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)],
)
def test_the_quota_of_a_container(machine: Path, quota: str, expected: int) -> None:
    (machine / "cpu.max").write_text(f"{quota}\n")
    assert usable(machine, "0::/\n") == expected


def test_the_smallest_quota_on_the_way_up_counts(machine: Path) -> None:
    (machine / "pods" / "pod").mkdir(parents=True)
    (machine / "pods" / "pod" / "cpu.max").write_text("max 100000\n")
    (machine / "pods" / "cpu.max").write_text("300000 100000\n")
    assert usable(machine, "0::/pods/pod\n") == 3


def test_a_path_that_is_not_seen_from_inside(machine: Path) -> None:
    (machine / "cpu.max").write_text("400000 100000\n")
    assert usable(machine, "0::/docker/0f1e\n") == 4


@pytest.mark.parametrize(("quota", "expected"), [("-1", MANY), ("250000", 3)])
def test_groups_of_the_first_version(machine: Path, quota: str, expected: int) -> None:
    group = machine / "cpu" / "docker"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (machine / "cpu.max").write_text("100000 100000\n")
    assert usable(machine, "5:cpu,cpuacct:/docker\n4:memory:/else\n3:cpuset:/\n") == expected


@pytest.mark.parametrize("quota", ["", "max", "1 2 3", "much 100000", "100000 0"])
@pytest.mark.parametrize("membership", ["", "0::/", "nothing", "0:", "0::", ":::", "0::/../.."])
def test_what_cannot_be_read_bounds_nothing(machine: Path, membership: str, quota: str) -> None:
    (machine / "cpu.max").write_text(quota)
    assert usable(machine, membership) == MANY


def test_a_name_may_have_any_bytes(machine: Path) -> None:
    (machine / "cpu.max").write_text("200000 100000\n")
    (machine / "membership").write_bytes(b"0::/\xff\n")
    assert usable_cores(machine / "membership", machine) == 2


def test_without_groups_the_affinity_counts(machine: Path) -> None:
    assert usable_cores(machine / "none", machine) == MANY


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system knows no affinity")
def test_a_process_that_is_bound_to_one_core() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from unrolled_server.cores import usable_cores; print(usable_cores())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout == "1\n"

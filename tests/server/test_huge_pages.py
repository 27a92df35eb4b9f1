"""Memory that is moved into huge pages, as the kernel reports it (proc(5), smaps)."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from unrolled_server import huge_pages

MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def in_huge_pages(memory: mmap.mmap) -> int:
    """Bytes of a mapping that lie in huge pages."""
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    is_here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            is_here = start <= place < end
        elif is_here and first == "AnonHugePages:":
            return int(rest[0]) << 10
    raise AssertionError("the mapping is not listed")


def filled(size: int, every: int) -> mmap.mmap:
    """A mapping in which every so many bytes one is written, and no huge page is taken at once."""
    memory = mmap.mmap(-1, size, flags=PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, size, every):
        memory[place] = place % 251
    return memory


def has_huge_pages() -> bool:
    """Whether this kernel gathers pages on demand: Linux 6.1 or later, and not told otherwise."""
    memory = filled(8 * MIB, mmap.PAGESIZE)
    huge_pages.gather()
    return in_huge_pages(memory) > 0


gathers = pytest.mark.skipif(not has_huge_pages(), reason="the kernel does not gather huge pages")


@gathers
def test_what_is_in_use_comes_to_lie_in_huge_pages_unchanged() -> None:
    memory = filled(16 * MIB, mmap.PAGESIZE)
    before = bytes(memory)
    assert in_huge_pages(memory) == 0
    assert huge_pages.gather() >= 12 * MIB
    # The ends need not fall on the bounds of huge pages.
    assert in_huge_pages(memory) >= 12 * MIB
    assert bytes(memory) == before


@gathers
def test_what_is_not_in_use_does_not_grow() -> None:
    memory = filled(16 * MIB, 2 * mmap.PAGESIZE)
    huge_pages.gather()
    assert in_huge_pages(memory) == 0


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_a_kernel_without_them_is_left_alone(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    memory = filled(8 * MIB, mmap.PAGESIZE)
    assert huge_pages.gather() == 0
    assert in_huge_pages(memory) == 0

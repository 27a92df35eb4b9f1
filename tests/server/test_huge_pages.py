"""Memory that is moved into huge pages, as the kernel reports it (proc(5), smaps)."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from unrolled_server import huge_pages

MIB = 1 << 20
MADV_COLLAPSE = 25
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def in_huge_pages(memory: mmap.mmap) -> int:
    """Bytes of a mapping that lie in huge pages; the kernel may list it in parts."""
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found, is_here = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            is_here = start < place + len(memory) and place < end
        elif is_here and first == "AnonHugePages:":
            found += int(rest[0]) << 10
    return found


def filled(size: int, every: int) -> mmap.mmap:
    """A mapping in which every so many bytes one is written, and no huge page is taken at once."""
    memory = mmap.mmap(-1, size, flags=PRIVATE)
    if huge_pages.SETTINGS.exists():
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, size, every):
        memory[place] = place % 251
    return memory


def has_huge_pages() -> bool:
    """Whether this kernel gathers pages on demand: Linux 6.1 or later, and not told otherwise."""
    if not huge_pages.SETTINGS.exists():
        return False
    memory = filled(8 * MIB, mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    middle = ctypes.c_void_p(-(-start // (4 * MIB)) * 4 * MIB)
    libc = ctypes.CDLL(None)
    libc.madvise(middle, ctypes.c_size_t(2 * MIB), mmap.MADV_HUGEPAGE)
    return bool(libc.madvise(middle, ctypes.c_size_t(2 * MIB), MADV_COLLAPSE) == 0)


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
    before = bytes(memory)
    assert huge_pages.gather() == 0
    assert bytes(memory) == before


def test_maps_that_cannot_be_read_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "none")
    assert huge_pages.gather() == 0
    (tmp_path / "maps").write_bytes(
        b"7f0000000000-7f0000001000 r--p 00000000 08:01 9 /caf\xe9.so\n"
    )
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "maps")
    assert huge_pages.gather() == 0

"""Huge pages for memory that is there to stay, such as a model's weights.

A step reads all weights once. In pages of 4 KiB the processor looks up thousands of addresses for
that, and fetches nothing ahead across the end of a page.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
"""Of the kernel (Documentation/admin-guide/mm/transhuge.rst)."""
MAPS = Path("/proc/self/maps")
_ANONYMOUS = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*(?:|\[heap\]|\[anon:.*)$"
)
_COLLAPSE = 25
"""MADV_COLLAPSE (madvise(2), since Linux 6.1), which the standard library has no name for."""
_NONE_LEFT = (errno.ENOMEM, errno.EBUSY)


def gather() -> int:
    """Have memory that is in use to its last page lie in huge pages; how many bytes do now.

    What was written does not grow by that. Where the kernel has no huge pages, is told not to use
    any, or has none left, the rest stays as it is.
    """
    try:
        return _gather(_huge_page())
    except OSError:
        return 0


def _gather(size: int) -> int:
    """As `gather`, into pages of so many bytes. Raises OSError where nobody says what is mapped."""
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    moved = 0
    for start, end in _mappings():
        first, last = -(-start // size) * size, end // size * size
        for place in _in_use(libc, first, last, size):
            where, length = ctypes.c_void_p(place), ctypes.c_size_t(size)
            # Advised before: an older kernel gathers the page itself, in a while.
            libc.madvise(where, length, mmap.MADV_HUGEPAGE)
            if libc.madvise(where, length, _COLLAPSE) == 0:
                moved += size
            elif ctypes.get_errno() in _NONE_LEFT:
                return moved
    return moved


def _huge_page() -> int:
    """Bytes of one; 0 where there are to be none. Raises OSError where the kernel has none."""
    if sys.platform != "linux" or "[never]" in (SETTINGS / "enabled").read_text():
        return 0
    return int((SETTINGS / "hpage_pmd_size").read_text())


def _mappings() -> Iterator[tuple[int, int]]:
    """First address and end of all private memory that no file is behind."""
    for line in MAPS.read_bytes().splitlines():
        if found := _ANONYMOUS.match(line):
            yield int(found[1], 16), int(found[2], 16)


def _in_use(libc: ctypes.CDLL, first: int, last: int, size: int) -> list[int]:
    """Where pages of `size` between `first` and `last` begin that are in use throughout."""
    if last <= first:
        return []
    page = mmap.PAGESIZE
    resident = np.zeros((last - first) // page, np.uint8)
    vector = resident.ctypes.data_as(ctypes.c_void_p)
    if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(last - first), vector):
        # Unmapped meanwhile.
        return []
    whole = (resident & 1).reshape(-1, size // page).all(1)
    places: list[int] = (first + size * np.flatnonzero(whole)).tolist()
    return places

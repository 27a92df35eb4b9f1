"""What lies in a checkpoint's place after a download that went wrong, recognised to be said."""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError

_GIT_LFS = b"version https://git-lfs.github.com/"
_WEB_PAGE = (b"<!doctype html", b"<html")


def check_content(path: Path, head: bytes) -> None:
    """Raise CheckpointError where a file that begins with `head` only stands in for another."""
    if head.startswith(_GIT_LFS):
        raise CheckpointError(
            path, "a pointer of Git LFS instead of the file itself, which `git lfs pull` fetches"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise CheckpointError(path, "a web page (HTML) instead of the file: download it again")

"""What lies in a checkpoint's place after a download that went wrong, recognised to be said."""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError

_ENOUGH = 256
_GIT_LFS = b"version https://git-lfs.github.com/"
_WEB_PAGE = (b"<!doctype html", b"<html")


def check_content(path: Path) -> None:
    """Raise CheckpointError where a file only stands in for another. A folder never does."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_ENOUGH)
    if head.startswith(_GIT_LFS):
        raise CheckpointError(
            path, "a pointer of Git LFS instead of the file itself, which `git lfs pull` fetches"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise CheckpointError(path, "a web page (HTML) instead of the file: download it again")

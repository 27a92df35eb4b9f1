"""Programs of others that some tests need, and that not every machine has."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, remedy: str) -> str:
    """The path of a program; skips the test, saying what would bring it, where it is missing."""
    path = found(name)
    if path is None:
        pytest.skip(f"{name} is not installed: {remedy}")
    return path


def found(name: str) -> str | None:
    """The path of a program; None where it is missing."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=places)


FETCHED = ".ci/get-programs could not fetch it"


def promtool() -> str:
    """Prometheus' tool, to check what is written for it."""
    return program("promtool", FETCHED)

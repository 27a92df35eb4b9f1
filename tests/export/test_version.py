"""unrolled-export --version."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from unrolled_export.__main__ import main

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{PROJECT['version']}\n"

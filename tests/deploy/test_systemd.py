"""The systemd unit, as far as systemd itself checks it without running it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import program
from unrolled_server.config import Config, parse_config
from unrolled_server.server import LAST_WRITES_SECONDS

UNIT = Path(__file__).parents[2] / "deploy" / "unrolled.service"
EXPOSURE = 20
"""Tenths: systemd calls 2 and less OK, and a service without any measure 9.6."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze", "this machine has no systemd"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the server of this environment."""
    server = Path(sys.executable).with_name("unrolled-server")
    assert server.exists()
    text, places = re.subn(r"(?m)(?<=^ExecStart=)\S+", str(server), UNIT.read_text())
    assert places == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    return copy


def test_systemd_takes_it(unit: Path) -> None:
    done = analyze("verify", unit)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_systemd_notices_what_it_does_not_know(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytsem="))
    assert "ProtectSytsem" in analyze("verify", unit).stderr


def test_it_is_exposed_to_little(unit: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-200:]


def test_turns_have_their_time_to_finish() -> None:
    (seconds,) = re.findall(r"(?m)^TimeoutStopSec=(\d+)s$", UNIT.read_text())
    patience = parse_config(["--models", "."], {}).drain_timeout
    assert int(seconds) >= patience + LAST_WRITES_SECONDS + 5


def test_its_settings_are_settings_of_the_server() -> None:
    known = {"UNROLLED_" + name.upper() for name in Config.__dataclass_fields__}
    named = set(re.findall(r"\bUNROLLED_[A-Z_]+", UNIT.read_text()))
    assert "UNROLLED_MODELS" in named
    assert named <= known

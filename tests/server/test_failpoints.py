"""Failpoints: what the environment may ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.calls import SECONDS
from unrolled_server.failpoints import FailpointError, FailpointSyntaxError, arm, parse, reach

VARIABLE = "UNROLLED_FAILPOINTS"


@pytest.mark.parametrize(
    "text",
    [
        "store.before_write",
        "store.before_write=",
        "store.before_write=sleep",
        "store.before_write=error:x",
        "store.before_write=error:-1",
        "no.place=kill",
        "=kill",
        # A committed turn cannot fail any more.
        "store.after_commit=error",
        "commit.before_memory=error",
        "commit.before_reply=error",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(FailpointSyntaxError, match=VARIABLE):
        parse(f"commit.before_write=kill,{text}")


def test_a_place_fails_every_time_or_once() -> None:
    arm({VARIABLE: "store.before_write=error,store.before_commit=error:2"})
    try:
        outcomes = {}
        for place in ("store.before_write", "store.before_commit", "commit.before_reply"):
            outcomes[place] = [fails(place) for _ in range(3)]
        assert outcomes == {
            "store.before_write": [True, True, True],
            "store.before_commit": [False, True, False],
            "commit.before_reply": [False, False, False],
        }
    finally:
        arm({})
    assert not fails("store.before_write")


def fails(place: str) -> bool:
    try:
        reach(place)
    except FailpointError:
        return True
    return False


def test_a_server_does_not_start_with_what_it_does_not_understand(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "unrolled_server", "--models", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, VARIABLE: "commit=kill"},
    )
    assert ended.returncode == 1
    assert f"{VARIABLE}: 'commit=kill'" in ended.stderr

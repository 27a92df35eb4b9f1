"""Turns that are slow or fail are in the log under the name of their call."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import SECONDS, connected
from support.models import Repository
from support.server import running_server
from support.stored import serving
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled_server.turn_times import MAX_LINES, SlowTurns, TurnTimes

LONG_PROMPT = CompleteRequest(model="lstm", prompt="a" * 20_000, max_tokens=3)


def named(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", name),)


def read_text(line: str) -> dict[str, Any]:
    return dict(re.findall(r"(\S+?)=(\S+)", line))


@pytest.mark.parametrize(("log_format", "read"), [("text", read_text), ("json", json.loads)])
def test_a_slow_turn_says_where_its_time_went(
    repository: Repository, log_format: str, read: Any
) -> None:
    flags = ("--slow-turn", "20ms", "--log-format", log_format)
    with running_server(repository.path, *flags) as server, connected(server.address) as stubs:
        asked = time.perf_counter()
        stubs.completions.Complete(LONG_PROMPT, SECONDS, named("call-1"))
        taken = time.perf_counter() - asked
        _, log = server.terminate()
    (slow,) = [line for line in map(read, log.splitlines()) if line["event"] == "slow_turn"]
    assert (slow["request_id"], slow["model"], slow["level"]) == ("call-1", "lstm/1", "warning")
    assert (int(slow["told"]), int(slow["drawn"])) == (20_000, 3)
    wait, feed, draw, commit = (float(slow[name]) for name in ("wait", "feed", "draw", "commit"))
    assert wait + feed > 0.02
    # They are parts of the call, one after the other.
    assert wait + feed + draw + commit < taken


def test_nothing_is_said_of_turns_where_none_are_slow(repository: Repository) -> None:
    for limit in ("0", "1h"):
        flags = ("--slow-turn", limit)
        with running_server(repository.path, *flags) as server, connected(server.address) as stubs:
            stubs.completions.Complete(LONG_PROMPT, timeout=SECONDS)
            _, log = server.terminate()
        assert "slow_turn" not in log


def test_a_turn_that_fails_by_the_server_s_fault_is_named(
    repository: Repository, tmp_path: Path
) -> None:
    failing = "commit.before_write=error"
    file, never = tmp_path / "sessions.db", ("--slow-turn", "0")
    with serving(repository.path, file, *never, failpoints=failing) as here:
        request = CompleteRequest(session=here.stubs.create("lstm"), prompt="a")
        with pytest.raises(grpc.RpcError):
            here.stubs.completions.Complete(request, SECONDS, named("call-2"))
        with pytest.raises(grpc.RpcError):
            here.stubs.completions.Complete(CompleteRequest(model="x"), SECONDS, named("call-3"))
        _, log = here.server.terminate()
    (line,) = [read_text(line) for line in log.splitlines() if "request_id=" in line]
    assert (line["request_id"], line["event"], line["level"]) == ("call-2", "call", "warning")
    assert (line["code"], line["reason"]) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    assert line["method"] == "unrolled.v1.CompletionService/Complete"


def test_lines_are_few_however_many_turns_are_slow(caplog: pytest.LogCaptureFixture) -> None:
    watch = SlowTurns(1.0)
    with caplog.at_level(logging.WARNING, "unrolled_server"):
        for number in range(250):
            # A hundred turns end in a second, and each fifth is fast.
            over = number / 100
            first = over - (1.5 if number % 5 == 0 else 0.5)
            watch(TurnTimes("lstm/1", 1, 1, 1, over - 2, over - 2, first, over, over))
    said = [vars(record)["fields"] for record in caplog.records]
    assert len(said) == 3 * MAX_LINES
    slow_in_a_second = 80
    unlogged = {
        number: fields["unlogged"] for number, fields in enumerate(said) if "unlogged" in fields
    }
    assert unlogged == {
        MAX_LINES: slow_in_a_second - MAX_LINES,
        2 * MAX_LINES: slow_in_a_second - MAX_LINES,
    }

"""Log lines: one per event, and every value can be read back."""

from __future__ import annotations

import contextvars
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.calls import SECONDS, connected
from support.models import Repository
from support.server import running_server
from unrolled.v1.model_pb2 import ListModelsRequest
from unrolled_server.logs import (
    JsonFormatter,
    LineHandler,
    LogfmtFormatter,
    log_event,
    request_id,
    set_up_logs,
)

PAIR = re.compile(r'(?P<key>[a-z_]+)=(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<bare>[^ "=]+))(?: |$)')


def read(line: str) -> dict[str, str]:
    """The pairs of a logfmt line; fails on anything else between them."""
    pairs: dict[str, str] = {}
    place = 0
    while place < len(line):
        match = PAIR.match(line, place)
        assert match is not None, line[place:]
        assert match["key"] not in pairs
        pairs[match["key"]] = json.loads(match["quoted"]) if match["quoted"] else match["bare"]
        place = match.end()
    return pairs


def line_of(event: str, **fields: Any) -> str:
    """The line of an event at the information level, without its time."""
    facts = {"msg": event, "levelno": logging.INFO, "levelname": "INFO", "fields": fields}
    line = LogfmtFormatter().format(logging.makeLogRecord(facts))
    time, _, rest = line.partition(" ")
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    return rest


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("lstm/1", "lstm/1"),
        ("C:\\models", "C:\\models"),
        ("größe", "größe"),
        ("語", "語"),
        ("😀", "😀"),
        ("", '""'),
        ("two words", '"two words"'),
        ("größe 語", '"größe 語"'),
        ('say "so"', '"say \\"so\\""'),
        ('"', '"\\""'),
        ("a=b", '"a=b"'),
        ("a\nb", '"a\\nb"'),
        ("a\r\nb", '"a\\r\\nb"'),
        ("a\tb", '"a\\tb"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("\0", '"\\u0000"'),
        ("back \\ slash", '"back \\\\ slash"'),
        ("no-break\u00a0space", '"no-break\u00a0space"'),
        (3, "3"),
        (-1, "-1"),
        (True, "True"),
        (None, "None"),
        (0.25, "0.25"),
        (1 / 3, "0.333333"),
        (1e-9, "1e-09"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_how_a_value_is_written(value: object, written: str) -> None:
    assert line_of("told", fact=value) == f"level=info event=told fact={written}"


@given(event=st.text(), first=st.text(), second=st.text())
@example(event="a b", first='x" level=error event="y', second="\n" + "time=0 level=error event=z")
def test_every_text_stays_on_its_line_and_can_be_read_back(
    event: str, first: str, second: str
) -> None:
    line = line_of(event, first=first, second=second)
    assert "\n" not in line
    assert "\r" not in line
    assert read(line) == {"level": "info", "event": event, "first": first, "second": second}


def test_fields_keep_their_order() -> None:
    assert line_of("told", zebra=1, ape=2) == "level=info event=told zebra=1 ape=2"


def test_the_time_is_utc_to_the_millisecond() -> None:
    facts = {"msg": "told", "levelname": "WARNING", "created": 1_700_000_000.25, "msecs": 250.0}
    line = LogfmtFormatter().format(logging.makeLogRecord(facts))
    assert line == "time=2023-11-14T22:13:20.250Z level=warning event=told"


@pytest.mark.parametrize("fields", [{}, {"fields": {"model": "lstm/1"}}])
def test_an_exception_stays_on_its_line(fields: dict[str, Any]) -> None:
    message = 'first "line"\nsecond line\r\n\tthird = line é'
    try:
        raise RuntimeError(message)
    except RuntimeError:
        info = sys.exc_info()
    facts = {"msg": "failed", "levelname": "ERROR", "exc_info": info, **fields}
    line = LogfmtFormatter().format(logging.makeLogRecord(facts))
    assert line.splitlines() == [line]
    pairs = read(line)
    assert pairs["event"] == "failed"
    assert pairs.get("model") == fields.get("fields", {}).get("model")
    assert pairs["error"].startswith("Traceback (most recent call last):\n")
    assert f"RuntimeError: {message}" in pairs["error"]
    assert "test_logs.py" in pairs["error"]


@pytest.fixture
def loggers() -> Iterator[None]:
    """The logging of this process, put back afterwards."""
    root, own = logging.getLogger(), logging.getLogger("unrolled_server")
    handlers, level, own_level = root.handlers, root.level, own.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)
    own.setLevel(own_level)


LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("loggers")
def test_the_level_is_the_server_s_and_libraries_only_warn(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs(level, "text")
    for name, number in LEVELS.items():
        log_event(logging.getLogger("unrolled_server.test"), number, "own", fact=f"a {name}")
        logging.getLogger("library").log(number, "it %s", name)
    out, err = capsys.readouterr()
    assert out == ""
    pairs = [read(line) for line in err.splitlines()]
    for pair in pairs:
        del pair["time"]
    own = [
        {"level": name, "event": "own", "fact": f"a {name}"}
        for name, number in LEVELS.items()
        if number >= LEVELS[level]
    ]
    foreign = [{"level": name, "event": f"it {name}"} for name in ("warning", "error")]
    assert [pair for pair in pairs if "fact" in pair] == own
    assert [pair for pair in pairs if "fact" not in pair] == foreign


def logged_failure(log_format: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an exception, through logs set up as the server does."""
    set_up_logs("info", log_format)
    logger = logging.getLogger("unrolled_server.test")
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logger.exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("loggers")
def test_an_exception_through_the_set_up_logs(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = read(logged_failure("text", capsys))
    assert (pairs["level"], pairs["event"]) == ("error", "it failed")
    assert pairs["error"].endswith("ValueError: one\ntwo")


@pytest.mark.usefixtures("loggers")
def test_an_exception_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(logged_failure("json", capsys))
    assert list(facts) == ["time", "level", "event", "error"]
    assert facts["error"].endswith("ValueError: one\ntwo")


def json_of(event: str, **fields: Any) -> dict[str, Any]:
    """What the one line of JSON says of an event, without its time."""
    facts = {"msg": event, "levelno": logging.INFO, "levelname": "INFO", "fields": fields}
    line = JsonFormatter().format(logging.makeLogRecord(facts))
    assert line.isascii()
    assert line.splitlines() == [line]
    # A reader that knows no NaN, as JSON does not.
    said: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
    return said


@pytest.mark.parametrize(
    ("value", "read_back"),
    [
        (3, 3),
        (0.25, 0.25),
        (1 / 3, 1 / 3),
        (True, True),
        (None, None),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (Path("models/lstm"), "models/lstm"),
        (["a", 1], "['a', 1]"),
    ],
)
def test_values_in_json(value: object, read_back: object) -> None:
    assert json_of("told", fact=value) == {"level": "info", "event": "told", "fact": read_back}


@given(event=st.text(), fact=st.text())
@example(event='{"level": "error"}', fact="\n\u2028\x1b[31m")
def test_every_text_can_be_read_back_from_json(event: str, fact: str) -> None:
    assert json_of(event, fact=fact) == {"level": "info", "event": event, "fact": fact}


def test_a_line_within_a_call_names_it() -> None:
    context = contextvars.copy_context()
    context.run(request_id.set, "call-1")
    assert context.run(line_of, "told", a=1) == "level=info event=told request_id=call-1 a=1"
    assert context.run(json_of, "told", a=1)["request_id"] == "call-1"
    assert line_of("told", a=1) == "level=info event=told a=1"


PIPE_BYTES = 16384
"""As few as leave room for two lines of any length that is logged often."""


@contextmanager
def small_pipe() -> Iterator[tuple[logging.Logger, int]]:
    """A logger that writes to a pipe, and the end that nobody reads yet."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    logger = logging.Logger("unrolled_server.test")
    with open(writer, "w", encoding="utf-8") as stream:
        handler = LineHandler(stream)
        handler.setFormatter(LogfmtFormatter())
        logger.addHandler(handler)
        yield logger, reader
    os.close(reader)


def all_lines(reader: int) -> list[dict[str, str]]:
    """What is in the pipe; a line that was cut is left out."""
    text = b""
    try:
        while more := os.read(reader, 1 << 16):
            text += more
    except BlockingIOError:
        pass
    lines = text.decode().splitlines(keepends=True)
    return [read(line[:-1]) for line in lines if line.startswith("time=") and line[-1] == "\n"]


@given(
    sizes=st.lists(st.lists(st.integers(0, 20_000), max_size=20), max_size=5),
    letter=st.sampled_from("aé語"),
)
@example(sizes=[[9000, 9000, 0], [0], [20_000, 0, 0], [0]], letter="a")
def test_a_log_that_nobody_reads_loses_lines_and_says_how_many(
    sizes: list[list[int]], letter: str
) -> None:
    logged, seen, lost = 0, [], 0
    with small_pipe() as (logger, reader):
        for some in [*sizes, [0], [0]]:
            for size in some:
                log_event(logger, logging.INFO, "told", number=logged, text=letter * size)
                logged += 1
            lines = all_lines(reader)
            lost += sum(int(line["lines"]) for line in lines if line["event"] != "told")
            seen += [int(line["number"]) for line in lines if line["event"] == "told"]
            assert all(
                line["text"] == letter * len(line["text"]) for line in lines if "text" in line
            )
    assert seen == sorted(seen)
    assert len(seen) + lost == logged
    assert seen[-1:] == [logged - 1]


def test_a_closed_standard_error_takes_nothing() -> None:
    program = (
        "import logging, unrolled_server.logs as logs; logs.set_up_logs('info', 'text');"
        "logging.getLogger('unrolled_server').error('unheard')"
    )
    command = [sys.executable, "-c", program]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    assert subprocess.run(shell, check=False, timeout=SECONDS).returncode == 0


def test_a_server_goes_on_while_nobody_reads_its_log(repository: Repository) -> None:
    with (
        running_server(repository.path, "--log-level", "debug") as server,
        connected(server.address) as stubs,
    ):
        # Far more lines than a pipe holds.
        for _ in range(1000):
            stubs.models.ListModels(ListModelsRequest(), timeout=SECONDS)
        server.follow_log()
        stubs.models.ListModels(ListModelsRequest(), timeout=SECONDS)
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0

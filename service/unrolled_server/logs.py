"""Structured logs: one line per event on standard error, as key=value pairs (logfmt) or JSON."""

from __future__ import annotations

import json
import logging
import math
import select
import sys
import time
from contextvars import Context, ContextVar
from typing import Any, TextIO

PIECE = 400
"""Characters written at once: in any encoding few enough for a pipe that takes some bytes."""
PATIENCE = 20
"""Milliseconds that a line that finds no room waits for some, where none was lost of late."""
LATE = 1.0
"""Seconds after which a lost line is not of late any more."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Names the call that the running task serves; None outside of calls. Every line has it."""


class EventFormatter(logging.Formatter):
    """What a line says, in order; how it is written is the subclasses' matter."""

    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """Time, level and event, the call's id, whatever the event carries, the traceback."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        call = request_id.get()
        if call is not None:
            facts["request_id"] = call
        facts.update(getattr(record, "fields", {}))
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return facts


class LogfmtFormatter(EventFormatter):
    """time=... level=... event=... and so on."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in self.facts(record).items())


class JsonFormatter(EventFormatter):
    """An object a line, ASCII only. Numbers stay numbers, but for those that JSON lacks."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {key: _jsonable(value) for key, value in self.facts(record).items()}
        return json.dumps(facts, allow_nan=False)


_FORMATTERS = {"text": LogfmtFormatter, "json": JsonFormatter}


def _jsonable(value: Any) -> str | int | float | bool | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def _quoted(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text and all(c.isprintable() and c not in ' "=' for c in text):
        return text
    # JSON escapes the ASCII controls; readers take others for line ends, and terminals for orders.
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(
        c if c.isprintable() or c == "\N{NO-BREAK SPACE}" else _escaped(c) for c in quoted
    )


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def log_event(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    """Write one line: an event's name and its facts."""
    logger.log(level, event, extra={"fields": fields})


class LineHandler(logging.Handler):
    """Writes lines to a stream; to a pipe or a socket without waiting, but for a moment.

    A pipe that nobody reads fills up; a server that went on writing to it would stand still. So
    lines that find no room are dropped, and the next that does is preceded by their number. Lines
    are written where they are logged: one that was logged before a crash is there.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """None, what Python has for a file that is closed, takes nothing."""
        super().__init__()
        self._stream = stream
        self._dropped = 0
        self._is_cut = False
        """The last line has been begun and not ended."""
        self._lost_at = -math.inf
        self._poll = _poll(stream)

    def emit(self, record: logging.LogRecord) -> None:
        if self._stream is None:
            return
        try:
            line = self.format(record)
            if self._dropped and self._write(self._stream, self._loss()):
                self._dropped = 0
            if self._dropped or not self._write(self._stream, line):
                self._dropped += 1
                self._lost_at = time.monotonic()
        except Exception:
            self.handleError(record)

    def _loss(self) -> str:
        """The line that says how many were dropped."""
        facts = {"msg": "log_lines_dropped", "levelname": "WARNING"}
        record = logging.makeLogRecord({**facts, "fields": {"lines": self._dropped}})
        # The call that happens to be served has nothing to do with them.
        return Context().run(self.format, record)

    def _write(self, stream: TextIO, line: str) -> bool:
        """Write a line; whether there was room for all of it."""
        text = "\n" * self._is_cut + line + "\n"
        for start in range(0, len(text), PIECE):
            if not self._has_room():
                self._is_cut |= start > 0
                return False
            stream.write(text[start : start + PIECE])
            stream.flush()
        self._is_cut = False
        return True

    def _has_room(self) -> bool:
        """Whether a piece can be written without waiting; true as well where writing would fail."""
        if self._poll is None or self._poll.poll(0):
            return True
        # A reader that is merely busy gets a moment; one that did not come has had it.
        return time.monotonic() > self._lost_at + LATE and bool(self._poll.poll(PATIENCE))


def _poll(stream: TextIO | None) -> select.poll | None:
    """Asks whether the stream takes more; None where it is no file of the system's."""
    if stream is None:
        return None
    try:
        descriptor = stream.fileno()
    except OSError:
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


def set_up_logs(level: str, log_format: str) -> None:
    """Send everything at `level` and above to standard error, as "text" (logfmt) or "json"."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Libraries speak up from warnings on; their debugging is not about this server.
    logging.getLogger("unrolled_server").setLevel(level.upper())

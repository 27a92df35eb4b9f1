"""Structured logs: one line per event on standard error, as key=value pairs (logfmt) or JSON."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from contextvars import ContextVar
from typing import Any

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


def set_up_logs(level: str, log_format: str) -> None:
    """Send everything at `level` and above to standard error, as "text" (logfmt) or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Libraries speak up from warnings on; their debugging is not about this server.
    logging.getLogger("unrolled_server").setLevel(level.upper())

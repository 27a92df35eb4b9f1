"""Structured logs: one line per event, key=value pairs (logfmt) on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


class LogfmtFormatter(logging.Formatter):
    """time=... level=... event=... and then whatever the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        pairs: dict[str, Any] = {
            "time": f"{self._utc(record.created)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            pairs["error"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())

    @staticmethod
    def _utc(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


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


def set_up_logs(level: str) -> None:
    """Send everything at `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Libraries speak up from warnings on; their debugging is not about this server.
    logging.getLogger("unrolled_server").setLevel(level.upper())

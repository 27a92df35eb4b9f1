"""Whose call is being served, and so whose sessions it may see."""

from __future__ import annotations

from contextvars import ContextVar

DEFAULT = "default"

tenant: ContextVar[str] = ContextVar("tenant", default=DEFAULT)
"""Of the call that the running task serves; DEFAULT outside of calls, and without API keys."""

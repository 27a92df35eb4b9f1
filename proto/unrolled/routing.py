"""Which session a call is on, said where a proxy can read it.

Replicas of the server that share a store serve every session, whichever a call reaches; but the one
that served it last has it in memory. A proxy that sends calls with the same header the same way
(deploy/envoy) saves the others from fetching it. Nothing is wrong with a call without the header.
"""

from __future__ import annotations

import re

SESSION_HEADER = "unrolled-session"

Metadata = tuple[tuple[str, str], ...]

_NAME = re.compile(r"sessions/[!-~]{1,128}")
"""What can stand in a header. Whatever else is asked for, the server says that there is none."""


def session_of(request: object) -> str:
    """The name of the session that a request is on; empty where it is on none."""
    for field in ("session", "name"):
        value = getattr(request, field, "")
        if _NAME.fullmatch(value):
            return str(value)
    return ""


def routing(session: str) -> Metadata:
    """The metadata of a call on this session. Raises TypeError for what is not text."""
    if not isinstance(session, str):
        raise TypeError(f"session: text, not {session!r}")
    return ((SESSION_HEADER, session),) if _NAME.fullmatch(session) else ()

"""Names of sessions, and the places they stand for.

The ID of sessions/ID is the session's row, 8 hexadecimal digits, and its key, 32: finding a
session takes no index, and names sort as rows do. Rows are used again, keys are not: what
makes a name unguessable, and what a row's next session does not answer to, is the key.

A store knows a session by its ID as bytes, which sort as names do.
"""

from __future__ import annotations

import re

KEY_BYTES = 16
ID_BYTES = 4 + KEY_BYTES
NAME = re.compile(r"sessions/([0-9a-f]{8})([0-9a-f]{32})")


def session_name(row: int, key: bytes | bytearray) -> str:
    """The name of the session with this key, KEY_BYTES long, in this row, below 2^32."""
    return f"sessions/{row:08x}{key.hex()}"


def row_and_key(name: str) -> tuple[int, bytes] | None:
    """What `session_name` made the name of; None where it did not make it."""
    match = NAME.fullmatch(name)
    return None if match is None else (int(match[1], 16), bytes.fromhex(match[2]))


def session_id(name: str) -> bytes | None:
    """The ID in a name, ID_BYTES long; None where `session_name` did not make it."""
    match = NAME.fullmatch(name)
    return None if match is None else bytes.fromhex(match[1] + match[2])


def name_of(id_: bytes) -> str:
    """The name that this ID, ID_BYTES long, is of."""
    return f"sessions/{id_.hex()}"

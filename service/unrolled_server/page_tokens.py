"""Where a listing of sessions goes on, as the text that callers hand back for the next page.

In memory that is the row of the next session, in a store the ID of the last one. No text is the
beginning.
"""

from __future__ import annotations

import re

from unrolled_server.errors import InvalidField
from unrolled_server.session_names import ID_BYTES

_ROW = re.compile(r"[0-9a-f]{1,8}")
_ID = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")


def row_token(row: int) -> str:
    """To go on with the session in this row."""
    return f"{row:x}"


def row_of(token: str) -> int:
    """The row to go on with. Raises InvalidField."""
    return int(_checked(token, _ROW) or "0", 16)


def token_behind(name: str) -> str:
    """To go on behind the session of this name."""
    return name.removeprefix("sessions/")


def id_of(token: str) -> bytes:
    """The ID to go on behind, empty for the beginning. Raises InvalidField."""
    return bytes.fromhex(_checked(token, _ID))


def _checked(token: str, form: re.Pattern[str]) -> str:
    """The token, of this form or empty. Raises InvalidField for one that no page came with."""
    if token and not form.fullmatch(token):
        raise InvalidField("page_token", "is not one that a page came with")
    return token

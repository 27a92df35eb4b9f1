"""Places at which a test lets the server fail: none unless the environment names them.

UNROLLED_FAILPOINTS=commit.before_reply=kill:3,store.before_commit=error lets the process kill
itself when it gets to the first place for the third time, and the second place fail whenever
it is reached; with :3, the third time alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "UNROLLED_FAILPOINTS"
PLACES = (
    "commit.before_write",
    "store.before_write",
    "store.before_commit",
    "store.after_commit",
    "commit.before_memory",
    "commit.before_reply",
)
"""The steps of a turn's commit, in their order."""
FALLIBLE = PLACES[:3]
"""Steps that can fail in a process that goes on; at the others there is only its end."""


class FailpointError(Exception):
    """A failure that the environment asked for."""


class FailpointSyntaxError(ValueError):
    """What the environment says is not understood."""


@dataclass
class Failpoint:
    """What is to happen at one place."""

    action: str
    time: int
    """Which time that it is reached something happens; 0: every time."""
    reached: int = 0

    def reach(self, place: str) -> None:
        """Do it if it is time. Raises FailpointError."""
        self.reached += 1
        if self.time not in (0, self.reached):
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise FailpointError(place)


def parse(text: str) -> dict[str, Failpoint]:
    """The failpoints that the variable names. Raises FailpointSyntaxError."""
    found = {}
    for part in filter(None, text.split(",")):
        place, _, rest = part.partition("=")
        action, _, count = rest.partition(":")
        places = {"kill": PLACES, "error": FALLIBLE}.get(action, ())
        if place not in places or not (count or "0").isdecimal():
            raise FailpointSyntaxError(f"{VARIABLE}: {part!r} is not PLACE=kill|error[:COUNT]")
        found[place] = Failpoint(action, int(count or "0"))
    return found


_armed: dict[str, Failpoint] = {}


def arm(environment: Mapping[str, str]) -> None:
    """Arm what the environment asks for. Raises FailpointSyntaxError."""
    _armed.clear()
    _armed.update(parse(environment.get(VARIABLE, "")))


def reach(place: str) -> None:
    """The process is at one of PLACES. Raises FailpointError where it is to fail there."""
    if _armed and place in _armed:
        _armed[place].reach(place)

"""Signals that end the server."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import NoReturn

NUMBERS = tuple(
    number
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    # nohup has the end of a terminal ignored.
    if signal.getsignal(number) is not signal.SIG_IGN
)


def leave_while_starting() -> None:
    """Until there are StopSignals: the first ends the process, in which nothing is under way.

    The system would do that by itself, but not in a container, whose first process it spares.
    """
    for number in NUMBERS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP, a terminal's end.

    The first asks the server to end, the second to do so at once. A third has the effect that the
    system gives it. To be made in the running loop.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first: finish what is under way."""
        self.at_once = asyncio.Event()
        """Set by the second: wait for nothing."""
        for number in NUMBERS:
            asyncio.get_running_loop().add_signal_handler(number, self._receive)

    def _receive(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
            return
        self.at_once.set()
        for number in NUMBERS:
            asyncio.get_running_loop().remove_signal_handler(number)

"""Ctrl-C while something else is in progress."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C calls `act` between two steps of the main thread and interrupts nothing.

    For a read from a gRPC call, which cannot be taken up again after KeyboardInterrupt.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Progress bars on the standard error stream, shown by what lasts longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Thread

from tqdm import tqdm

DELAY = 2.0
"""Seconds before a bar appears."""
TICK = 0.5
"""Seconds between looks at a bar that nothing advances."""

Advance = Callable[[int], object]
"""Notes that so many more units are done."""
Progress = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Opens a bar of a title and a number of units, where that is known."""


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Advance]:
    """A bar that is gone in the end; none where the stream is no terminal."""
    with tqdm(
        desc=title, total=total, delay=DELAY, leave=False, disable=None, unit_scale=True
    ) as bar:
        if bar.disable:
            yield bar.update
            return
        done = Event()
        ticker = Thread(target=_tick, args=(bar, done), daemon=True)
        ticker.start()
        try:
            yield bar.update
        finally:
            done.set()
            ticker.join()


def _tick(bar: tqdm[None], done: Event) -> None:
    """Show the time that passes, also while nothing advances."""
    while not done.wait(TICK):
        bar.update(0)


def no_progress(title: str, total: int | None) -> AbstractContextManager[Advance]:
    """No bar."""
    return nullcontext(lambda units: None)

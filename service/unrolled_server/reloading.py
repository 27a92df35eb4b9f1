"""Files that are read again while the server runs; where they turn bad, the last good ones stay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from unrolled_server.files import FileError, Made, Recipe
from unrolled_server.logs import log_event
from unrolled_server.metrics import ReloadMetrics

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

T = TypeVar("T")


class Reloader(Generic[T]):
    """Follows the files of a recipe and hands on what is made of them.

    They are compared as a whole and not by their times: they are a few kilobytes, and whatever
    way they are replaced (in place, by a rename, by a link to another folder) is noticed.
    """

    def __init__(
        self, recipe: Recipe[T], first: Made[T], use: Callable[[T], None], metrics: ReloadMetrics
    ) -> None:
        """`first` is in use already; `use` is called in the event loop with each after it."""
        self._recipe = recipe
        self._made = first
        self._use = use
        self._metrics = metrics
        self._problem = ""
        metrics.good.labels(recipe.name).set(1)

    async def follow(self) -> None:
        """Look every LOOK_SECONDS, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read the files, and use them if they have changed for something that can be used."""
        try:
            # A disk that does not answer must not hold up the turns.
            made = await asyncio.to_thread(self._recipe.read, self._made)
        except FileError as error:
            self._turned_bad(str(error))
            return
        except Exception as error:
            # Nobody foresaw it; the other looks go on. Its text may quote what is secret.
            self._turned_bad(f"cannot be used: {type(error).__name__}")
            return
        if made is not self._made:
            self._made = made
            self._use(made.value)
        elif not self._problem:
            return
        self._problem = ""
        self._metrics.reloaded(self._recipe.name, good=True)
        log_event(logger, logging.INFO, "files_reloaded", files=self._recipe.name)

    def _turned_bad(self, problem: str) -> None:
        """Say so once: it is tried again with every look."""
        if problem == self._problem:
            return
        self._problem = problem
        self._metrics.reloaded(self._recipe.name, good=False)
        log_event(logger, logging.ERROR, "files_turned_bad", files=self._recipe.name, error=problem)


class Followed(Generic[T]):
    """What a recipe makes of its files: read at once, and again when they change."""

    def __init__(self, recipe: Recipe[T]) -> None:
        """Raises FileError."""
        self._recipe = recipe
        self._first = recipe.read()
        self.value: T = self._first.value
        """As the files were when they were last good."""

    def reloader(self, metrics: ReloadMetrics) -> Reloader[T]:
        """What keeps the value as the files are."""

        def use(value: T) -> None:
            self.value = value

        return Reloader(self._recipe, self._first, use, metrics)

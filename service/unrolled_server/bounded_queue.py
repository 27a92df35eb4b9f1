"""A queue that is bounded by the size of what is in it, too."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """At most `count` items, of `size` together; one that is larger waits alone. One task puts."""

    def __init__(self, count: int, size: int) -> None:
        self._limit = size
        self._size = 0
        self._items: asyncio.Queue[tuple[T, int]] = asyncio.Queue(count)
        self._taken = asyncio.Event()

    async def put(self, item: T, size: int = 0) -> None:
        """Wait for room, then put the item last."""
        while self._size and self._size + size > self._limit:
            self._taken.clear()
            await self._taken.wait()
        await self._items.put((item, size))
        self._size += size

    async def get(self) -> T:
        """Wait for the first item, and take it."""
        item, size = await self._items.get()
        self._size -= size
        self._taken.set()
        return item

"""The queue of a conversation's commands, against a list and two counters."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import given
from unrolled_server.bounded_queue import BoundedQueue

COUNT, SIZE = 4, 10


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def put_all(queue: BoundedQueue[int], sizes: list[int], accepted: list[int]) -> None:
    for item, size in enumerate(sizes):
        await queue.put(item, size)
        accepted.append(item)


@given(sizes=st.lists(st.integers(0, 15), max_size=20))
async def test_what_is_in_it_is_bounded_and_comes_out_in_order(sizes: list[int]) -> None:
    queue: BoundedQueue[int] = BoundedQueue(COUNT, SIZE)
    accepted: list[int] = []
    putting = asyncio.create_task(put_all(queue, sizes, accepted))
    for taken in range(len(sizes)):
        await settle()
        waiting = sizes[taken : len(accepted)]
        assert len([size for size in waiting if size]) <= 1 or sum(waiting) <= SIZE
        assert len(waiting) <= COUNT
        following = sizes[len(accepted) : len(accepted) + 1]
        # Whatever had room has been let in.
        fits = sum(waiting) == 0 or sum([*waiting, *following]) <= SIZE
        assert not (following and fits and len(waiting) < COUNT)
        assert await queue.get() == taken
    await putting

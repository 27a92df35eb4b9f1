"""Completions as streams: deltas, the outcome, and giving up."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from client.fake_service import FakeService, failure
from unrolled import AsyncClient, Cancelled, Client, FinishReason, Unavailable

DRAINING = failure(grpc.StatusCode.UNAVAILABLE, "shutting down", "DRAINING")


def test_deltas_then_the_outcome(client: Client) -> None:
    stream = client.stream("ab", model="tiny")

    assert [delta.text for delta in stream] == ["To ", "be"]
    assert stream.outcome.position == 7
    assert stream.outcome.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert list(stream) == []


def test_no_outcome_before_the_end(fake: FakeService, client: Client) -> None:
    fake.holds = True
    with client.stream("ab", model="tiny") as stream:
        next(stream)

        with pytest.raises(RuntimeError, match="read it to its end"):
            _ = stream.outcome


def test_leaving_with_ends_the_turn_at_the_server(fake: FakeService, client: Client) -> None:
    fake.holds = True
    with client.stream("ab", model="tiny") as stream:
        assert next(stream).text == "To "

    assert fake.abandoned.wait(30)


def test_a_reader_hears_that_another_thread_cancelled(fake: FakeService, client: Client) -> None:
    fake.holds = True
    stream = client.stream("ab", model="tiny")
    next(stream)
    threading.Thread(target=stream.cancel).start()

    with pytest.raises(Cancelled):
        next(stream)


def test_errors_come_from_the_iteration(fake: FakeService, client: Client) -> None:
    fake.failure = DRAINING
    stream = client.stream("ab", model="tiny")

    with pytest.raises(Unavailable) as caught:
        next(stream)
    assert caught.value.reason == "DRAINING"


async def test_asyncio_deltas_then_the_outcome(async_client: AsyncClient) -> None:
    async with async_client.stream("ab", model="tiny") as stream:
        assert [delta.text async for delta in stream] == ["To ", "be"]

    assert stream.outcome.position == 7


async def test_asyncio_iteration_may_be_resumed(async_client: AsyncClient) -> None:
    stream = async_client.stream("ab", model="tiny")
    async for delta in stream:
        assert delta.text == "To "
        break

    assert [delta.text async for delta in stream] == ["be"]
    assert stream.outcome.position == 7


async def test_asyncio_errors_come_from_the_iteration(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.failure = DRAINING
    with pytest.raises(Unavailable) as caught:
        await anext(async_client.stream("ab", model="tiny"))
    assert caught.value.reason == "DRAINING"


async def test_asyncio_leaving_with_ends_the_turn_at_the_server(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.holds = True
    async with async_client.stream("ab", model="tiny") as stream:
        await anext(stream)

    assert await asyncio.to_thread(fake.abandoned.wait, 30)


async def test_asyncio_a_reader_hears_that_another_task_cancelled(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.holds = True
    stream = async_client.stream("ab", model="tiny")
    await anext(stream)
    asyncio.get_running_loop().call_soon(stream.cancel)

    with pytest.raises(Cancelled):
        await anext(stream)


async def test_asyncio_a_cancelled_task_stays_cancelled_and_ends_the_turn(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.holds = True
    stream = async_client.stream("ab", model="tiny")
    await anext(stream)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(stream)
    assert await asyncio.to_thread(fake.abandoned.wait, 30)

"""Conversations: commands out, events in."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import grpc
import pytest
from client.fake_service import FakeService, failure
from google.protobuf.duration_pb2 import Duration
from unrolled import (
    AsyncClient,
    Cancelled,
    Client,
    FinishReason,
    Unavailable,
    UnrolledError,
    error_from_status,
)
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest

BUSY = failure(grpc.StatusCode.ABORTED, "busy", "SESSION_BUSY")

COMMANDS = [
    ConverseRequest(
        command_id="1",
        open=ConverseRequest.Open(
            model="tiny", seed=0, idle_ttl=Duration(seconds=90), max_age=Duration(seconds=3600)
        ),
    ),
    ConverseRequest(
        command_id="2",
        feed=ConverseRequest.Feed(text="ab", expected_position=0, request_id="first"),
    ),
    ConverseRequest(command_id="3", complete=CompleteRequest(prompt="c", max_tokens=5)),
    ConverseRequest(
        command_id="4", score=ConverseRequest.Feed(text="de", logprobs=0, request_id="last")
    ),
    ConverseRequest(command_id="5", stop=ConverseRequest.Stop()),
    ConverseRequest(command_id="6", stop=ConverseRequest.Stop(command_id="3")),
]
EVENTS = [
    ("1", "opened"),
    ("2", "outcome"),
    ("3", "delta"),
    ("3", "delta"),
    ("3", "outcome"),
    ("4", "score"),
    ("4", "outcome"),
]


def test_commands_and_their_events(fake: FakeService, client: Client) -> None:
    with client.converse() as conversation:
        ids = [
            conversation.open("tiny", seed=0, idle_ttl=90, max_age=timedelta(hours=1)),
            conversation.feed("ab", expected_position=0, request_id="first"),
            conversation.complete("c", max_tokens=5),
            conversation.score("de", logprobs=0, request_id="last"),
            conversation.stop(),
            conversation.stop("3"),
        ]
        conversation.close()
        events = list(conversation)

    assert ids == ["1", "2", "3", "4", "5", "6"]
    assert fake.received == COMMANDS
    assert [(event.command_id, event.WhichOneof("event")) for event in events] == EVENTS
    assert events[-1].outcome.position == 10


async def test_asyncio_commands_and_their_events(
    fake: FakeService, async_client: AsyncClient
) -> None:
    async with async_client.converse() as conversation:
        await conversation.open("tiny", seed=0, idle_ttl=90, max_age=timedelta(hours=1))
        await conversation.feed("ab", expected_position=0, request_id="first")
        await conversation.complete("c", max_tokens=5)
        await conversation.score("de", logprobs=0, request_id="last")
        await conversation.stop()
        await conversation.stop("3")
        await conversation.close()
        events = [event async for event in conversation]

    assert fake.received == COMMANDS
    assert [(event.command_id, event.WhichOneof("event")) for event in events] == EVENTS


def test_an_existing_session_may_be_opened(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a", position=3)
    with client.converse() as conversation:
        conversation.open(session="sessions/a")

        assert next(conversation).opened.position == 3


def test_stop_ends_what_is_being_drawn(fake: FakeService, client: Client) -> None:
    fake.holds = True
    with client.converse() as conversation:
        conversation.open("tiny")
        conversation.complete("c")
        next(conversation)
        assert next(conversation).delta.text == "To "
        conversation.stop()

        outcome = next(conversation).outcome

    assert outcome.finish_reason == FinishReason.FINISH_REASON_STOPPED
    assert outcome.position == 4


async def test_asyncio_stop_from_another_task(fake: FakeService, async_client: AsyncClient) -> None:
    fake.holds = True
    async with async_client.converse() as conversation:
        await conversation.open("tiny")
        await conversation.complete("c")
        await anext(conversation)
        await anext(conversation)
        reader = asyncio.ensure_future(anext(conversation))
        await conversation.stop()

        assert (await reader).outcome.position == 4


async def test_asyncio_tasks_may_send_side_by_side(
    fake: FakeService, async_client: AsyncClient
) -> None:
    async with async_client.converse() as conversation:
        await conversation.open("tiny")
        await asyncio.gather(*(conversation.feed("a") for _ in range(20)))
        await conversation.close()
        events = [event async for event in conversation]

    assert events[-1].outcome.position == 20


def test_a_failed_command_does_not_end_the_conversation(fake: FakeService, client: Client) -> None:
    fake.command_failure = BUSY
    with client.converse() as conversation:
        conversation.open("tiny")
        conversation.feed("ab")
        conversation.feed("c")
        conversation.close()
        _, failed, outcome = conversation

    assert error_from_status(failed.error).reason == "SESSION_BUSY"
    assert outcome.outcome.position == 1


def test_a_failed_call_does(client: Client) -> None:
    with Client("127.0.0.1:1") as nowhere, nowhere.converse(timeout=30) as conversation:
        with pytest.raises(Unavailable):
            next(conversation)

        with pytest.raises(Unavailable):
            conversation.open("tiny")


def test_a_call_that_is_over_at_once_leaves_no_thread() -> None:
    before = threading.enumerate()
    with Client("127.0.0.1:1") as nowhere:
        for _ in range(20):
            with nowhere.converse(timeout=0) as conversation, pytest.raises(UnrolledError):
                next(conversation)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(30)

    assert not any(thread.is_alive() for thread in left)


async def test_asyncio_a_failed_call_does() -> None:
    async with AsyncClient("127.0.0.1:1") as nowhere, nowhere.converse(timeout=30) as conversation:
        with pytest.raises(Unavailable):
            await anext(conversation)

        with pytest.raises(Unavailable):
            await conversation.open("tiny")


def test_a_first_command_hears_why_the_call_failed() -> None:
    with Client("127.0.0.1:1") as nowhere, nowhere.converse(timeout=30) as conversation:
        failed = threading.Event()
        if conversation._call.add_callback(failed.set):
            assert failed.wait(30)

        with pytest.raises(Unavailable):
            conversation.open("tiny")


async def test_asyncio_a_first_command_hears_why_the_call_failed() -> None:
    async with AsyncClient("127.0.0.1:1") as nowhere, nowhere.converse(timeout=30) as conversation:
        assert await conversation._call.code() is grpc.StatusCode.UNAVAILABLE

        with pytest.raises(Unavailable):
            await conversation.open("tiny")


def test_no_commands_after_close(client: Client) -> None:
    with client.converse() as conversation:
        conversation.open("tiny")
        conversation.close()

        with pytest.raises(RuntimeError, match="has ended"):
            conversation.feed("a")


async def test_asyncio_no_commands_after_close(async_client: AsyncClient) -> None:
    async with async_client.converse() as conversation:
        await conversation.open("tiny")
        await conversation.close()

        with pytest.raises(RuntimeError, match="has ended"):
            await conversation.feed("a")


def test_leaving_with_gives_up_what_is_in_progress(fake: FakeService, client: Client) -> None:
    fake.holds = True
    with client.converse() as conversation:
        conversation.open("tiny")
        conversation.complete("c")
        next(conversation)
        next(conversation)

    with pytest.raises(Cancelled):
        next(conversation)
    assert fake.abandoned.wait(30)


async def test_asyncio_leaving_with_gives_up_what_is_in_progress(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.holds = True
    async with async_client.converse() as conversation:
        await conversation.open("tiny")
        await conversation.complete("c")
        await anext(conversation)
        await anext(conversation)

    with pytest.raises(Cancelled):
        await anext(conversation)
    assert await asyncio.to_thread(fake.abandoned.wait, 30)

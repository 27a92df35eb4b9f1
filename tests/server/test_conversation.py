"""A conversation whose events are slow to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest, ConverseResponse
from unrolled_server import conversation
from unrolled_server.conversation import Command, Conversation
from unrolled_server.turns import Turns


class NeverDrained:
    """What a conversation without a session asks of turns."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()


async def test_stop_passes_over_a_completion_whose_failure_is_still_being_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: list[Command] = []

    def keep(message: ConverseRequest) -> Command:
        received.append(Command(message))
        return received[-1]

    monkeypatch.setattr(conversation, "Command", keep)
    first_is_sent, reader_goes_on = asyncio.Event(), asyncio.Event()
    events: list[ConverseResponse] = []

    async def send(event: ConverseResponse) -> None:
        events.append(event)
        first_is_sent.set()
        await reader_goes_on.wait()

    async def requests() -> AsyncIterator[ConverseRequest]:
        for name in ("a", "b"):
            yield ConverseRequest(command_id=name, complete=CompleteRequest(prompt="x"))
        await first_is_sent.wait()
        yield ConverseRequest(stop=ConverseRequest.Stop())
        reader_goes_on.set()

    # Completions fail that come before a session is opened.
    await Conversation(cast("Turns", NeverDrained()), send).run(requests())
    assert [(event.command_id, event.WhichOneof("event")) for event in events] == [
        ("a", "error"),
        ("b", "error"),
    ]
    assert {each.message.command_id: each.stopped for each in received} == {
        "a": False,
        "b": True,
        "": False,
    }

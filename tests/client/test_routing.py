"""Calls on a session name it in their metadata, where a proxy can read it."""

from __future__ import annotations

import pytest
from client.fake_service import FakeService
from unrolled import AsyncClient, Client
from unrolled.v1.completion_pb2 import CompleteRequest

NAME = "sessions/here"
ON_A_SESSION = [
    ("GetSession", NAME),
    ("Complete", NAME),
    ("StreamComplete", NAME),
    ("Complete", NAME),  # feed
    ("Score", NAME),
    ("GetSession", NAME),  # refresh
    ("ExportSession", NAME),
    ("ForkSession", NAME),
    ("CheckpointSession", NAME),
    ("RewindSession", NAME),
    ("DeleteCheckpoint", NAME),
    ("Complete", NAME),
    ("StreamComplete", NAME),
    ("Score", NAME),
    ("Converse", NAME),
    ("DeleteSession", NAME),
]


def test_calls_on_a_session_name_it(fake: FakeService, client: Client) -> None:
    fake.add_session(NAME)
    session = client.session(NAME)
    session.complete("a")
    list(session.stream("a", request_id="1"))
    session.feed("a", request_id="2")
    session.score("a")
    session.refresh()
    session.export()
    session.fork()
    session.checkpoint("here")
    session.rewind("here")
    session.delete_checkpoint("here")
    client.complete("a", session=NAME)
    list(client.stream("a", session=NAME))
    client.score("a", session=NAME)
    with client.converse(session=NAME) as conversation:
        conversation.open(session=NAME)
        conversation.close()
        list(conversation)
    session.delete()

    assert fake.routes == ON_A_SESSION


async def test_the_same_for_asyncio(fake: FakeService, async_client: AsyncClient) -> None:
    fake.add_session(NAME)
    session = await async_client.session(NAME)
    await session.complete("a")
    _ = [delta async for delta in session.stream("a", request_id="1")]
    await session.feed("a", request_id="2")
    await session.score("a")
    await session.refresh()
    await session.export()
    await session.fork()
    await session.checkpoint("here")
    await session.rewind("here")
    await session.delete_checkpoint("here")
    await async_client.complete("a", session=NAME)
    _ = [delta async for delta in async_client.stream("a", session=NAME)]
    await async_client.score("a", session=NAME)
    async with async_client.converse(session=NAME) as conversation:
        await conversation.open(session=NAME)
        await conversation.close()
        _ = [event async for event in conversation]
    await session.delete()

    assert fake.routes == ON_A_SESSION


def test_other_calls_name_none(fake: FakeService, client: Client) -> None:
    client.models()
    client.model("tiny")
    client.create_session("tiny")
    list(client.sessions())
    client.import_session(b"\xff\0\r\n1")
    client.complete("a", model="tiny")
    list(client.stream("a", model="tiny"))
    client.score("a", model="tiny")
    with client.converse() as conversation:
        conversation.close()
        list(conversation)

    assert [session for _, session in fake.routes] == [None] * 9


@pytest.mark.parametrize("name", ["sessions/\u00e4", "sessions/a b", "sessions/\n", "s" * 9000])
def test_what_no_header_can_hold_is_asked_for_all_the_same(
    fake: FakeService, client: Client, name: str
) -> None:
    client.complete("a", session=name)

    assert fake.routes == [("Complete", None)]
    assert fake.heard(CompleteRequest)[0].session == name

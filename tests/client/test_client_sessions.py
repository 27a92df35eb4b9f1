"""Session objects: turns, positions, forks, and who deletes them."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from client.fake_service import FakeService, failure
from unrolled import AsyncClient, Client, NotFound, Unavailable
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ImportSessionRequest,
    ListSessionsRequest,
)

DOWN = failure(grpc.StatusCode.UNAVAILABLE, "gone")


def fail_and_go_down(fake: FakeService) -> None:
    fake.failure = DOWN
    raise KeyError


def test_every_turn_starts_where_the_last_one_ended(fake: FakeService, client: Client) -> None:
    with client.create_session("tiny") as session:
        assert (session.name, session.model, session.position) == ("sessions/1", "tiny/1", 0)

        assert session.complete("ab").text == "To be"
        assert session.position == 7

        stream = session.stream("c", max_tokens=5)
        assert "".join(delta.text for delta in stream) == "To be"
        assert session.position == 13

        assert session.feed("de", expected_position=13, request_id="a").position == 15
        assert session.position == 15

    assert fake.heard(CompleteRequest) == [
        CompleteRequest(session="sessions/1", prompt="ab"),
        CompleteRequest(session="sessions/1", prompt="c", max_tokens=5),
        CompleteRequest(
            session="sessions/1",
            prompt="de",
            max_tokens=0,
            expected_position=13,
            request_id="a",
        ),
    ]


def test_score_leaves_the_session_where_it_is(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a", position=3)
    session = client.session("sessions/a")

    assert session.score("abc").total_logprob == -1.0
    assert session.position == 3
    assert fake.heard(ScoreRequest) == [ScoreRequest(session="sessions/a", text="abc")]


def test_refresh_asks_the_server(fake: FakeService, client: Client) -> None:
    info = fake.add_session("sessions/a", position=3)
    session = client.session("sessions/a")
    info.position = 9
    assert session.position == 3

    session.refresh()

    assert session.position == 9


def test_with_deletes_a_session_made_here(fake: FakeService, client: Client) -> None:
    with client.create_session("tiny") as session:
        pass

    assert fake.heard(DeleteSessionRequest) == [DeleteSessionRequest(name=session.name)]


async def test_a_session_is_deleted_by_its_name_alone(
    fake: FakeService, client: Client, async_client: AsyncClient
) -> None:
    for name in ("sessions/a", "sessions/b"):
        fake.add_session(name)
    client.delete_session("sessions/a")
    await async_client.delete_session("sessions/b")
    assert fake.received == [
        DeleteSessionRequest(name="sessions/a"),
        DeleteSessionRequest(name="sessions/b"),
    ]


def test_with_deletes_a_fork_and_leaves_the_parent(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a", position=3)
    with client.session("sessions/a").fork(seed=0) as child:
        assert (child.name, child.position) == ("sessions/1", 3)

    assert fake.heard(ForkSessionRequest) == [ForkSessionRequest(name="sessions/a", seed=0)]
    assert list(fake.sessions) == ["sessions/a"]


def test_a_session_goes_on_from_a_snapshot(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a", position=3)
    snapshot = client.session("sessions/a").export()
    with client.import_session(snapshot) as session:
        assert (session.name, session.position) == ("sessions/1", 3)
        session.feed("ab")
        assert session.position == 5

    assert list(fake.sessions) == ["sessions/a"]
    assert fake.heard(ExportSessionRequest) == [ExportSessionRequest(name="sessions/a")]
    assert fake.heard(ImportSessionRequest) == [ImportSessionRequest(snapshot=snapshot)]


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(minutes=1, seconds=30)])
def test_lifetimes_of_snapshots_and_what_is_made_of_them(
    fake: FakeService, client: Client, ttl: float | timedelta
) -> None:
    fake.add_session("sessions/a")
    client.import_session(client.session("sessions/a").export(ttl=ttl), idle_ttl=ttl)

    (exported,) = fake.heard(ExportSessionRequest)
    (imported,) = fake.heard(ImportSessionRequest)
    assert exported.ttl.ToTimedelta() == imported.idle_ttl.ToTimedelta() == timedelta(seconds=90)


def test_with_leaves_an_attached_session_alone(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a")
    with client.session("sessions/a"):
        pass
    for session in client.sessions():
        with session:
            pass

    assert list(fake.sessions) == ["sessions/a"]


def test_without_with_a_session_lives_on(fake: FakeService, client: Client) -> None:
    client.create_session("tiny").complete("ab")

    assert list(fake.sessions) == ["sessions/1"]


def test_a_session_deleted_within_with_is_not_deleted_again(
    fake: FakeService, client: Client
) -> None:
    with client.create_session("tiny") as session:
        session.delete()

    assert len(fake.heard(DeleteSessionRequest)) == 1


def test_a_session_that_ended_within_with_is_no_error(fake: FakeService, client: Client) -> None:
    with client.create_session("tiny"):
        fake.sessions.clear()


def test_a_failed_deletion_is_an_error(fake: FakeService, client: Client) -> None:
    with pytest.raises(Unavailable), client.create_session("tiny"):
        fake.failure = DOWN


def test_a_failed_deletion_does_not_hide_the_bodys_error(fake: FakeService, client: Client) -> None:
    with pytest.raises(KeyError), client.create_session("tiny"):
        fail_and_go_down(fake)


def test_attaching_to_nothing_fails_at_once(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.session("sessions/none")

    assert caught.value.metadata == {"session": "sessions/none"}


def test_sessions_goes_through_all_pages(fake: FakeService, client: Client) -> None:
    names = [fake.add_session(f"sessions/{letter}").name for letter in "abcde"]

    assert [session.name for session in client.sessions("tiny")] == names
    requests = fake.heard(ListSessionsRequest)
    assert [(r.model, r.page_token) for r in requests] == [("tiny", t) for t in ("", "2", "4")]


def test_pages_are_fetched_as_they_are_reached(fake: FakeService, client: Client) -> None:
    for letter in "abc":
        fake.add_session(f"sessions/{letter}")

    next(client.sessions())

    assert len(fake.heard(ListSessionsRequest)) == 1


def test_a_listed_session_can_be_advanced(fake: FakeService, client: Client) -> None:
    fake.add_session("sessions/a", position=3)
    (session,) = client.sessions()

    assert session.feed([1, 2]).position == 5


async def fail_within(async_client: AsyncClient, fake: FakeService) -> None:
    async with async_client.create_session("tiny"):
        fail_and_go_down(fake)


async def test_asyncio_turns(fake: FakeService, async_client: AsyncClient) -> None:
    async with async_client.create_session("tiny", seed=3) as session:
        await session.complete("ab")
        assert session.position == 7
        assert [delta.text async for delta in session.stream()] == ["To ", "be"]
        assert session.position == 12
        await session.feed("c")
        assert (await session.score("abc")).total_logprob == -1.0
        assert session.position == 13
        await session.refresh()
        assert session.position == 13

    assert fake.heard(CreateSessionRequest) == [CreateSessionRequest(model="tiny", seed=3)]
    assert fake.heard(GetSessionRequest) == [GetSessionRequest(name="sessions/1")]
    assert not fake.sessions


async def test_asyncio_forks_are_deleted_and_parents_kept(
    fake: FakeService, async_client: AsyncClient
) -> None:
    parent = await async_client.create_session("tiny")
    async with parent.fork() as child:
        assert child.name == "sessions/2"
    kept = await parent.fork(seed=4)

    assert [session.name async for session in async_client.sessions()] == [parent.name, kept.name]


async def test_asyncio_snapshots(fake: FakeService, async_client: AsyncClient) -> None:
    fake.add_session("sessions/a", position=3)
    snapshot = await (await async_client.session("sessions/a")).export(ttl=90)
    async with async_client.import_session(snapshot, idle_ttl=60) as session:
        assert (session.name, session.position) == ("sessions/1", 3)
    kept = await async_client.import_session(snapshot)

    assert list(fake.sessions) == ["sessions/a", kept.name]
    (exported,) = fake.heard(ExportSessionRequest)
    assert (exported.name, exported.ttl.seconds) == ("sessions/a", 90)
    first, second = fake.heard(ImportSessionRequest)
    assert (first.idle_ttl.seconds, second.HasField("idle_ttl")) == (60, False)


async def test_asyncio_attached_sessions_are_left_alone(
    fake: FakeService, async_client: AsyncClient
) -> None:
    fake.add_session("sessions/a")
    async with await async_client.session("sessions/a"):
        pass

    assert list(fake.sessions) == ["sessions/a"]


async def test_asyncio_deletion_fails_like_the_other(
    fake: FakeService, async_client: AsyncClient
) -> None:
    with pytest.raises(KeyError):
        await fail_within(async_client, fake)
    async with async_client.create_session("tiny"):
        fake.sessions.clear()
    with pytest.raises(Unavailable):
        async with async_client.create_session("tiny"):
            fake.failure = DOWN


async def test_asyncio_sessions_goes_through_all_pages(
    fake: FakeService, async_client: AsyncClient
) -> None:
    names = [fake.add_session(f"sessions/{letter}").name for letter in "abcde"]

    assert [session.name async for session in async_client.sessions()] == names

"""What the clients send, as the server receives it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from client.fake_service import FakeService
from unrolled import AsyncClient, Client, CompletionOptions
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest, TokenIds
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import CreateSessionRequest, ImportSessionRequest

EVERY_OPTION = CompletionOptions(
    max_tokens=0,
    temperature=0.0,
    top_k=0,
    top_p=0.5,
    min_p=0.25,
    seed=2**64 - 1,
    stop=["\n", "END"],
    logprobs=0,
    expected_position=0,
    request_id="once",
)
EVERY_FIELD = CompleteRequest(
    model="tiny",
    session="sessions/a",
    prompt="ROMEO:",
    max_tokens=0,
    temperature=0.0,
    top_k=0,
    top_p=0.5,
    min_p=0.25,
    seed=2**64 - 1,
    stop=["\n", "END"],
    logprobs=0,
    expected_position=0,
    request_id="once",
)


def test_unset_options_stay_unset(fake: FakeService, client: Client) -> None:
    client.complete("ROMEO:", model="tiny", temperature=None, stop=None)

    assert fake.received == [CompleteRequest(model="tiny", prompt="ROMEO:")]


def test_options_that_are_zero_are_sent(fake: FakeService, client: Client) -> None:
    client.complete("ROMEO:", model="tiny", session="sessions/a", **EVERY_OPTION)

    assert fake.received == [EVERY_FIELD]


def test_a_stream_sends_the_same(fake: FakeService, client: Client) -> None:
    for _ in client.stream("ROMEO:", model="tiny", session="sessions/a", **EVERY_OPTION):
        pass

    assert fake.received == [EVERY_FIELD]


async def test_asyncio_sends_the_same(fake: FakeService, async_client: AsyncClient) -> None:
    await async_client.complete("ROMEO:", model="tiny", session="sessions/a", **EVERY_OPTION)
    async for _ in async_client.stream(
        "ROMEO:", model="tiny", session="sessions/a", **EVERY_OPTION
    ):
        pass

    assert fake.received == [EVERY_FIELD, EVERY_FIELD]


@pytest.mark.parametrize("ids", [[3, 1, 2], (3, 1, 2), range(3), []])
def test_a_prompt_may_be_token_ids(fake: FakeService, client: Client, ids: list[int]) -> None:
    client.complete(ids, model="tiny")

    assert fake.received == [CompleteRequest(model="tiny", prompt_tokens=TokenIds(ids=ids))]


def test_without_a_prompt_none_is_sent(fake: FakeService, client: Client) -> None:
    client.complete(session="sessions/a")

    assert fake.heard(CompleteRequest)[0].WhichOneof("input") is None


def test_one_stop_string_may_stand_alone(fake: FakeService, client: Client) -> None:
    client.complete("a", model="tiny", stop="END")

    assert fake.heard(CompleteRequest)[0].stop == ["END"]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda client: client.complete(b"ROMEO:", model="tiny"), "token ids"),
        (lambda client: client.complete("a", model="tiny", request="x"), "request"),
        (lambda client: client.stream("a", model="tiny", max_token=1), "max_token"),
    ],
)
def test_what_would_be_misread_is_refused_here(
    fake: FakeService, client: Client, call: Callable[[Client], object], names: str
) -> None:
    with pytest.raises(TypeError, match=names):
        call(client)

    assert not fake.received


def test_a_number_that_does_not_fit_is_refused_here(fake: FakeService, client: Client) -> None:
    with pytest.raises(ValueError, match="out of range"):
        client.complete("a", model="tiny", max_tokens=2**31)

    assert not fake.received


def test_score_sends_logprobs_only_when_given(fake: FakeService, client: Client) -> None:
    client.score("abc", model="tiny")
    client.score("abc", session="sessions/a", logprobs=0)

    assert fake.received == [
        ScoreRequest(model="tiny", text="abc"),
        ScoreRequest(session="sessions/a", text="abc", logprobs=0),
    ]


def test_score_answers_in_nats(client: Client) -> None:
    assert client.score("abc", model="tiny", logprobs=0).total_logprob == -1.0


async def test_asyncio_scores(fake: FakeService, async_client: AsyncClient) -> None:
    response = await async_client.score("abc", model="tiny", logprobs=2)

    assert response.total_logprob == -1.0
    assert fake.received == [ScoreRequest(model="tiny", text="abc", logprobs=2)]


@pytest.mark.parametrize("time", [90, 90.0, timedelta(minutes=1, seconds=30)])
def test_times_are_seconds_or_timedelta(
    fake: FakeService, client: Client, time: float | timedelta
) -> None:
    client.create_session("tiny", seed=0, idle_ttl=time, max_age=time)
    client.import_session(b"\xff\0\r\n1", max_age=time)

    (request,) = fake.heard(CreateSessionRequest)
    assert (request.model, request.seed, request.HasField("seed")) == ("tiny", 0, True)
    assert request.idle_ttl.ToTimedelta() == timedelta(seconds=90)
    (imported,) = fake.heard(ImportSessionRequest)
    for age in (request.max_age, imported.max_age):
        assert age.ToTimedelta() == timedelta(seconds=90)


def test_a_session_takes_the_servers_defaults(fake: FakeService, client: Client) -> None:
    client.create_session("tiny")

    assert fake.received == [CreateSessionRequest(model="tiny")]


def test_models(fake: FakeService, client: Client) -> None:
    assert client.models() == fake.models
    assert client.model("tiny") == fake.models[0]
    assert fake.heard(GetModelRequest) == [GetModelRequest(name="tiny")]


async def test_asyncio_models(fake: FakeService, async_client: AsyncClient) -> None:
    assert await async_client.models() == fake.models
    assert await async_client.model("tiny") == fake.models[0]

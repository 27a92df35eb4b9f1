"""What the clients send, as the server receives it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

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


WHOLE = "a whole number from"
MISFITS: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda c: c.complete("a", max_tokens=2**40), ValueError, f"max_tokens: {WHOLE} -2147483648"),
    (lambda c: c.complete("a", max_tokens=0.5), TypeError, "max_tokens: .*, not 0.5"),
    (lambda c: c.stream("a", top_k="4"), TypeError, "top_k: .*, not '4'"),
    (lambda c: c.complete("a", seed=-1), ValueError, f"seed: {WHOLE} 0 to 18446744073709551615"),
    (lambda c: c.complete("a", seed=2**64), ValueError, "seed: .*, not 18446744073709551616"),
    (lambda c: c.complete("a", expected_position=2**63), ValueError, "expected_position: "),
    (lambda c: c.complete("a", temperature="0.5"), TypeError, "temperature: .*, not '0.5'"),
    (lambda c: c.complete("a", top_p=10**400), ValueError, "top_p: a floating-point number, not"),
    (lambda c: c.complete("a", stop=b"a"), TypeError, "stop: text, not b'a'"),
    (lambda c: c.complete("a", stop=["a", 5]), TypeError, r"stop\[1\]: text, not 5"),
    (lambda c: c.complete("a", stop=iter(["a", 5])), TypeError, r"stop\[1\]: text, not 5"),
    (lambda c: c.complete("a", request_id=7), TypeError, "request_id: text, not 7"),
    (lambda c: c.complete("a", model=5), TypeError, "model: text, not 5"),
    (lambda c: c.complete("a\ud800"), ValueError, "prompt: .* position 1: surrogates"),
    (lambda c: c.complete(5), TypeError, "prompt: text or a sequence of token ids, not 5"),
    (lambda c: c.complete([1, "a"]), TypeError, r"prompt\[1\]: .*, not 'a'"),
    (lambda c: c.score((1, 2, 2**31)), ValueError, r"text\[2\]: .*, not 2147483648"),
    (lambda c: c.score("a", logprobs="all"), TypeError, "logprobs: .*, not 'all'"),
    (lambda c: c.model(5), TypeError, "name: text, not 5"),
    (lambda c: c.session(None, timeout="1"), TypeError, "timeout: a number of seconds, not '1'"),
    (lambda c: c.models(timeout=math.nan), ValueError, "timeout: a number of seconds, not nan"),
    (lambda c: next(c.sessions(5)), TypeError, "model: text, not 5"),
    (lambda c: c.create_session("tiny", idle_ttl=math.inf), ValueError, "idle_ttl: .*, not inf"),
    (lambda c: c.create_session("tiny", max_age="1"), TypeError, "max_age: .*, not '1'"),
    (lambda c: c.create_session("tiny", undo="yes"), TypeError, "undo: True or False, not 'yes'"),
    (lambda c: c.import_session("text"), TypeError, "snapshot: bytes, not 'text'"),
    (lambda c: c.import_session(b"", idle_ttl=math.nan), ValueError, "idle_ttl: .*, not nan"),
    (lambda c: c.delete_session(["a"]), TypeError, r"name: text, not \['a'\]"),
    (lambda c: c.converse(session=5), TypeError, "session: text, not 5"),
    (lambda c: c.converse().open("tiny", max_age=1e300), ValueError, "max_age: at most 3,650 days"),
    (lambda c: c.converse().stop(3), TypeError, "command_id: text, not 3"),
]


@pytest.mark.parametrize(("call", "kind", "said"), MISFITS)
def test_what_no_field_can_hold_is_refused_here_by_name(
    fake: FakeService,
    client: Client,
    call: Callable[[Client], object],
    kind: type[Exception],
    said: str,
) -> None:
    with pytest.raises(kind, match=f"^{said}"):
        call(client)

    assert not fake.received


def test_the_longest_times_are_no_deadline(fake: FakeService, client: Client) -> None:
    for timeout in (math.inf, sys.maxsize, 1e30):
        client.complete("a", model="tiny", timeout=timeout)

    # What gRPC says where there is none is a time ages away.
    assert min(fake.deadlines) > 1e9


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

"""Every refusal: its code, its reason, the field it names; and the server goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias, cast

import grpc
import pytest
from google.protobuf.message import Message
from support.calls import LONG, SECONDS, Refusal, Stubs, connected, refused, unread_turn
from support.lone import LoneSession
from support.metrics import Metrics
from support.models import CHARACTERS, Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest, TokenIds
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
)

Raw: TypeAlias = Callable[..., object]
"""A method called with bytes."""

SIZE = len(CHARACTERS)
MEBIBYTE = 1 << 20

BAD_TURNS = (
    ("temperature", CompleteRequest(temperature=math.nan)),
    ("temperature", CompleteRequest(temperature=math.inf)),
    ("temperature", CompleteRequest(temperature=-math.inf)),
    ("temperature", CompleteRequest(temperature=-0.1)),
    ("top_k", CompleteRequest(top_k=-1)),
    ("top_p", CompleteRequest(top_p=0.0)),
    ("top_p", CompleteRequest(top_p=-0.5)),
    ("top_p", CompleteRequest(top_p=1.01)),
    ("top_p", CompleteRequest(top_p=math.nan)),
    ("min_p", CompleteRequest(min_p=-0.1)),
    ("min_p", CompleteRequest(min_p=1.1)),
    ("min_p", CompleteRequest(min_p=math.nan)),
    ("max_tokens", CompleteRequest(max_tokens=-1)),
    ("max_tokens", CompleteRequest(max_tokens=65537)),
    ("stop[0]", CompleteRequest(stop=[""])),
    ("stop[1]", CompleteRequest(stop=["a" * 256, "a" * 257])),
    ("stop[0]", CompleteRequest(stop=["é" * 129])),
    ("stop", CompleteRequest(stop=["a"] * 17)),
    ("logprobs", CompleteRequest(logprobs=-1)),
    ("logprobs", CompleteRequest(logprobs=21)),
    ("prompt_tokens.ids[1]", CompleteRequest(prompt_tokens=TokenIds(ids=[0, -1]))),
    ("prompt_tokens.ids[0]", CompleteRequest(prompt_tokens=TokenIds(ids=[SIZE]))),
    ("prompt_tokens.ids[0]", CompleteRequest(prompt_tokens=TokenIds(ids=[2**31 - 1]))),
    ("expected_position", CompleteRequest(session="sessions/x", expected_position=-1)),
)

GOOD_TURNS = (
    CompleteRequest(temperature=0.0),
    CompleteRequest(temperature=1e-45),
    CompleteRequest(temperature=3e38),
    CompleteRequest(top_k=0),
    CompleteRequest(top_k=2**31 - 1),
    CompleteRequest(top_p=1e-38),
    CompleteRequest(top_p=1.0),
    CompleteRequest(min_p=0.0),
    CompleteRequest(min_p=1.0),
    CompleteRequest(stop=["." * 256] * 16),
    CompleteRequest(logprobs=0),
    CompleteRequest(logprobs=20),
    CompleteRequest(seed=2**64 - 1),
    CompleteRequest(prompt_tokens=TokenIds(ids=[0, SIZE - 1])),
    CompleteRequest(prompt=""),
)


def turn(request: CompleteRequest, model: str = "", session: str = "") -> CompleteRequest:
    """The request with a model or a session, and with a prompt where it has no input."""
    whole = CompleteRequest(model=model, session=session)
    if request.WhichOneof("input") is None:
        whole.prompt = "a"
    whole.MergeFrom(request)
    return whole


def names_field(refusal: Refusal, field: str) -> bool:
    return (
        (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        and refusal.metadata == {"field": field}
        and refusal.fields == [field]
        and refusal.message.startswith(f"{field}: ")
        and refusal.retry_after is None
    )


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return cast("grpc.Call", error).code()


def goes_on(stubs: Stubs) -> bool:
    request = CompleteRequest(model="lstm", prompt="a", max_tokens=2)
    return len(stubs.completions.Complete(request, timeout=SECONDS).text) == 2


@pytest.fixture(scope="module")
def small(repository: Repository) -> Iterator[RunningServer]:
    """A server whose limits are soon reached."""
    flags = ["--max-sessions", "2", "--max-prompt-bytes", "100", "--max-tokens", str(LONG)]
    flags += ["--max-rows", "1", "--max-waiting", "0"]
    with running_server(repository.path, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def small_stubs(small: RunningServer) -> Iterator[Stubs]:
    with connected(small.address) as stubs:
        yield stubs


@pytest.mark.parametrize(("field", "request_"), BAD_TURNS, ids=str)
def test_a_bad_value_is_refused_by_the_name_of_its_field(
    stubs: Stubs, field: str, request_: CompleteRequest
) -> None:
    request = turn(request_, model="lstm")
    assert names_field(refused(stubs.completions.Complete, request), field)
    assert names_field(refused(stubs.completions.StreamComplete, request), field)
    assert goes_on(stubs)


def test_refused_turns_leave_a_session_as_it_was(repository: Repository, stubs: Stubs) -> None:
    session, oracle = stubs.create("lstm", seed=5), LoneSession(repository, "lstm", 5)
    stubs.tell(session, "abc")
    oracle.tell("abc")
    for _, request in BAD_TURNS:
        refused(stubs.completions.Complete, turn(request, session=session))
    assert stubs.position(session) == 3
    answer = stubs.completions.Complete(CompleteRequest(session=session, max_tokens=20))
    assert answer.text == oracle.draw(20)


@pytest.mark.parametrize("request_", GOOD_TURNS, ids=str)
def test_the_ends_of_every_range_are_allowed(stubs: Stubs, request_: CompleteRequest) -> None:
    request = turn(request_, model="lstm")
    request.max_tokens = 5
    answer = stubs.completions.Complete(request, timeout=SECONDS)
    assert len(answer.token_ids) == 5
    assert all(0 <= token < SIZE for token in answer.token_ids)


@pytest.mark.parametrize(
    "request_",
    [CompleteRequest(prompt="a"), CompleteRequest(), ScoreRequest(text="a")],
    ids=repr,
)
def test_a_turn_needs_a_model_or_a_session(stubs: Stubs, request_: Message) -> None:
    is_score = isinstance(request_, ScoreRequest)
    method = stubs.completions.Score if is_score else stubs.completions.Complete
    assert names_field(refused(method, request_), "model")


def test_a_session_of_another_model_is_refused(stubs: Stubs) -> None:
    session = stubs.create("gru")
    request = CompleteRequest(model="lstm", session=session, prompt="a")
    assert names_field(refused(stubs.completions.Complete, request), "model")
    assert stubs.position(session) == 0


@pytest.mark.parametrize("model", ["gru", "gru/1"])
def test_a_sessions_own_model_may_be_named(stubs: Stubs, model: str) -> None:
    request = CompleteRequest(model=model, session=stubs.create("gru"), prompt="a", max_tokens=1)
    assert stubs.completions.Complete(request, timeout=SECONDS).outcome.model == "gru/1"


@pytest.mark.parametrize("model", ["nope", "lstm/2", "lstm/", "lstm/01", "/1", "LSTM", "a\n\0é"])
def test_an_unknown_model_is_not_found(stubs: Stubs, model: str) -> None:
    calls: list[tuple[Callable[..., object], Message]] = [
        (stubs.completions.Complete, CompleteRequest(model=model, prompt="a")),
        (stubs.completions.StreamComplete, CompleteRequest(model=model, prompt="a")),
        (stubs.completions.Score, ScoreRequest(model=model, text="a")),
        (stubs.sessions.CreateSession, CreateSessionRequest(model=model)),
        (stubs.sessions.ListSessions, ListSessionsRequest(model=model)),
        (stubs.models.GetModel, GetModelRequest(name=model)),
    ]
    for method, request in calls:
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert refusal.metadata == {"model": model}
    assert goes_on(stubs)


def session_calls(stubs: Stubs, name: str) -> list[tuple[Callable[..., object], Message]]:
    return [
        (stubs.completions.Complete, CompleteRequest(session=name, prompt="a")),
        (stubs.completions.StreamComplete, CompleteRequest(session=name, prompt="a")),
        (stubs.completions.Score, ScoreRequest(session=name, text="a")),
        (stubs.sessions.GetSession, GetSessionRequest(name=name)),
        (stubs.sessions.ForkSession, ForkSessionRequest(name=name)),
        (stubs.sessions.DeleteSession, DeleteSessionRequest(name=name)),
    ]


@pytest.mark.parametrize("name", ["sessions/nope", "sessions/", "nope", "\0"])
def test_an_unknown_session_is_not_found(stubs: Stubs, name: str) -> None:
    for method, request in session_calls(stubs, name):
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        assert refusal.metadata == {"session": name}


def test_a_deleted_session_is_not_found(stubs: Stubs) -> None:
    name = stubs.create("lstm")
    stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))
    for method, request in session_calls(stubs, name):
        assert refused(method, request).reason == "SESSION_NOT_FOUND"
    assert goes_on(stubs)


def test_a_name_that_is_too_long_for_a_trailer_is_cut(stubs: Stubs) -> None:
    model = refused(stubs.completions.Complete, CompleteRequest(model="é" * 100_000, prompt="a"))
    assert model.code == "NOT_FOUND"
    assert model.metadata["model"].startswith("é" * 100)
    session = refused(stubs.completions.Complete, CompleteRequest(session="x" * 100_000))
    assert (session.code, session.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    request = CompleteRequest(session=stubs.create("gru"), model="\U0001f600" * 100_000)
    assert refused(stubs.completions.Complete, request).fields == ["model"]


def test_a_name_is_needed(stubs: Stubs) -> None:
    assert names_field(refused(stubs.sessions.CreateSession, CreateSessionRequest()), "model")
    assert names_field(refused(stubs.sessions.GetSession, GetSessionRequest()), "name")
    assert names_field(refused(stubs.sessions.ForkSession, ForkSessionRequest()), "name")
    assert names_field(refused(stubs.sessions.DeleteSession, DeleteSessionRequest()), "name")
    assert names_field(refused(stubs.models.GetModel, GetModelRequest()), "name")


@pytest.mark.parametrize(
    ("text", "offset"),
    [("éà", 0), ("日本", 0), ("ab😀c", 2), ("abc\r\n", 3), ("a\0", 1), ("😀" * 3, 0), ("aab ß", 4)],
)
def test_text_that_the_model_lacks_is_refused_with_its_offset(
    stubs: Stubs, text: str, offset: int
) -> None:
    prompt = refused(stubs.completions.Complete, CompleteRequest(model="lstm", prompt=text))
    assert (prompt.code, prompt.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TEXT")
    assert prompt.metadata == {"field": "prompt", "offset": str(offset)}
    assert prompt.fields == ["prompt"]
    score = refused(stubs.completions.Score, ScoreRequest(model="lstm", text=text))
    assert score.metadata == {"field": "text", "offset": str(offset)}
    assert goes_on(stubs)


def test_a_score_needs_an_input(stubs: Stubs) -> None:
    assert names_field(refused(stubs.completions.Score, ScoreRequest(model="lstm")), "text")


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("logprobs", ScoreRequest(model="lstm", text="a", logprobs=21)),
        ("logprobs", ScoreRequest(model="lstm", text="a", logprobs=-1)),
        ("tokens.ids[2]", ScoreRequest(model="lstm", tokens=TokenIds(ids=[0, 0, SIZE]))),
    ],
)
def test_a_bad_score_is_refused(stubs: Stubs, field: str, request_: ScoreRequest) -> None:
    assert names_field(refused(stubs.completions.Score, request_), field)
    assert goes_on(stubs)


@pytest.mark.parametrize("expected", [0, 2, 4, 2**62])
def test_a_wrong_expected_position_tells_the_right_one(stubs: Stubs, expected: int) -> None:
    session = stubs.create("lstm")
    stubs.tell(session, "abc")
    request = CompleteRequest(session=session, prompt="a", expected_position=expected)
    refusal = refused(stubs.completions.Complete, request)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
    assert refusal.metadata == {"session": session, "position": "3"}
    assert stubs.position(session) == 3


def test_the_right_expected_position_passes(stubs: Stubs) -> None:
    session = stubs.create("lstm")
    for position in (0, 2):
        request = CompleteRequest(
            session=session, prompt="a", max_tokens=1, expected_position=position
        )
        answer = stubs.completions.Complete(request, timeout=SECONDS)
        assert answer.outcome.position == position + 2


def test_without_a_start_token_there_is_nothing_to_continue_from(stubs: Stubs) -> None:
    session = stubs.create("gru")
    for request, name in (
        (CompleteRequest(session=session), session),
        (CompleteRequest(session=session, prompt=""), session),
        (CompleteRequest(model="gru"), ""),
    ):
        refusal = refused(stubs.completions.Complete, request)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOTHING_TO_CONTINUE")
        assert refusal.metadata == {"session": name}
    stubs.tell(session, "")
    assert stubs.position(session) == 0
    stubs.tell(session, "a")
    assert stubs.completions.Complete(CompleteRequest(session=session, max_tokens=3)).text


@pytest.mark.parametrize("count", [101, 1000])
def test_a_prompt_over_the_limit_is_refused(small_stubs: Stubs, count: int) -> None:
    complete, score = small_stubs.completions.Complete, small_stubs.completions.Score
    text, ids = "a" * count, TokenIds(ids=[0] * count)
    assert names_field(refused(complete, CompleteRequest(model="lstm", prompt=text)), "prompt")
    assert names_field(
        refused(complete, CompleteRequest(model="lstm", prompt_tokens=ids)), "prompt_tokens"
    )
    assert names_field(refused(score, ScoreRequest(model="lstm", text=text)), "text")
    assert names_field(refused(score, ScoreRequest(model="lstm", tokens=ids)), "tokens")
    assert goes_on(small_stubs)


def test_a_prompt_is_measured_in_bytes(small_stubs: Stubs) -> None:
    request = CompleteRequest(model="lstm", prompt="é" * 51)
    assert names_field(refused(small_stubs.completions.Complete, request), "prompt")
    request = CompleteRequest(model="lstm", prompt="é" * 50)
    assert refused(small_stubs.completions.Complete, request).reason == "UNKNOWN_TEXT"


def test_a_prompt_at_the_limit_passes(small_stubs: Stubs) -> None:
    request = CompleteRequest(model="lstm", prompt="a" * 100, max_tokens=0)
    answer = small_stubs.completions.Complete(request, timeout=SECONDS)
    assert answer.outcome.usage.prompt_tokens == 100
    score = ScoreRequest(model="lstm", tokens=TokenIds(ids=[0] * 100), logprobs=0)
    assert len(small_stubs.completions.Score(score, timeout=SECONDS).tokens) == 100


@pytest.mark.parametrize("size", [MEBIBYTE + 1, 15 * MEBIBYTE])
def test_the_default_limit_of_a_prompt_is_a_mebibyte(stubs: Stubs, size: int) -> None:
    request = CompleteRequest(model="lstm", prompt="a" * size)
    assert names_field(refused(stubs.completions.Complete, request), "prompt")
    assert goes_on(stubs)


def test_a_prompt_of_a_mebibyte_is_taken(stubs: Stubs, metrics: Metrics) -> None:
    request = CompleteRequest(model="lstm", prompt="a" * MEBIBYTE)
    call = stubs.completions.Complete.future(request, timeout=SECONDS)
    metrics.wait_for("unrolled_rows_active", 1, model="lstm/1")
    call.cancel()
    metrics.wait_for("unrolled_rows_active", 0, model="lstm/1")
    assert goes_on(stubs)


def test_a_message_over_16_mebibytes_is_refused(stubs: Stubs) -> None:
    request = CompleteRequest(model="lstm", prompt="a" * 16 * MEBIBYTE)
    with pytest.raises(grpc.RpcError) as caught:
        stubs.completions.Complete(request, timeout=SECONDS)
    assert code_of(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert goes_on(stubs)


def test_max_tokens_over_the_servers_own_limit_is_refused(small_stubs: Stubs) -> None:
    request = CompleteRequest(model="lstm", prompt="a", max_tokens=LONG + 1)
    assert names_field(refused(small_stubs.completions.Complete, request), "max_tokens")


def test_a_second_turn_on_a_busy_session_is_aborted(
    repository: Repository, server: RunningServer, stubs: Stubs
) -> None:
    session, oracle = stubs.create("lstm", seed=3), LoneSession(repository, "lstm", 3)
    stubs.tell(session, "abc")
    oracle.tell("abc")
    request = CompleteRequest(session=session, prompt="x")
    with unread_turn(server.address, request):
        for method in (stubs.completions.Complete, stubs.completions.StreamComplete):
            refusal = refused(method, CompleteRequest(session=session, prompt="a"))
            assert (refusal.code, refusal.reason) == ("ABORTED", "SESSION_BUSY")
            assert refusal.metadata == {"session": session}
        assert stubs.position(session) == 3
        score = stubs.completions.Score(ScoreRequest(session=session, text="d"))
        fork = stubs.sessions.ForkSession(ForkSessionRequest(name=session)).session
        assert fork.position == 3
    probe = LoneSession(repository, "lstm", 3)
    probe.tell("abc")
    assert [score.total_logprob] == probe.tell("d")
    answer = stubs.completions.Complete(CompleteRequest(session=fork.name, max_tokens=9))
    assert answer.text == oracle.draw(9)


@pytest.mark.parametrize("size", [-1, 1001, 2**31 - 1])
def test_a_bad_page_size_is_refused(stubs: Stubs, size: int) -> None:
    request = ListSessionsRequest(page_size=size)
    assert names_field(refused(stubs.sessions.ListSessions, request), "page_size")


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [
        *((0, 0), (-1, 0), (0, -1), (1, -1), (1, 1_000_000_000)),
        *((315_360_000, 1), (315_360_001, 0), (315_576_000_000, 0)),
    ],
)
def test_a_bad_idle_ttl_is_refused(stubs: Stubs, seconds: int, nanos: int) -> None:
    request = CreateSessionRequest(model="lstm")
    request.idle_ttl.seconds, request.idle_ttl.nanos = seconds, nanos
    assert names_field(refused(stubs.sessions.CreateSession, request), "idle_ttl")


def test_too_many_sessions_are_refused_until_one_goes(small_stubs: Stubs) -> None:
    first, second = small_stubs.create("lstm"), small_stubs.create("gru")
    for method, request in (
        (small_stubs.sessions.CreateSession, CreateSessionRequest(model="lstm")),
        (small_stubs.sessions.ForkSession, ForkSessionRequest(name=first)),
    ):
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
        assert refusal.metadata == {"limit": "2"}
    small_stubs.tell(second, "ab")
    assert small_stubs.position(second) == 2
    small_stubs.sessions.DeleteSession(DeleteSessionRequest(name=first))
    third = small_stubs.create("lstm")
    for name in (second, third):
        small_stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))


def test_a_full_server_says_when_to_come_back(small: RunningServer, small_stubs: Stubs) -> None:
    busy = CompleteRequest(model="lstm", prompt="a")
    with unread_turn(small.address, busy):
        refusal = refused(
            small_stubs.completions.Complete, CompleteRequest(model="lstm", prompt="a")
        )
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert refusal.metadata == {"limit": "1"}
        assert refusal.retry_after is not None
        assert refusal.retry_after > 0
        other = CompleteRequest(model="gru", prompt="a", max_tokens=2)
        assert len(small_stubs.completions.Complete(other, timeout=SECONDS).text) == 2
    Metrics(small.metrics_url).wait_for(
        "unrolled_rpc_handled_total",
        1,
        method="unrolled.v1.CompletionService/StreamComplete",
        code="CANCELLED",
    )
    assert goes_on(small_stubs)


@pytest.mark.parametrize("method", ["Complete", "StreamComplete", "Score", "Converse"])
@pytest.mark.parametrize("bytes_", [b"\xff\xff\xff", b"\x1a\x02\xff\xfe"], ids=["cut", "not UTF-8"])
def test_what_is_no_message_is_refused(
    server: RunningServer, stubs: Stubs, method: str, bytes_: bytes
) -> None:
    path = f"/unrolled.v1.CompletionService/{method}"
    with grpc.insecure_channel(server.address) as channel:

        def call(_: Message, timeout: float) -> object:
            if method == "Converse":
                many: Raw = channel.stream_stream(path)
                return many(iter([bytes_]), timeout=timeout)
            make = channel.unary_stream if method == "StreamComplete" else channel.unary_unary
            one: Raw = make(path)
            return one(bytes_, timeout=timeout)

        assert names_field(refused(call, CompleteRequest()), "request")
    assert goes_on(stubs)


def test_an_unknown_method_is_unimplemented(server: RunningServer, stubs: Stubs) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: Raw = channel.unary_unary("/unrolled.v1.CompletionService/Nope")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=SECONDS)
    assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED
    assert goes_on(stubs)

"""Turns with a request_id: run once, however often and over whatever call they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
import pytest
from support.calls import SECONDS, Refusal, Stubs, refusal_of_status, refused, unread_turn
from support.lone import LoneSession
from support.metrics import Metrics, eventually
from support.models import Repository
from support.server import RunningServer
from unrolled import (
    Aborted,
    AsyncClient,
    Client,
    CompletionOptions,
    Conversation,
    FailedPrecondition,
    SessionBusy,
)
from unrolled.v1.completion_pb2 import (
    DURABILITY_MEMORY,
    FINISH_REASON_STOPPED,
    CompleteEvent,
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    ConverseResponse,
    TokenIds,
)
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
)

Feed = ConverseRequest.Feed
SEED = 29
TURNS = 1000
WRITERS = 100


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address, timeout=SECONDS) as client:
        yield client


def conversed(stubs: Stubs, session: str, *commands: ConverseRequest) -> list[ConverseResponse]:
    """The events of commands to a session, but for that of its opening."""
    opening = ConverseRequest(open=ConverseRequest.Open(session=session))
    call = stubs.completions.Converse(iter([opening, *commands]), timeout=SECONDS)
    opened, *events = cast("Iterator[ConverseResponse]", call)
    assert opened.opened.name == session
    return events


def joined(events: list[Any]) -> CompleteResponse:
    """The deltas and the outcome of one turn as one answer."""
    *deltas, last = events
    return CompleteResponse(
        text="".join(event.delta.text for event in deltas),
        token_ids=[token for event in deltas for token in event.delta.token_ids],
        logprobs=[logprob for event in deltas for logprob in event.delta.logprobs],
        outcome=last.outcome,
    )


def unary(stubs: Stubs, request: CompleteRequest) -> CompleteResponse:
    return stubs.completions.Complete(request, timeout=SECONDS)


def streamed(stubs: Stubs, request: CompleteRequest) -> CompleteResponse:
    call = stubs.completions.StreamComplete(request, timeout=SECONDS)
    return joined(list(cast("Iterator[CompleteEvent]", call)))


def in_conversation(stubs: Stubs, request: CompleteRequest) -> CompleteResponse:
    complete = CompleteRequest()
    complete.CopyFrom(request)
    complete.ClearField("session")
    return joined(conversed(stubs, request.session, ConverseRequest(complete=complete)))


Way = Callable[[Stubs, CompleteRequest], CompleteResponse]
WAYS: tuple[Way, ...] = (unary, streamed, in_conversation)
first_way = pytest.mark.parametrize("first", WAYS, ids=lambda way: way.__name__)
second_way = pytest.mark.parametrize("second", WAYS, ids=lambda way: way.__name__)


def as_replayed(answer: CompleteResponse) -> CompleteResponse:
    """How a turn's answer comes when the turn is repeated."""
    assert not answer.outcome.replayed
    again = CompleteResponse()
    again.CopyFrom(answer)
    again.outcome.replayed = True
    return again


@first_way
@second_way
def test_a_repeated_turn_is_answered_as_it_was(
    repository: Repository, stubs: Stubs, first: Way, second: Way
) -> None:
    session, lone = stubs.create("lstm", SEED), LoneSession(repository, "lstm", SEED)
    request = CompleteRequest(
        session=session, prompt="abc", max_tokens=40, logprobs=3, request_id="r"
    )
    answer = first(stubs, request)
    lone.tell("abc")
    assert answer.text == lone.draw(40)
    assert (answer.outcome.position, answer.outcome.durability) == (43, DURABILITY_MEMORY)
    for _ in range(2):
        assert second(stubs, request) == as_replayed(answer)
    assert stubs.position(session) == 43
    assert unary(stubs, CompleteRequest(session=session, max_tokens=9)).text == lone.draw(9)
    assert second(stubs, request) == as_replayed(answer)


@second_way
@pytest.mark.parametrize(
    "request_",
    [
        CompleteRequest(prompt="abc", max_tokens=0, request_id="r"),
        CompleteRequest(prompt="abc", max_tokens=500, stop=["e"], request_id="r"),
        CompleteRequest(prompt_tokens=TokenIds(ids=[1, 2, 3]), seed=4, request_id="r"),
        CompleteRequest(model="lstm", max_tokens=3, expected_position=0, request_id="r" * 128),
    ],
    ids=["told", "stopped", "tokens", "expected"],
)
def test_whatever_was_asked(stubs: Stubs, second: Way, request_: CompleteRequest) -> None:
    request = CompleteRequest(session=stubs.create("lstm", SEED))
    request.MergeFrom(request_)
    answer = unary(stubs, request)
    assert answer.outcome.position > 0
    # In a conversation the model follows from the session.
    request.model = ""
    assert second(stubs, request) == as_replayed(answer)
    assert stubs.position(request.session) == answer.outcome.position


@pytest.mark.parametrize(
    "command",
    [
        ConverseRequest(feed=Feed(text="abc", request_id="r")),
        ConverseRequest(score=Feed(text="abc", request_id="r")),
        ConverseRequest(score=Feed(text="abc", logprobs=2, request_id="r")),
        ConverseRequest(score=Feed(tokens=TokenIds(ids=[5] * 30_000), request_id="r")),
    ],
    ids=["feed", "score", "scores", "long score"],
)
def test_repeated_feeds_and_scores_cause_the_same_events(
    stubs: Stubs, command: ConverseRequest
) -> None:
    session = stubs.create("lstm", SEED)
    events = conversed(stubs, session, command)
    position = events[-1].outcome.position
    assert not events[-1].outcome.replayed
    events[-1].outcome.replayed = True
    again = conversed(stubs, session, command, command)
    assert again == events + events
    assert stubs.position(session) == position


def test_a_completion_that_was_stopped_is_repeated_as_it_ended(
    stubs: Stubs, client: Client
) -> None:
    """A stop is no part of the payload: it makes the turn end, and that is how it ended."""
    session = stubs.create("lstm", SEED)
    with client.converse() as talk:
        talk.open(session=session)
        talk.complete("x", max_tokens=60_000, request_id="r")
        assert next(talk).opened.name == session
        first = next(talk)
        assert first.delta.token_ids
        talk.stop()
        answer = joined([first, *until_outcome(talk)])
    assert answer.outcome.finish_reason == FINISH_REASON_STOPPED
    request = CompleteRequest(session=session, prompt="x", max_tokens=60_000, request_id="r")
    assert unary(stubs, request) == as_replayed(answer)


def test_a_stop_is_for_the_completion_after_one_that_was_repeated(client: Client) -> None:
    with client.create_session("lstm", seed=SEED) as session, client.converse() as talk:
        talk.open(session=session.name)
        next(talk)
        for _ in range(50):
            talk.complete("a", max_tokens=5, request_id="r")
            short = until_outcome(talk)
            talk.complete("x", max_tokens=60_000)
            talk.stop()
            assert until_outcome(talk)[-1].outcome.finish_reason == FINISH_REASON_STOPPED
    assert short[-1].outcome.replayed


def test_a_client_stays_where_its_session_is(client: Client) -> None:
    with client.create_session("lstm", seed=SEED) as session:
        first = session.feed("abc", request_id="first")
        session.feed("d", request_id="second")
        again = session.feed("abc", request_id="first")
        assert (again.replayed, again.position) == (True, first.position)
        assert session.position == 4


def until_outcome(talk: Conversation) -> list[ConverseResponse]:
    """The events of one turn."""
    events = [next(talk)]
    while not events[-1].HasField("outcome"):
        events.append(next(talk))
    return events


# Lost replies


@contextmanager
def stepping(
    client: Client, stubs: Stubs, repository: Repository
) -> Iterator[Callable[[int, bool], None]]:
    """Turns of one session whose first reply is lost, after the commit for sure or at any time."""
    lone = LoneSession(repository, "gru", SEED)
    with client.create_session("gru", seed=SEED) as session:

        def step(number: int, committed: bool) -> None:
            options = CompletionOptions(max_tokens=2, request_id=f"turn {number}")
            start = lone.position
            lost = session.stream("a", **options)
            if committed:
                eventually(lambda: stubs.position(session.name) > start, "the commit")
            lost.cancel()
            answer = repeated(lambda: session.complete("a", **options))
            lone.tell("a")
            assert answer.text == lone.draw(2)
            assert answer.outcome.replayed or not committed
            assert answer.outcome.position == session.position == lone.position

        yield step
        assert stubs.position(session.name) == lone.position


def repeated(call: Callable[[], CompleteResponse]) -> CompleteResponse:
    """The answer of a call that meets its first attempt, until that has ended."""
    while True:
        try:
            return call()
        except SessionBusy:
            continue


def test_a_thousand_lost_replies(client: Client, stubs: Stubs, repository: Repository) -> None:
    with stepping(client, stubs, repository) as step:
        for number in range(TURNS):
            step(number, True)


def test_a_reply_lost_at_any_time(client: Client, stubs: Stubs, repository: Repository) -> None:
    with stepping(client, stubs, repository) as step:
        for number in range(200):
            step(number, False)


async def test_a_hundred_writers_at_one_position(server: RunningServer) -> None:
    async with (
        AsyncClient(server.address, timeout=SECONDS) as client,
        client.create_session("lstm") as session,
    ):
        await session.feed("abc")

        async def write(number: int) -> CompleteResponse:
            return await client.complete(
                "d",
                session=session.name,
                max_tokens=4,
                expected_position=3,
                request_id=str(number),
            )

        async def all_write() -> list[CompleteResponse | BaseException]:
            return await asyncio.gather(*map(write, range(WRITERS)), return_exceptions=True)

        first, second = await all_write(), await all_write()
        (winner,) = (place for place, it in enumerate(first) if isinstance(it, CompleteResponse))
        won, again = first[winner], second.pop(winner)
        assert isinstance(won, CompleteResponse)
        assert won.outcome.position == 8
        assert again == as_replayed(won)
        losers = [it for place, it in enumerate(first) if place != winner]
        assert all(isinstance(it, FailedPrecondition | Aborted) for it in losers)
        for loser in second:
            assert isinstance(loser, FailedPrecondition)
            assert loser.metadata == {"session": session.name, "position": "8"}
        await session.refresh()
        assert session.position == 8


# What is not on record


def test_while_its_turn_is_under_way_a_request_is_aborted(
    server: RunningServer, stubs: Stubs
) -> None:
    session = stubs.create("lstm")
    before = CompleteRequest(session=session, prompt="a", max_tokens=4, request_id="before")
    answer = unary(stubs, before)
    request = CompleteRequest(session=session, prompt="x", request_id="r")
    with unread_turn(server.address, request):
        for again in (request, CompleteRequest(session=session, prompt="y", request_id="r")):
            refusal = refused(stubs.completions.Complete, again)
            assert (refusal.code, refusal.reason) == ("ABORTED", "SESSION_BUSY")
            assert refusal.metadata == {"session": session}
        assert unary(stubs, before) == as_replayed(answer)
    # It was cancelled, and any payload may take the name.
    request.max_tokens = 3
    anew = None
    while anew is None:
        try:
            anew = unary(stubs, request)
        except grpc.RpcError as error:
            assert cast("grpc.Call", error).code() is grpc.StatusCode.ABORTED  # noqa: PT017
    assert (anew.outcome.replayed, anew.outcome.position) == (False, 9)


def test_a_turn_whose_answer_had_to_make_room_is_not_run_again(stubs: Stubs) -> None:
    session = stubs.create("lstm")
    # 40,000 bytes at least: two of them are more than a session keeps.
    one, two = (
        CompleteRequest(session=session, prompt="a", max_tokens=20_000, request_id=name)
        for name in ("one", "two")
    )
    unary(stubs, one)
    answer = unary(stubs, two)
    refusal = refused(stubs.completions.Complete, one)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
    assert refusal.metadata == {"session": session, "position": str(answer.outcome.position)}
    assert unary(stubs, two) == as_replayed(answer)
    assert stubs.position(session) == answer.outcome.position


def test_a_turn_that_failed_is_run_when_it_is_repeated(stubs: Stubs) -> None:
    session = stubs.create("lstm")
    unknown = CompleteRequest(session=session, prompt="é", max_tokens=4, request_id="r")
    elsewhere = CompleteRequest(session=session, prompt="a", expected_position=9, request_id="r")
    assert refused(stubs.completions.Complete, unknown).reason == "UNKNOWN_TEXT"
    assert refused(stubs.completions.Complete, unknown).reason == "UNKNOWN_TEXT"
    assert refused(stubs.completions.StreamComplete, elsewhere).reason == "POSITION_MISMATCH"
    request = CompleteRequest(session=session, prompt="a", max_tokens=4, request_id="r")
    answer = unary(stubs, request)
    assert (answer.outcome.replayed, answer.outcome.position) == (False, 5)


def test_a_repeated_turn_is_known_before_its_position_is_compared(stubs: Stubs) -> None:
    session = stubs.create("lstm")
    request = CompleteRequest(
        session=session, prompt="a", max_tokens=4, expected_position=0, request_id="r"
    )
    answer = unary(stubs, request)
    assert unary(stubs, request) == as_replayed(answer)
    request.request_id = "other"
    refusal = refused(stubs.completions.Complete, request)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
    assert refusal.metadata == {"session": session, "position": "5"}


OTHERS = (
    {"prompt": "ab"},
    {"prompt_tokens": TokenIds(ids=[0])},
    {"max_tokens": 5},
    {"temperature": 0.5},
    {"top_k": 0},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"seed": 1},
    {"stop": ["a"]},
    {"logprobs": 0},
    {"expected_position": 5},
)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_a_request_id_is_for_one_payload(stubs: Stubs, other: dict[str, Any]) -> None:
    session = stubs.create("lstm")
    given: dict[str, Any] = {"prompt": "a", "max_tokens": 4, "request_id": "Ω"}
    answer = unary(stubs, CompleteRequest(session=session, **given))
    if "prompt_tokens" in other:
        del given["prompt"]
    request = CompleteRequest(session=session, **{**given, **other})
    for method in (stubs.completions.Complete, stubs.completions.StreamComplete):
        expect_reused(refused(method, request), "Ω", "request_id")
    assert stubs.position(session) == 5
    given = {"prompt": "a", "max_tokens": 4, "request_id": "Ω"}
    assert unary(stubs, CompleteRequest(session=session, **given)) == as_replayed(answer)


def expect_reused(refusal: Refusal, request_id: str, field: str) -> None:
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert (refusal.metadata, refusal.fields) == ({"request_id": request_id}, [field])
    assert refusal.message.startswith(f"{field}: ")


def test_a_command_is_part_of_the_payload(stubs: Stubs) -> None:
    session = stubs.create("lstm")
    feed = Feed(text="abc", request_id="r")
    complete = CompleteRequest(prompt="abc", max_tokens=0, request_id="r")
    fed, *errors = conversed(
        stubs,
        session,
        ConverseRequest(feed=feed),
        ConverseRequest(score=feed),
        ConverseRequest(complete=complete),
    )
    assert fed.outcome.position == 3
    for field, event in zip(("score", "complete"), errors, strict=True):
        expect_reused(refusal_of_status(event.error), "r", f"{field}.request_id")
    assert stubs.position(session) == 3


@pytest.mark.parametrize("method", ["Complete", "StreamComplete"])
@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (CompleteRequest(model="lstm", request_id="r"), "session"),
        (CompleteRequest(model="lstm", request_id="r" * 129), "129 characters"),
    ],
    ids=["no session", "too long"],
)
def test_a_request_id_that_cannot_be(
    stubs: Stubs, method: str, request_: CompleteRequest, problem: str
) -> None:
    refusal = refused(getattr(stubs.completions, method), request_)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (refusal.metadata, refusal.fields) == ({"field": "request_id"}, ["request_id"])
    assert problem in refusal.message


def test_a_repeated_turn_has_to_name_its_own_model(stubs: Stubs) -> None:
    request = CompleteRequest(session=stubs.create("lstm"), prompt="a", request_id="r")
    unary(stubs, request)
    request.model = "gru"
    refusal = refused(stubs.completions.Complete, request)
    assert (refusal.code, refusal.metadata) == ("INVALID_ARGUMENT", {"field": "model"})


def test_answers_are_the_sessions_own(stubs: Stubs) -> None:
    request = CompleteRequest(prompt="a", max_tokens=4, request_id="r")
    request.session = parent = stubs.create("lstm", SEED)
    answer = unary(stubs, request)
    child = stubs.sessions.ForkSession(ForkSessionRequest(name=parent)).session.name
    for session, position in ((child, 10), (stubs.create("lstm", SEED), 5)):
        request.session = session
        other = unary(stubs, request)
        assert (other.outcome.replayed, other.outcome.position) == (False, position)
    request.session = parent
    assert unary(stubs, request) == as_replayed(answer)
    stubs.sessions.DeleteSession(DeleteSessionRequest(name=parent))
    assert refused(stubs.completions.Complete, request).reason == "SESSION_NOT_FOUND"
    # The next session lies where the deleted one lay.
    request.session = stubs.create("lstm", SEED)
    assert not unary(stubs, request).outcome.replayed


@first_way
def test_a_turn_whose_answer_is_too_large_is_not_run_again(stubs: Stubs, first: Way) -> None:
    session = stubs.create("lstm")
    small = CompleteRequest(session=session, prompt="a", max_tokens=4, request_id="small")
    answer = unary(stubs, small)
    large = CompleteRequest(session=session, max_tokens=400, logprobs=20, request_id="large")
    assert first(stubs, large).ByteSize() > 65536
    for method in (stubs.completions.Complete, stubs.completions.StreamComplete):
        refusal = refused(method, large)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
        assert refusal.metadata == {"session": session, "position": "405"}
    assert unary(stubs, small) == as_replayed(answer)
    large.logprobs = 0
    assert refused(stubs.completions.Complete, large).reason == "REQUEST_ID_REUSED"


def test_a_repeated_turn_is_no_use_of_the_session(stubs: Stubs, metrics: Metrics) -> None:
    creation = CreateSessionRequest(model="lstm")
    creation.idle_ttl.seconds = 3600
    session = stubs.sessions.CreateSession(creation).session.name
    request = CompleteRequest(session=session, prompt="a", request_id="r")
    unary(stubs, request)
    before = stubs.sessions.GetSession(GetSessionRequest(name=session))
    replays = metrics.value("unrolled_replays_total")
    assert unary(stubs, request).outcome.replayed
    assert stubs.sessions.GetSession(GetSessionRequest(name=session)) == before
    assert metrics.value("unrolled_replays_total") == replays + 1

"""Two servers on one Redis: sessions that go from one to the other, and what can go wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.calls import (
    SECONDS,
    Refusal,
    Stubs,
    refusal_of,
    refusal_of_status,
    refused,
    unread_turn,
)
from support.lone import LoneSession
from support.metrics import eventually
from support.models import Repository
from support.redis import RunningRedis, running_redis
from support.stored import Serving, serving
from unrolled.v1.completion_pb2 import (
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    TokenIds,
)
from unrolled.v1.session_pb2 import (
    CheckpointSessionRequest,
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    RewindSessionRequest,
)

LARGE = 1 << 16
"""Tokens whose log-probabilities, with 20 others each, do not fit in one message."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RunningRedis]:
    with running_redis(tmp_path) as redis:
        yield redis


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RunningRedis]:
    """What it has answered outlives its end."""
    with running_redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as redis:
        yield redis


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """One that nobody stops."""
    with running_redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def pair(repository: Repository, shared_redis: RunningRedis) -> Iterator[tuple[Serving, Serving]]:
    """Two servers that stay."""
    url = shared_redis.url
    # A hundred calls on one session wait for one another.
    patient = ("--store-timeout", "60s")
    with (
        serving(repository.path, url, *patient) as one,
        serving(repository.path, url, *patient) as other,
    ):
        yield one, other


def turn(
    stubs: Stubs, session: str, prompt: str, drawn: int, request_id: str = ""
) -> CompleteResponse:
    request = CompleteRequest(
        session=session, prompt=prompt, max_tokens=drawn, request_id=request_id
    )
    return stubs.completions.Complete(request, timeout=SECONDS)


def read_on(call: grpc.Call) -> Refusal:
    """Read a stream that is bound to fail to its end."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:  # type: ignore[attr-defined]
            pass
    return refusal_of(caught.value)


# Sessions that move


def test_a_session_goes_from_server_to_server_bit_for_bit(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "lstm", 9)
    name = pair[0].stubs.create("lstm", seed=9)
    for number in (0, 1, 1, 0, 1, 0, 0):
        lone.tell("abc")
        assert turn(pair[number].stubs, name, "abc", 5).text == lone.draw(5)
        for each in pair:
            assert each.stubs.position(name) == lone.position
    fork = ForkSessionRequest(name=name)
    child = pair[1].stubs.sessions.ForkSession(fork, timeout=SECONDS).session.name
    assert turn(pair[0].stubs, child, "", 9).text == lone.draw(9)


def test_a_session_goes_back_on_one_server_and_on_from_there_on_the_other(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "lstm", 11)
    one, other = (each.stubs for each in pair)
    request = CreateSessionRequest(model="lstm", seed=11, undo=True)
    name = one.sessions.CreateSession(request, timeout=SECONDS).session.name
    lone.tell("abc")
    assert turn(one, name, "abc", 5, "first").text == lone.draw(5)
    here = lone.position
    mark = CheckpointSessionRequest(name=name, checkpoint="here")
    other.sessions.CheckpointSession(mark, timeout=SECONDS)
    for stubs, back in ((one, other), (other, one)):
        for checkpoint in ("", "here"):
            assert turn(stubs, name, "c", 7, "second").outcome.replayed is False
            rewind = RewindSessionRequest(name=name, checkpoint=checkpoint)
            rewound = back.sessions.RewindSession(rewind, timeout=SECONDS).session
            assert rewound.position == stubs.position(name) == here
    assert turn(other, name, "abc", 5, "first").outcome.replayed
    lone.tell("b")
    assert turn(one, name, "b", 9).text == lone.draw(9)


def test_what_one_server_ends_is_gone_on_the_other(pair: tuple[Serving, Serving]) -> None:
    one, other = (each.stubs for each in pair)
    name = one.create("lstm")
    turn(one, name, "a", 3)
    turn(other, name, "a", 3)
    listed = other.sessions.ListSessions(ListSessionsRequest(), timeout=SECONDS).sessions
    assert [s.position for s in listed if s.name == name] == [8]
    one.sessions.DeleteSession(DeleteSessionRequest(name=name), timeout=SECONDS)
    get = GetSessionRequest(name=name)
    for stubs in (one, other):
        assert refused(stubs.sessions.GetSession, get).reason == "SESSION_NOT_FOUND"
        listed = stubs.sessions.ListSessions(ListSessionsRequest(), timeout=SECONDS).sessions
        assert name not in [session.name for session in listed]


def test_of_a_hundred_writers_at_one_position_one_wins(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "lstm", 4)
    name = pair[0].stubs.create("lstm", seed=4)
    for _ in range(3):
        request = CompleteRequest(
            session=name, prompt="ab", max_tokens=6, expected_position=lone.position
        )
        calls = [
            pair[number % 2].stubs.completions.Complete.future(request, timeout=SECONDS)
            for number in range(100)
        ]
        lone.tell("ab")
        text = lone.draw(6)
        refusals = []
        for call in calls:
            if (error := call.exception()) is None:
                assert call.result().text == text
            else:
                assert isinstance(error, grpc.RpcError)
                refusals.append(refusal_of(error))
        assert len(refusals) == 99
        assert {(r.code, r.reason) for r in refusals} <= {
            ("FAILED_PRECONDITION", "POSITION_MISMATCH"),
            ("ABORTED", "SESSION_BUSY"),
            ("ABORTED", "FENCED"),
        }
        for each in pair:
            assert each.stubs.position(name) == lone.position


def test_a_lost_reply_is_repeated_by_the_other_server(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "gru", 5)
    name = pair[0].stubs.create("gru", seed=5)
    for number in range(40):
        first, second = pair[number % 2].stubs, pair[1 - number % 2].stubs
        answer = turn(first, name, "xy", 3, f"turn {number}")
        again = turn(second, name, "xy", 3, f"turn {number}")
        lone.tell("xy")
        assert answer.text == again.text == lone.draw(3)
        assert (answer.outcome.replayed, again.outcome.replayed) == (False, True)
        again.outcome.replayed = False
        assert again == answer
        assert first.position(name) == second.position(name) == lone.position


def test_an_id_under_way_on_both_servers_runs_once(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "lstm", 6)
    name = pair[0].stubs.create("lstm", seed=6)
    for number in range(20):
        request = CompleteRequest(
            session=name, prompt="q", max_tokens=4, request_id=f"turn {number}"
        )
        calls = [
            each.stubs.completions.Complete.future(request, timeout=SECONDS)
            for each in (*pair, *pair)
        ]
        lone.tell("q")
        text = lone.draw(4)
        answers = [call.result() for call in calls if call.exception() is None]
        assert {answer.text for answer in answers} == {text}
        assert sum(not answer.outcome.replayed for answer in answers) == 1
        for call in calls:
            if (error := call.exception()) is not None:
                assert isinstance(error, grpc.RpcError)
                assert refusal_of(error).code == "ABORTED"
        assert pair[0].stubs.position(name) == lone.position


# Owners that are paused


def test_an_owner_that_was_paused_is_refused(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    owner, other = pair
    lone = LoneSession(repository, "lstm", 7)
    name = owner.stubs.create("lstm", seed=7)
    lone.tell("ab")
    assert turn(owner.stubs, name, "ab", 6).text == lone.draw(6)
    with unread_turn(owner.server.address, CompleteRequest(session=name, prompt="z")) as call:
        owner.server.process.send_signal(signal.SIGSTOP)
        try:
            lone.tell("cd")
            assert turn(other.stubs, name, "cd", 8).text == lone.draw(8)
        finally:
            owner.server.process.send_signal(signal.SIGCONT)
        refusal = read_on(call)
    assert (refusal.code, refusal.reason) == ("ABORTED", "FENCED")
    assert refusal.metadata == {"session": name}
    for stubs in (owner.stubs, other.stubs):
        assert stubs.position(name) == lone.position
    lone.tell("e")
    assert turn(owner.stubs, name, "e", 5).text == lone.draw(5)


def test_a_turn_that_lost_its_session_ends_when_that_is_noticed(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    owner, other = pair
    lone = LoneSession(repository, "lstm", 8)
    name = owner.stubs.create("lstm", seed=8)
    with unread_turn(owner.server.address, CompleteRequest(session=name, prompt="z")) as call:
        busy = refused(owner.stubs.completions.Complete, CompleteRequest(session=name, prompt="a"))
        assert (busy.code, busy.reason) == ("ABORTED", "SESSION_BUSY")
        lone.tell("cd")
        assert turn(other.stubs, name, "cd", 8).text == lone.draw(8)
        lone.tell("e")
        assert turn(owner.stubs, name, "e", 5).text == lone.draw(5)
        refusal = read_on(call)
    assert (refusal.code, refusal.reason) == ("ABORTED", "FENCED")
    assert other.stubs.position(name) == lone.position


def test_a_request_at_another_position_takes_nothing_over(pair: tuple[Serving, Serving]) -> None:
    owner, other = pair
    name = owner.stubs.create("lstm")
    with unread_turn(owner.server.address, CompleteRequest(session=name, prompt="z")) as call:
        late = CompleteRequest(session=name, prompt="a", expected_position=3)
        refusal = refused(other.stubs.completions.Complete, late)
        assert (refusal.reason, refusal.metadata["position"]) == ("POSITION_MISMATCH", "0")
        assert other.stubs.position(name) == 0
        for _ in call:  # type: ignore[attr-defined]
            pass
    assert other.stubs.position(name) == owner.stubs.position(name) == 6001


@pytest.mark.parametrize("was_owner", [False, True])
def test_what_is_refused_takes_nothing_over(pair: tuple[Serving, Serving], was_owner: bool) -> None:
    """Whether or not the server that refuses it had the session's last turn but one."""
    owner, other = pair
    name = owner.stubs.create("lstm")
    if was_owner:
        other.stubs.tell(name, "")
    with unread_turn(owner.server.address, CompleteRequest(session=name, prompt="z")) as call:
        complete = other.stubs.completions.Complete
        for request, reason in (
            (CompleteRequest(session=name, prompt="\u2603"), "UNKNOWN_TEXT"),
            (CompleteRequest(session=name, max_tokens=10**8), "INVALID_FIELD"),
            (CompleteRequest(session=name, model="gru"), "INVALID_FIELD"),
            (CompleteRequest(session=name, max_tokens=LARGE, logprobs=20), "INVALID_FIELD"),
        ):
            assert refused(complete, request).reason == reason
        assert refused_score(other.stubs, name).reason == "INVALID_FIELD"
        sessions = other.stubs.sessions
        undo, back = (RewindSessionRequest(name=name, checkpoint=to) for to in ("", "never"))
        assert refused(sessions.RewindSession, undo).reason == "NOTHING_TO_UNDO"
        assert refused(sessions.RewindSession, back).reason == "CHECKPOINT_NOT_FOUND"
        for _ in call:  # type: ignore[attr-defined]
            pass
    assert other.stubs.position(name) == owner.stubs.position(name) == 6001


def refused_score(stubs: Stubs, name: str) -> Refusal:
    """Of a text whose scores do not fit in one message."""
    score = ConverseRequest.Feed(tokens=TokenIds(ids=[1] * LARGE), logprobs=20)
    commands = (
        ConverseRequest(open=ConverseRequest.Open(session=name)),
        ConverseRequest(score=score),
    )
    *_, answer = stubs.completions.Converse(iter(commands), timeout=SECONDS)
    return refusal_of_status(answer.error)


# Redis that is not there


class Health:
    """What a server's health service says."""

    def __init__(self, channel: grpc.Channel) -> None:
        # Its published types know no methods.
        self._stub: Any = HealthStub(channel)

    def serves(self, service: str = "") -> bool:
        request = HealthCheckRequest(service=service)
        answer = self._stub.Check(request, timeout=SECONDS)
        return bool(answer.status == HealthCheckResponse.SERVING)

    def wait_for(self, serves: bool) -> None:
        """Return once readiness is so; liveness has to be on all the while."""
        names = ("", "unrolled.v1.CompletionService")
        eventually(lambda: {self.serves(name) for name in names} == {serves}, f"{serves}")
        assert self.serves("liveness")


@contextmanager
def watched(
    repository: Repository, redis: RunningRedis, timeout: str
) -> Iterator[tuple[Serving, Health]]:
    """A server that waits so long for its store, and what it says of its health."""
    with (
        serving(repository.path, redis.url, "--store-timeout", timeout) as here,
        grpc.insecure_channel(here.server.address) as channel,
    ):
        yield here, Health(channel)


def is_unavailable(refusal: Refusal) -> bool:
    code_and_reason = (refusal.code, refusal.reason, refusal.retry_after)
    return code_and_reason == ("UNAVAILABLE", "STORE_UNAVAILABLE", 1.0)


@pytest.fixture
def alone(repository: Repository, redis: RunningRedis) -> Iterator[tuple[Serving, Health]]:
    """A server that does not wait long, but for a store that is there on a busy machine."""
    with watched(repository, redis, "3s") as both:
        yield both


def test_a_commit_that_was_given_up_is_not_carried_out_later(
    repository: Repository, redis: RunningRedis, alone: tuple[Serving, Health]
) -> None:
    """It waits in Redis's socket, and nothing else has been asked of the session since."""
    here, health = alone
    lone = LoneSession(repository, "lstm", 3)
    name = here.stubs.create("lstm", seed=3)
    lone.tell("ab")
    assert turn(here.stubs, name, "ab", 4).text == lone.draw(4)
    with unread_turn(here.server.address, CompleteRequest(session=name, prompt="z")) as call:
        redis.stop()
        assert is_unavailable(read_on(call))
    redis.go_on()
    with redis.client() as client:
        assert client.hget(session_key(name), "position") == str(lone.position).encode()
    health.wait_for(serves=True)
    assert here.stubs.position(name) == lone.position
    lone.tell("c")
    assert turn(here.stubs, name, "c", 4).text == lone.draw(4)


def test_a_redis_that_stands_still_fails_turns_and_is_got_over(
    repository: Repository, redis: RunningRedis, alone: tuple[Serving, Health]
) -> None:
    here, health = alone
    stubs, lone = here.stubs, LoneSession(repository, "lstm", 3)
    name = stubs.create("lstm", seed=3)
    lone.tell("ab")
    assert turn(stubs, name, "ab", 4).text == lone.draw(4)
    health.wait_for(serves=True)
    with unread_turn(here.server.address, CompleteRequest(session=name, prompt="z")) as call:
        redis.stop()
        # This one has begun, and its commit waits in Redis's socket.
        assert is_unavailable(read_on(call))
    turn_c = CompleteRequest(session=name, prompt="c", max_tokens=4)
    assert is_unavailable(refused(stubs.completions.Complete, turn_c))
    assert is_unavailable(refused(stubs.sessions.GetSession, GetSessionRequest(name=name)))
    health.wait_for(serves=False)
    redis.go_on()
    health.wait_for(serves=True)
    assert stubs.position(name) == lone.position
    lone.tell("c")
    assert stubs.completions.Complete(turn_c, timeout=SECONDS).text == lone.draw(4)
    assert here.metrics.value("unrolled_store_errors_total", kind="unavailable") >= 3


def test_a_redis_that_was_ended_and_started_has_every_answered_turn(
    repository: Repository, lasting_redis: RunningRedis
) -> None:
    # One that is gone refuses connections: nobody waits for it.
    with watched(repository, lasting_redis, "60s") as (here, health):
        ends_and_starts(repository, lasting_redis, here.stubs, health)


def ends_and_starts(
    repository: Repository, redis: RunningRedis, stubs: Stubs, health: Health
) -> None:
    lone = [LoneSession(repository, "gru", seed) for seed in range(5)]
    names = [stubs.create("gru", seed=seed) for seed in range(5)]
    for _ in range(2):
        for name, expected in zip(names, lone, strict=True):
            expected.tell("ab")
            assert turn(stubs, name, "ab", 4).text == expected.draw(4)
        redis.end()
        for name in names:
            request = CompleteRequest(session=name, prompt="c", max_tokens=4)
            assert is_unavailable(refused(stubs.completions.Complete, request))
        health.wait_for(serves=False)
        redis.start()
        health.wait_for(serves=True)
    for name, expected in zip(names, lone, strict=True):
        expected.tell("c")
        assert turn(stubs, name, "c", 4).text == expected.draw(4)


def test_a_redis_that_fell_back_is_noticed(
    repository: Repository, redis: RunningRedis, alone: tuple[Serving, Health]
) -> None:
    stubs, lone = alone[0].stubs, LoneSession(repository, "lstm", 2)
    name = stubs.create("lstm", seed=2)
    lone.tell("ab")
    assert turn(stubs, name, "ab", 4).text == lone.draw(4)
    older = redis.save()
    then = lone.position
    turn(stubs, name, "lost", 4)
    now = stubs.position(name)
    redis.end()
    redis.start(older)
    ahead = CompleteRequest(session=name, prompt="c", max_tokens=4, expected_position=now)
    refusal = refused(stubs.completions.Complete, ahead)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
    assert refusal.metadata == {"session": name, "position": str(then)}
    lone.tell("c")
    assert turn(stubs, name, "c", 4).text == lone.draw(4)


def session_key(name: str) -> str:
    """Where Redis has a session."""
    return "unrolled:{" + name.removeprefix("sessions/") + "}"

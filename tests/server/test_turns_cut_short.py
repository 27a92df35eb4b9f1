"""Turns that end early: their row is freed, and the session is as if they had not begun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import grpc
import pytest
from support.calls import (
    LONG,
    SECONDS,
    SMALL_WINDOW,
    Stubs,
    connected,
    refusal_of,
    unread_turn,
)
from support.lone import LoneSession
from support.metrics import Metrics, eventually
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import (
    CompleteEvent,
    CompleteRequest,
    ConverseRequest,
    ConverseResponse,
    ScoreRequest,
    TokenIds,
)
from unrolled.v1.session_pb2 import DeleteSessionRequest

ENDLESS = 2_000_000_000
"""Tokens of a turn that does not end by itself within any test."""

CLIENT = """
import sys
import unrolled

with unrolled.Client(sys.argv[1]) as client:
    stream = client.stream("x", session=sys.argv[2], max_tokens=2_000_000_000)
    print(next(iter(stream)).text, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Shared:
    """A server with room for endless turns, and one session told "abc"."""

    server: RunningServer
    stubs: Stubs
    metrics: Metrics
    repository: Repository

    def session(self) -> str:
        name = self.stubs.create("lstm", seed=17)
        self.stubs.tell(name, "abc")
        return name

    def given_up(self) -> float:
        """Calls that were given up because nobody read them."""
        return self.metrics.value("unrolled_rpc_handled_total", code="RESOURCE_EXHAUSTED")

    def expect_untouched(self, session: str) -> None:
        """Wait until no row is left; the session has to go on from where it was."""
        for gauge in ("active", "waiting", "parked"):
            self.metrics.wait_for(f"unrolled_rows_{gauge}", 0)
        assert self.stubs.position(session) == 3
        oracle = LoneSession(self.repository, "lstm", 17)
        oracle.tell("abc")
        request = CompleteRequest(session=session, max_tokens=12)
        assert self.stubs.completions.Complete(request, timeout=SECONDS).text == oracle.draw(12)


@pytest.fixture(scope="module")
def shared(repository: Repository) -> Iterator[Shared]:
    with sharing(repository) as shared:
        yield shared


@pytest.fixture(scope="module")
def impatient(repository: Repository) -> Iterator[Shared]:
    """A server that waits for readers a second only, and has one row."""
    with sharing(repository, "--write-timeout", "1s", "--max-rows", "1") as shared:
        yield shared


@contextmanager
def sharing(repository: Repository, *flags: str) -> Iterator[Shared]:
    """A server for endless turns; in the end its log must not hold an error."""
    # What is cut short may have been slow, which the log would tell.
    flags = ("--max-tokens", str(ENDLESS), "--slow-turn", "0", *flags)
    with running_server(repository.path, *flags) as server:
        with connected(server.address) as stubs:
            yield Shared(server, stubs, Metrics(server.metrics_url), repository)
        _, log = server.terminate()
    print(log)
    assert [line for line in log.splitlines() if "level=info" not in line] == []


def code_of(error: BaseException) -> grpc.StatusCode:
    return cast("grpc.Call", error).code()


def begin_unary(shared: Shared, session: str, stubs: Stubs, timeout: float) -> Any:
    request = CompleteRequest(session=session, prompt="x", max_tokens=ENDLESS)
    call = stubs.completions.Complete.future(request, timeout=timeout)
    shared.metrics.wait_for("unrolled_rows_active", 1)
    return call


def begin_stream(shared: Shared, session: str, stubs: Stubs, timeout: float) -> Any:
    request = CompleteRequest(session=session, prompt="x", max_tokens=ENDLESS)
    call = stubs.completions.StreamComplete(request, timeout=timeout)
    assert next(call).delta.token_ids
    return call


def begin_telling(shared: Shared, session: str, stubs: Stubs, timeout: float) -> Any:
    prompt = TokenIds(ids=[0] * 1_000_000)
    request = CompleteRequest(session=session, prompt_tokens=prompt, max_tokens=1)
    call = stubs.completions.Complete.future(request, timeout=timeout)
    shared.metrics.wait_for("unrolled_rows_active", 1)
    return call


def begin_conversation(shared: Shared, session: str, stubs: Stubs, timeout: float) -> Any:
    complete = CompleteRequest(prompt="x", max_tokens=ENDLESS)
    commands = [
        ConverseRequest(open=ConverseRequest.Open(session=session)),
        ConverseRequest(complete=complete),
    ]
    call = stubs.completions.Converse(iter(commands), timeout=timeout)
    events = cast("Iterator[ConverseResponse]", call)
    assert next(events).opened.name == session
    assert next(events).delta.token_ids
    return call


Begin = Callable[[Shared, str, Stubs, float], Any]
BEGINNINGS: tuple[Begin, ...] = (begin_unary, begin_stream, begin_telling, begin_conversation)
UNARY = (begin_unary, begin_telling)
every_kind = pytest.mark.parametrize("begin", BEGINNINGS, ids=lambda begin: begin.__name__)


def read_whole(begin: Begin, call: Any) -> None:
    """Wait for the end of a call."""
    if begin in UNARY:
        call.result()
    else:
        list(call)


@every_kind
def test_a_turn_that_is_cancelled_leaves_no_trace(shared: Shared, begin: Begin) -> None:
    session = shared.session()
    begin(shared, session, shared.stubs, SECONDS).cancel()
    shared.expect_untouched(session)


@every_kind
def test_a_turn_whose_channel_is_closed_leaves_no_trace(shared: Shared, begin: Begin) -> None:
    session = shared.session()
    with connected(shared.server.address) as stubs:
        begin(shared, session, stubs, SECONDS)
    shared.expect_untouched(session)


@every_kind
def test_a_turn_past_its_deadline_leaves_no_trace(shared: Shared, begin: Begin) -> None:
    session = shared.session()
    call = begin(shared, session, shared.stubs, 2.0)
    with pytest.raises(grpc.RpcError) as caught:
        read_whole(begin, call)
    assert code_of(caught.value) is grpc.StatusCode.DEADLINE_EXCEEDED
    shared.expect_untouched(session)


def test_a_score_that_is_cancelled_frees_its_row(shared: Shared) -> None:
    session = shared.session()
    request = ScoreRequest(session=session, tokens=TokenIds(ids=[0] * 1_000_000))
    call = shared.stubs.completions.Score.future(request, timeout=SECONDS)
    shared.metrics.wait_for("unrolled_rows_active", 1)
    call.cancel()
    shared.expect_untouched(session)


def test_a_client_that_is_killed_leaves_no_trace(shared: Shared) -> None:
    session = shared.session()
    command = [sys.executable, "-c", CLIENT, shared.server.address, session]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as client:
        assert client.stdout is not None
        assert client.stdout.readline()
        assert shared.metrics.value("unrolled_rows_active") == 1
        client.kill()
    shared.expect_untouched(session)


def test_calls_that_were_given_up_are_counted_as_such(shared: Shared) -> None:
    def handled(*codes: str) -> float:
        name, method = "unrolled_rpc_handled_total", "unrolled.v1.CompletionService/Complete"
        return sum(shared.metrics.value(name, method=method, code=code) for code in codes)

    # A client tells of a deadline by cancelling, maybe before it has passed at the server.
    given_up, failed = handled("CANCELLED", "DEADLINE_EXCEEDED"), handled("INTERNAL", "UNKNOWN")
    begin_unary(shared, shared.session(), shared.stubs, SECONDS).cancel()
    shared.metrics.wait_for("unrolled_rows_active", 0)
    with pytest.raises(grpc.RpcError):
        begin_unary(shared, shared.session(), shared.stubs, 2.0).result()
    shared.metrics.wait_for("unrolled_rows_active", 0)
    assert handled("CANCELLED", "DEADLINE_EXCEEDED") == given_up + 2
    assert handled("INTERNAL", "UNKNOWN") == failed


@every_kind
def test_a_turn_whose_session_is_deleted_is_not_found(shared: Shared, begin: Begin) -> None:
    session = shared.session()
    call = begin(shared, session, shared.stubs, SECONDS)
    shared.stubs.sessions.DeleteSession(DeleteSessionRequest(name=session))
    if begin is begin_conversation:
        *_, last = call
        assert last.error.code == grpc.StatusCode.NOT_FOUND.value[0]
    else:
        with pytest.raises(grpc.RpcError) as caught:
            read_whole(begin, call)
        refusal = refusal_of(caught.value)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        assert refusal.metadata == {"session": session}
    shared.metrics.wait_for("unrolled_rows_active", 0)


def test_a_turn_that_is_cancelled_while_it_waits_is_forgotten(impatient: Shared) -> None:
    session = impatient.session()
    running = begin_unary(impatient, session, impatient.stubs, SECONDS)
    request = CompleteRequest(model="lstm", prompt="a")
    waiting = [impatient.stubs.completions.Complete.future(request) for _ in range(3)]
    impatient.metrics.wait_for("unrolled_rows_waiting", 3)
    for call in waiting:
        call.cancel()
    impatient.metrics.wait_for("unrolled_rows_waiting", 0)
    assert impatient.metrics.value("unrolled_rows_active") == 1
    running.cancel()
    impatient.expect_untouched(session)


def test_an_unread_stream_leaves_the_batch_to_others(shared: Shared) -> None:
    session = shared.session()
    with unread_turn(shared.server.address, CompleteRequest(session=session)):
        shared.metrics.wait_for("unrolled_rows_parked", 1)
        assert shared.metrics.value("unrolled_rows_active") == 0
        request = CompleteRequest(model="lstm", prompt="a", max_tokens=100)
        answer = shared.stubs.completions.Complete(request, timeout=SECONDS)
        assert len(answer.token_ids) == 100
        assert shared.metrics.value("unrolled_rows_parked") == 1
    shared.expect_untouched(session)


def test_a_slow_reader_who_reads_on_gets_everything(shared: Shared) -> None:
    session, oracle = shared.session(), LoneSession(shared.repository, "lstm", 17)
    oracle.tell("abc")
    text = oracle.draw(LONG)
    with unread_turn(shared.server.address, CompleteRequest(session=session)) as call:
        shared.metrics.wait_for("unrolled_rows_parked", 1)
        *events, last = cast("Iterator[CompleteEvent]", call)
    read = "".join(event.delta.text for event in events)
    assert text.endswith(read)
    # The first event was read before.
    assert len(read) >= LONG - 16
    assert last.outcome.position == 3 + LONG
    answer = shared.stubs.completions.Complete(CompleteRequest(session=session, max_tokens=9))
    assert answer.text == oracle.draw(9)


def test_an_unread_stream_can_be_stopped(shared: Shared) -> None:
    session = shared.session()
    commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
    complete = CompleteRequest(max_tokens=ENDLESS, logprobs=5)
    commands.put(ConverseRequest(open=ConverseRequest.Open(session=session)))
    commands.put(ConverseRequest(complete=complete))
    with connected(shared.server.address, SMALL_WINDOW) as stubs:
        call = stubs.completions.Converse(iter(commands.get, None), timeout=SECONDS)
        shared.metrics.wait_for("unrolled_rows_parked", 1)
        commands.put(ConverseRequest(stop=ConverseRequest.Stop()))
        shared.metrics.wait_for("unrolled_rows_parked", 0)
        commands.put(None)
        opened, *deltas, last = cast("Iterator[ConverseResponse]", call)
    assert opened.opened.position == 3
    assert last.outcome.position == 3 + sum(len(event.delta.token_ids) for event in deltas)
    assert shared.stubs.position(session) == last.outcome.position


def test_an_unread_stream_fails_in_the_end(impatient: Shared) -> None:
    session, before = impatient.session(), impatient.given_up()
    with unread_turn(impatient.server.address, CompleteRequest(session=session)) as call:
        eventually(lambda: impatient.given_up() > before, "the call was given up")
        impatient.expect_untouched(session)
        with pytest.raises(grpc.RpcError) as caught:
            list(cast("Iterator[CompleteEvent]", call))
    refusal = refusal_of(caught.value)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
    assert (refusal.metadata, refusal.retry_after) == ({}, None)


def test_an_unread_conversation_fails_in_the_end(impatient: Shared) -> None:
    session, before = impatient.session(), impatient.given_up()
    commands = [
        ConverseRequest(open=ConverseRequest.Open(session=session)),
        ConverseRequest(complete=CompleteRequest(max_tokens=LONG, logprobs=5)),
        ConverseRequest(complete=CompleteRequest(max_tokens=1)),
    ]
    with connected(impatient.server.address, SMALL_WINDOW) as stubs:
        call = stubs.completions.Converse(iter(commands), timeout=SECONDS)
        eventually(lambda: impatient.given_up() > before, "the call was given up")
        impatient.expect_untouched(session)
        with pytest.raises(grpc.RpcError) as caught:
            list(cast("Iterator[ConverseResponse]", call))
    assert refusal_of(caught.value).reason == "SLOW_READER"


def test_a_reader_who_never_comes_back_is_no_error_of_the_server(impatient: Shared) -> None:
    session, before = impatient.session(), impatient.given_up()
    with unread_turn(impatient.server.address, CompleteRequest(session=session)):
        eventually(lambda: impatient.given_up() > before, "the call was given up")
        impatient.expect_untouched(session)
    request = CompleteRequest(model="lstm", prompt="a", max_tokens=1)
    assert impatient.stubs.completions.Complete(request, timeout=SECONDS).text

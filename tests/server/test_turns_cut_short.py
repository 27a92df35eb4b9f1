"""Turns that end early: their row is freed, and the session is as if they had not begun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from support.calls import (
    LONG,
    SECONDS,
    SMALL_WINDOW,
    Stubs,
    connected,
    refusal_of,
    refused,
    unread_turn,
)
from support.lone import LoneSession
from support.metrics import Metrics
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

    def expect_untouched(self, session: str) -> None:
        """Wait until no row is left; the session has to be where it was, and to go on from there."""
        for gauge in ("active", "waiting", "parked"):
            self.metrics.wait_for(f"unrolled_rows_{gauge}", 0)
        assert self.stubs.position(session) == 3
        oracle = LoneSession(self.repository, "lstm", 17)
        oracle.tell("abc")
        request = CompleteRequest(session=session, max_tokens=12)
        assert self.stubs.completions.Complete(request, timeout=SECONDS).text == oracle.draw(12)


@pytest.fixture(scope="module")
def shared(repository: Repository) -> Iterator[Shared]:
    """Shared by the module; in the end its log must not hold an error."""
    flags = ["--max-tokens", str(ENDLESS), "--log-level", "warning"]
    # Readiness is told at info level.
    with running_server(repository.path, "--max-tokens", str(ENDLESS)) as server:
        with connected(server.address) as stubs:
            yield Shared(server, stubs, Metrics(server.metrics_url), repository)
        _, log = server.terminate()
    assert flags
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
every_kind = pytest.mark.parametrize("begin", BEGINNINGS, ids=lambda begin: begin.__name__)


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
    call = begin(shared, session, shared.stubs, 1.0)
    with pytest.raises(grpc.RpcError) as caught:
        call.result() if isinstance(call, grpc.Future) else list(call)
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
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as client:
        assert client.stdout is not None
        assert client.stdout.readline()
        assert shared.metrics.value("unrolled_rows_active") == 1
        client.kill()
    shared.expect_untouched(session)


def test_deadlines_and_cancellations_are_counted_as_such(shared: Shared) -> None:
    def handled(code: str) -> float:
        method = "unrolled.v1.CompletionService/Complete"
        return shared.metrics.value("unrolled_rpc_handled_total", method=method, code=code)

    cancelled, late, internal = map(handled, ("CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"))
    session = shared.session()
    begin_unary(shared, session, shared.stubs, SECONDS).cancel()
    shared.expect_untouched(session)
    with pytest.raises(grpc.RpcError):
        begin_unary(shared, shared.session(), shared.stubs, 1.0).result()
    shared.metrics.wait_for("unrolled_rows_active", 0)
    after = tuple(map(handled, ("CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL")))
    assert after == (cancelled + 1, late + 1, internal)


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
            call.result() if isinstance(call, grpc.Future) else list(call)
        refusal = refusal_of(caught.value)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        assert refusal.metadata == {"session": session}
    shared.metrics.wait_for("unrolled_rows_active", 0)


def test_a_session_is_free_as_soon_as_its_turn_was_cancelled(shared: Shared) -> None:
    session = shared.session()
    for _ in range(5):
        with unread_turn(shared.server.address, CompleteRequest(session=session)):
            assert refused(
                shared.stubs.completions.Complete, CompleteRequest(session=session)
            ).code == "ABORTED"
        shared.expect_free(session)

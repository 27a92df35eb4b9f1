"""Every call has a name: the caller's or a new one, in its trailers and in the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest
from support.calls import SECONDS, connected
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.session_pb2 import GetSessionRequest

KEY = "x-request-id"
GIVEN = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Told:
    """The log of a server that has ended, by the name of a call."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def calls(self, name: str) -> list[tuple[str, str]]:
        """Method and code of the calls of this name."""
        return [
            (line["method"].rpartition("/")[2], line["code"])
            for line in self.lines
            if line["event"] == "call" and line["request_id"] == name
        ]


@contextmanager
def logging_server(repository: Repository) -> Iterator[tuple[RunningServer, Told]]:
    """A server, and what it has logged once the block is over."""
    told = Told()
    flags = ("--log-level", "debug", "--log-format", "json")
    with running_server(repository.path, *flags) as server:
        yield server, told
        status, log = server.terminate()
        assert status == 0
        told.lines += [json.loads(line) for line in log.splitlines()]


def named(call: grpc.Call) -> str:
    """The name that a call came back with."""
    (name,) = [value for key, value in call.trailing_metadata() if key == KEY]
    assert isinstance(name, str)
    return name


def test_calls_are_named_whatever_streams_and_however_they_end(repository: Repository) -> None:
    metadata = ((KEY, GIVEN),)
    with logging_server(repository) as (server, told), connected(server.address) as stubs:
        request = CompleteRequest(model="lstm", prompt="a", max_tokens=2)
        _, unary = stubs.completions.Complete.with_call(request, SECONDS, metadata)
        stream = stubs.completions.StreamComplete(request, SECONDS, metadata)
        assert list(stream)
        opening = ConverseRequest(open=ConverseRequest.Open(model="lstm"))
        conversation = stubs.completions.Converse(iter([opening]), SECONDS, metadata)
        assert list(conversation)
        with pytest.raises(grpc.RpcError) as refused:
            stubs.sessions.GetSession(GetSessionRequest(name="nobody"), SECONDS, metadata)
        ended = (unary, stream, conversation, refused.value)
        assert [named(cast("grpc.Call", call)) for call in ended] == [GIVEN] * 4
    assert sorted(told.calls(GIVEN)) == [
        ("Complete", "OK"),
        ("Converse", "OK"),
        ("GetSession", "NOT_FOUND"),
        ("StreamComplete", "OK"),
    ]


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129])
def test_a_call_without_a_usable_name_gets_a_new_one(
    repository: Repository, server: RunningServer, given: str | None
) -> None:
    metadata = () if given is None else ((KEY, given),)
    request = CompleteRequest(model="lstm", prompt="a", max_tokens=0)
    with connected(server.address) as stubs:
        names = {
            named(stubs.completions.Complete.with_call(request, SECONDS, metadata)[1])
            for _ in range(3)
        }
    assert len(names) == 3
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_calls_at_one_time_keep_their_names_apart(repository: Repository) -> None:
    names = [f"call-{number}" for number in range(8)]
    with (
        logging_server(repository) as (server, told),
        grpc.insecure_channel(server.address) as channel,
    ):
        complete = CompletionServiceStub(channel).Complete
        # The odd ones are refused.
        calls = [
            complete.future(
                CompleteRequest(model="lstm", prompt="a", max_tokens=20 if number % 2 == 0 else -1),
                timeout=SECONDS,
                metadata=((KEY, name),),
            )
            for number, name in enumerate(names)
        ]
        assert [call.exception() is None for call in calls] == [True, False] * 4
        assert [named(cast("grpc.Call", call)) for call in calls] == names
    assert [told.calls(name) for name in names] == [
        [("Complete", "OK")],
        [("Complete", "INVALID_ARGUMENT")],
    ] * 4


def test_lines_outside_of_calls_have_no_name(repository: Repository) -> None:
    with logging_server(repository) as (server, told), connected(server.address) as stubs:
        stubs.create("lstm")
    by_event = {line["event"]: line for line in told.lines}
    assert by_event.keys() == {"call", "draining", "stopped"}
    assert "request_id" in by_event["call"]
    assert "request_id" not in by_event["draining"]

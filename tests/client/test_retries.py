"""What the client asks again where nobody answered, and what it does not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import unrolled
from support.server import RunningServer
from unrolled import connection
from unrolled.v1.completion_pb2 import CompleteEvent, Delta
from unrolled.v1.session_pb2 import Session as SessionInfo
from unrolled_server.server import OPTIONS

ATTEMPTS = 4


class Unwell(grpc.GenericRpcHandler):
    """Ends its first calls of each method with a status, and answers the others with nothing."""

    def __init__(self) -> None:
        self.failures = 0
        self.code = grpc.StatusCode.UNAVAILABLE
        self.says_something_first = False
        self.calls: Counter[str] = Counter()
        self.peers: set[str] = set()
        self._lock = threading.Lock()
        self.target = ""

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]

        def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            with self._lock:
                self.calls[method] += 1
                number = self.calls[method]
            self.peers.add(context.peer())
            if self.says_something_first:
                yield CompleteEvent(delta=Delta(text="a")).SerializeToString()
            if number <= self.failures:
                context.abort(self.code, "unwell")
            if not self.says_something_first:
                yield b""

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture
def unwell() -> Iterator[Unwell]:
    service = Unwell()
    server = grpc.server(ThreadPoolExecutor(max_workers=4), handlers=[service])
    service.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield service
    finally:
        server.stop(None).wait()


@pytest.fixture
def client(unwell: Unwell) -> Iterator[unrolled.Client]:
    with unrolled.Client(unwell.target) as connected:
        yield connected


Call = Callable[[unrolled.Client], object]


def known(client: unrolled.Client) -> unrolled.Session:
    """A session that the server is not asked for."""
    return unrolled.Session(client._connection, SessionInfo(name="sessions/a"), owned=False)


REPEATED: dict[str, Call] = {
    "ListModels": lambda client: client.models(),
    "GetModel": lambda client: client.model("m"),
    "GetSession": lambda client: client.session("sessions/a"),
    "ListSessions": lambda client: list(client.sessions()),
    "ExportSession": lambda client: client.session("sessions/a").export(),
    "Score": lambda client: client.score("a", model="m"),
    "Complete": lambda client: client.complete("a", model="m"),
    "StreamComplete": lambda client: list(client.stream("a", model="m")),
}
WITH_ID: dict[str, Call] = {
    "Complete": lambda client: client.complete("a", session="sessions/a", request_id="1"),
    "StreamComplete": lambda client: list(client.stream("a", session="sessions/a", request_id="1")),
}
ONCE: dict[str, Call] = {
    "CreateSession": lambda client: client.create_session("m"),
    "ImportSession": lambda client: client.import_session(b"a"),
    "ForkSession": lambda client: known(client).fork(),
    "DeleteSession": lambda client: known(client).delete(),
    "CheckpointSession": lambda client: known(client).checkpoint("a"),
    "RewindSession": lambda client: known(client).rewind(),
    "DeleteCheckpoint": lambda client: known(client).delete_checkpoint("a"),
    "Complete": lambda client: client.complete("a", session="sessions/a"),
    "StreamComplete": lambda client: list(client.stream("a", session="sessions/a")),
    "Converse": lambda client: list(client.converse()),
}


@pytest.mark.parametrize(("method", "call"), [*REPEATED.items(), *WITH_ID.items()])
def test_what_does_no_harm_is_asked_again(
    unwell: Unwell, client: unrolled.Client, method: str, call: Call
) -> None:
    unwell.failures = 1
    call(client)

    assert unwell.calls[method] == 2
    assert len(unwell.peers) == 1


def test_what_met_the_end_of_a_server_is_asked_again(
    unwell: Unwell, client: unrolled.Client
) -> None:
    unwell.code = grpc.StatusCode.CANCELLED
    unwell.failures = 1
    client.complete("a", session="sessions/a", request_id="1")
    assert unwell.calls["Complete"] == 2


@pytest.mark.parametrize(("method", "call"), ONCE.items())
def test_what_might_is_asked_once(
    unwell: Unwell, client: unrolled.Client, method: str, call: Call
) -> None:
    unwell.failures = 100
    with pytest.raises(unrolled.Unavailable):
        call(client)

    assert unwell.calls[method] == 1


def test_it_gives_up(unwell: Unwell, client: unrolled.Client) -> None:
    unwell.failures = 100
    with pytest.raises(unrolled.Unavailable, match="unwell"):
        client.model("m")
    assert unwell.calls["GetModel"] == ATTEMPTS


def test_many_that_fail_at_once_are_all_asked_again(
    unwell: Unwell, client: unrolled.Client
) -> None:
    unwell.failures = 64
    with ThreadPoolExecutor(64) as pool:
        for done in [pool.submit(client.model, "m") for _ in range(64)]:
            done.result()
    assert unwell.calls["GetModel"] == 128


def test_other_failures_are_final(unwell: Unwell, client: unrolled.Client) -> None:
    unwell.failures = 100
    for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL):
        unwell.code = code
        unwell.calls.clear()
        with pytest.raises(unrolled.UnrolledError):
            client.model("m")
        assert unwell.calls["GetModel"] == 1


def test_a_stream_that_has_begun_is_not_begun_again(
    unwell: Unwell, client: unrolled.Client
) -> None:
    unwell.says_something_first = True
    unwell.failures = 100
    stream = client.stream("a", model="m")
    assert next(stream).text == "a"
    with pytest.raises(unrolled.Unavailable):
        next(stream)
    assert unwell.calls["StreamComplete"] == 1


async def test_the_same_for_asyncio(unwell: Unwell) -> None:
    unwell.failures = 1
    async with unrolled.AsyncClient(unwell.target) as client:
        await client.model("m")
        await client.complete("a", model="m")
        with pytest.raises(unrolled.Unavailable):
            await client.create_session("m")
    assert unwell.calls == {"GetModel": 2, "Complete": 2, "CreateSession": 1}
    assert len(unwell.peers) == 1


def test_a_repeated_turn_is_run_once(server: RunningServer) -> None:
    """The real server, asked twice over the channel that repeats."""
    with unrolled.Client(server.address) as client, client.create_session("lstm") as session:
        first = session.complete("abc", max_tokens=5, request_id="1")
        again = session.complete("abc", max_tokens=5, request_id="1")

        assert again.text == first.text
        assert again.outcome.replayed
        assert client.session(session.name).position == first.outcome.position


def test_the_server_accepts_the_clients_pings() -> None:
    client, server = dict(connection._OPTIONS), dict(OPTIONS)
    accepted = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert int(client["grpc.keepalive_time_ms"]) > accepted
    assert client["grpc.keepalive_permit_without_calls"] == 0

"""Start, health, drain and end of the process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import pytest
import torch
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import (  # type: ignore[attr-defined]
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
)
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from support.calls import (
    LONG,
    SECONDS,
    SMALL_WINDOW,
    Refusal,
    connected,
    refusal_of,
    refusal_of_status,
    refused,
    unread_turn,
)
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server, wait_for_event
from unrolled.v1.completion_pb2 import (
    CompleteEvent,
    CompleteRequest,
    ConverseRequest,
    ConverseResponse,
    ScoreRequest,
)
from unrolled.v1.session_pb2 import CreateSessionRequest, GetSessionRequest
from unrolled_server.__main__ import main
from unrolled_server.config import Config

SERVICES = (
    "unrolled.v1.CompletionService",
    "unrolled.v1.SessionService",
    "unrolled.v1.ModelService",
)
PAIR = re.compile(r'([^ ="]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)(?: |$)')


def run_to_end(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "unrolled_server", *flags],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
    )


def fields_of(line: str) -> dict[str, str]:
    """A line of logfmt; fails where it is anything else."""
    pairs = dict(PAIR.findall(line))
    assert "".join(match[0] for match in PAIR.finditer(line)) == line
    return {k: json.loads(v) if v.startswith('"') else v for k, v in pairs.items()}


@contextmanager
def draining(repository: Repository) -> Iterator[tuple[RunningServer, grpc.Call]]:
    """A server that was told to stop while a streamed turn is under way, and that turn."""
    with running_server(repository.path) as server:
        request = CompleteRequest(model="lstm", prompt="a")
        with unread_turn(server.address, request) as call:
            server.process.terminate()
            wait_for_event(server, "draining")
            yield server, call


def read_into(read: list[ConverseResponse], events: Iterator[ConverseResponse]) -> None:
    """Append what comes before the end, or before the failure that ends it."""
    for event in events:
        read.append(event)  # noqa: PERF402 - what was read stays where reading fails


def rest_of(call: grpc.Call) -> list[CompleteEvent]:
    return list(cast("Iterator[CompleteEvent]", call))


def is_draining(refusal: Refusal) -> bool:
    return (
        (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAINING")
        and refusal.metadata == {}
        and refusal.retry_after is not None
        and refusal.retry_after > 0
    )


def test_a_stream_under_way_ends_whole_while_new_turns_are_refused(repository: Repository) -> None:
    with draining(repository) as (server, call), connected(server.address) as stubs:
        for method in (stubs.completions.Complete, stubs.completions.StreamComplete):
            assert is_draining(refused(method, CompleteRequest(model="lstm", prompt="a")))
        assert is_draining(refused(stubs.completions.Score, ScoreRequest(model="gru", text="a")))
        events = rest_of(call)
        assert server.process.wait(SECONDS) == 0
    assert events[-1].outcome.usage.completion_tokens == LONG
    assert events[-1].outcome.position == 1 + LONG
    # The first event was read before.
    assert sum(len(event.delta.token_ids) for event in events) >= LONG - 16


def test_a_session_can_be_looked_at_while_the_server_drains(repository: Repository) -> None:
    with running_server(repository.path) as server, connected(server.address) as stubs:
        session = stubs.create("lstm")
        request = CompleteRequest(session=session, prompt="a")
        with unread_turn(server.address, request):
            server.process.terminate()
            wait_for_event(server, "draining")
            found = stubs.sessions.GetSession(GetSessionRequest(name=session)).session
            assert found.position == 0
        assert server.process.wait(SECONDS) == 0


def test_idle_conversations_do_not_hold_the_server_up(repository: Repository) -> None:
    with running_server(repository.path) as server, connected(server.address) as stubs:
        commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        commands.put(ConverseRequest(open=ConverseRequest.Open(model="lstm")))
        call = stubs.completions.Converse(iter(commands.get, None), timeout=SECONDS)
        events = cast("Iterator[ConverseResponse]", call)
        assert next(events).opened.model == "lstm/1"
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            next(events)
        commands.put(None)
        assert is_draining(refusal_of(caught.value))
        assert server.process.wait(SECONDS) == 0


def test_a_draining_server_takes_no_conversations(repository: Repository) -> None:
    with draining(repository) as (server, _), connected(server.address) as stubs:
        commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        call = stubs.completions.Converse(iter(commands.get, None), timeout=SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            list(cast("Iterator[ConverseResponse]", call))
        commands.put(None)
    assert is_draining(refusal_of(caught.value))


def test_a_conversation_ends_its_turn_whole_and_takes_no_other(repository: Repository) -> None:
    with (
        running_server(repository.path) as server,
        connected(server.address, SMALL_WINDOW) as stubs,
    ):
        commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        commands.put(ConverseRequest(open=ConverseRequest.Open(model="lstm")))
        complete = CompleteRequest(max_tokens=LONG, logprobs=5)
        commands.put(ConverseRequest(command_id="whole", complete=complete))
        call = stubs.completions.Converse(iter(commands.get, None), timeout=SECONDS)
        events = cast("Iterator[ConverseResponse]", call)
        assert next(events).opened.position == 0
        Metrics(server.metrics_url).wait_for("unrolled_rows_parked", 1)
        server.process.terminate()
        wait_for_event(server, "draining")
        commands.put(ConverseRequest(command_id="late", complete=CompleteRequest(max_tokens=1)))
        read: list[ConverseResponse] = []
        with pytest.raises(grpc.RpcError) as caught:
            read_into(read, events)
        commands.put(None)
        assert server.process.wait(SECONDS) == 0
    assert is_draining(refusal_of(caught.value))
    assert {event.command_id for event in read if event.HasField("outcome")} == {"whole"}
    assert [event.outcome.position for event in read if event.HasField("outcome")] == [LONG]


# A server inherits from nohup that the end of a terminal is ignored.
ENDING = [
    signal.SIGTERM,
    signal.SIGINT,
    *([] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]),
]


@pytest.mark.parametrize("number", ENDING)
def test_an_idle_server_ends_at_a_signal(repository: Repository, number: signal.Signals) -> None:
    with running_server(repository.path) as server:
        server.process.send_signal(number)
        _, log = server.process.communicate(timeout=SECONDS)
    assert server.process.returncode == 0
    events = [fields_of(line)["event"] for line in log.splitlines()]
    assert events == ["draining", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_still_starting_ends_at_once(
    repository: Repository, tmp_path: Path, number: signal.Signals
) -> None:
    version = tmp_path / "models" / "lstm" / "1"
    shutil.copytree(repository.path / "lstm" / "1", version)
    (version / "engine.onnx").unlink()
    # Whoever reads it waits for somebody who writes.
    os.mkfifo(version / "engine.onnx")
    command = [sys.executable, "-m", "unrolled_server", "--models", str(tmp_path / "models")]
    command += ["--port", "0", "--metrics-port", "0", "--store", "memory"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        # Opened once the server has opened it, too.
        with (version / "engine.onnx").open("wb"):
            process.send_signal(number)
            _, log = process.communicate()
        watchdog.cancel()
    assert (process.returncode, log) == (0, "")


ENDLESS = 2_000_000_000
"""Tokens of a turn that does not end by itself within any test."""

Shorten: TypeAlias = Callable[[RunningServer], None]


def wait_out(server: RunningServer) -> None:
    """The server's patience comes to its end."""


def ask_again(server: RunningServer) -> None:
    """A second signal."""
    server.process.terminate()


@pytest.mark.parametrize(("patience", "shorten"), [("200ms", wait_out), ("1h", ask_again)])
def test_a_turn_that_does_not_end_in_time_leaves_no_trace(
    repository: Repository, tmp_path: Path, patience: str, shorten: Shorten
) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'sessions.db'}")
    flags = (*store, "--drain-timeout", patience, "--max-tokens", str(ENDLESS))
    with running_server(repository.path, *flags) as server, connected(server.address) as stubs:
        session = stubs.create("lstm")
        stubs.tell(session, "abc")
        request = CompleteRequest(session=session, prompt="a", max_tokens=ENDLESS)
        events = stubs.completions.StreamComplete(request, timeout=SECONDS)
        assert next(events).delta.text
        server.process.terminate()
        wait_for_event(server, "draining")
        shorten(server)
        with pytest.raises(grpc.RpcError) as caught:
            list(cast("Iterator[CompleteEvent]", events))
        assert is_draining(refusal_of(caught.value))
        _, log = server.process.communicate(timeout=SECONDS)
    assert server.process.returncode == 0
    assert fields_of(log.splitlines()[0])["turns"] == "1"
    with running_server(repository.path, *store) as server, connected(server.address) as stubs:
        assert stubs.position(session) == len("abc")


def test_a_conversation_says_which_turn_was_cut_short(repository: Repository) -> None:
    flags = ("--drain-timeout", "0", "--max-tokens", str(ENDLESS))
    with running_server(repository.path, *flags) as server, connected(server.address) as stubs:
        commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        commands.put(ConverseRequest(open=ConverseRequest.Open(model="lstm")))
        complete = CompleteRequest(max_tokens=ENDLESS)
        commands.put(ConverseRequest(command_id="endless", complete=complete))
        call = stubs.completions.Converse(iter(commands.get, None), timeout=SECONDS)
        events = cast("Iterator[ConverseResponse]", call)
        assert next(events).opened.position == 0
        assert next(events).delta.text
        server.process.terminate()
        read: list[ConverseResponse] = []
        with pytest.raises(grpc.RpcError) as caught:
            read_into(read, events)
        commands.put(None)
        assert server.process.wait(SECONDS) == 0
    assert is_draining(refusal_of(caught.value))
    assert read[-1].command_id == "endless"
    assert is_draining(refusal_of_status(read[-1].error))


def test_a_second_signal_does_not_wait_for_a_reader(repository: Repository) -> None:
    with (
        running_server(repository.path, "--drain-timeout", "1h") as server,
        unread_turn(server.address, CompleteRequest(model="lstm", prompt="a")),
    ):
        server.process.terminate()
        wait_for_event(server, "draining")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(SECONDS) == 0


def test_health_is_per_service_and_ends_with_the_drain(repository: Repository) -> None:
    with draining(repository) as (server, _), grpc.insecure_channel(server.address) as channel:
        health: Any = HealthStub(channel)
        for service in ("", *SERVICES):
            answer = health.Check(HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == HealthCheckResponse.NOT_SERVING


def test_who_watches_is_told_and_does_not_hold_the_server_up(repository: Repository) -> None:
    with (
        running_server(repository.path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health: Any = HealthStub(channel)
        watch = health.Watch(HealthCheckRequest(), timeout=SECONDS)
        assert next(watch).status == HealthCheckResponse.SERVING
        server.process.terminate()
        # The call ends as it should, and is not cut off.
        assert [answer.status for answer in watch] == [HealthCheckResponse.NOT_SERVING]
        assert server.process.wait(SECONDS) == 0


def test_all_checks_are_listed(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health: Any = HealthStub(channel)
        listed = health.List(HealthListRequest(), timeout=SECONDS).statuses
    serving = HealthCheckResponse.SERVING
    assert {name: check.status for name, check in listed.items()} == dict.fromkeys(
        ["", *SERVICES, "liveness"], serving
    )


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_a_server_with_models_is_healthy(server: RunningServer, service: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health: Any = HealthStub(channel)
        answer = health.Check(HealthCheckRequest(service=service), timeout=SECONDS)
    assert answer.status == HealthCheckResponse.SERVING


def test_the_health_of_an_unknown_service_is_not_found(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health: Any = HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(HealthCheckRequest(service="nope"), timeout=SECONDS)
    assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.NOT_FOUND


def test_a_server_without_models_is_not_healthy(tmp_path: Path) -> None:
    with (
        running_server(tmp_path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        health: Any = HealthStub(channel)
        answer = health.Check(HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == HealthCheckResponse.NOT_SERVING


def test_reflection_lists_the_services(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        requests = iter([ServerReflectionRequest(list_services="")])
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = reflection.ServerReflectionInfo(requests, timeout=SECONDS)
    names = {service.name for service in answer.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= names


def test_reflection_tells_of_what_no_message_has(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        requests = iter([ServerReflectionRequest(file_containing_symbol="unrolled.v1.ErrorReason")])
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = reflection.ServerReflectionInfo(requests, timeout=SECONDS)
    (file,) = answer.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(file).enum_type[0].name == "ErrorReason"


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("flag", "other"), [("--port", "--metrics-port"), ("--metrics-port", "--port")]
)
def test_a_port_that_is_taken_is_one_line(repository: Repository, flag: str, other: str) -> None:
    models = str(repository.path)
    with taken_port() as port:
        ended = run_to_end("--models", models, flag, str(port), other, "0", "--log-level", "error")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert flag in line
    assert str(port) in line


def test_an_ipv6_address_is_served(repository: Repository) -> None:
    with running_server(repository.path, "--host", "::1") as server:
        assert server.address.startswith("[::1]:")
        with connected(server.address) as stubs:
            assert stubs.create("lstm")
        assert Metrics(server.metrics_url).value("unrolled_sessions") == 1


def test_a_port_that_another_server_has_is_refused(
    repository: Repository, server: RunningServer
) -> None:
    port = server.address.rpartition(":")[2]
    flags = ["--models", str(repository.path), "--metrics-port", "0", "--log-level", "error"]
    ended = run_to_end(*flags, "--port", port)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)


def test_a_host_that_is_not_there_is_one_line(repository: Repository) -> None:
    flags = ["--models", str(repository.path), "--port", "0", "--metrics-port", "0"]
    ended = run_to_end(*flags, "--host", "no-such-host.invalid", "--log-level", "error")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "no-such-host.invalid" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_is_one_line(repository: Repository) -> None:
    flags = ["--models", str(repository.path), "--port", "0", "--metrics-port", "0"]
    ended = run_to_end(*flags, "--device", "cuda")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "--device cuda" in line


@pytest.fixture
def never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a configuration that is accepted by mistake fail, rather than be served."""

    def serve(config: Config) -> NoReturn:
        raise AssertionError(config)

    monkeypatch.setattr("unrolled_server.__main__.serve", serve)


@pytest.mark.usefixtures("never_serves")
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "--models"),
        (("--models", "no/such/folder"), "--models"),
        (("--port", "65536"), "--port"),
        (("--port", "-1"), "--port"),
        (("--port", "http"), "--port"),
        (("--metrics-port", "1.5"), "--metrics-port"),
        (("--device", "tpu"), "--device"),
        (("--threads", "-1"), "--threads"),
        (("--max-sessions", "0"), "--max-sessions"),
        (("--max-prompt-bytes", "1MB"), "--max-prompt-bytes"),
        (("--session-ttl", "forever"), "--session-ttl"),
        (("--session-ttl=-1s",), "--session-ttl"),
        (("--log-level", "loud"), "--log-level"),
        (("--write-timeout", ""), "--write-timeout"),
        (("--write-timeout", "0"), "--write-timeout"),
        (("--drain-timeout", "soon"), "--drain-timeout"),
    ],
    ids=str,
)
def test_a_bad_flag_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], named: str
) -> None:
    models = () if named == "--models" else ("--models", str(tmp_path))
    assert main([*models, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.usefixtures("never_serves")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UNROLLED_PORT", "-5"),
        ("UNROLLED_METRICS_PORT", "x"),
        ("UNROLLED_MODELS", "no/such/folder"),
        ("UNROLLED_DEVICE", "tpu"),
        ("UNROLLED_SESSION_TTL", "soon"),
        ("UNROLLED_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_variable_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv("UNROLLED_MODELS", str(tmp_path))
    monkeypatch.setenv(variable, value)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert variable in line
    assert value in line


@pytest.mark.parametrize("flags", [("--port",), ("--no-such-flag", "1"), ("stray",)], ids=str)
def test_a_command_line_that_makes_no_sense_is_refused(tmp_path: Path, flags: tuple[str]) -> None:
    ended = run_to_end("--models", str(tmp_path), *flags)
    assert ended.returncode == 2
    assert flags[0] in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_every_flag_works_as_a_variable(repository: Repository) -> None:
    settings = {
        "HOST": "127.0.0.1",
        "DEVICE": "cpu",
        "THREADS": "1",
        "MAX_SESSIONS": "1",
        "MAX_PROMPT_BYTES": "5",
        "SESSION_TTL": "30m",
        "LOG_LEVEL": "debug",
    }
    environment = {f"UNROLLED_{name}": value for name, value in settings.items()}
    with (
        running_server(repository.path, environment=environment) as server,
        connected(server.address) as stubs,
    ):
        session = stubs.sessions.CreateSession(CreateSessionRequest(model="lstm")).session
        assert session.expire_time.seconds - session.create_time.seconds == 30 * 60
        too_many = refused(stubs.sessions.CreateSession, CreateSessionRequest(model="lstm"))
        assert too_many.metadata == {"limit": "1"}
        too_long = CompleteRequest(model="lstm", prompt="aaaaaa")
        assert refused(stubs.completions.Complete, too_long).fields == ["prompt"]
        _, log = server.terminate()
    methods = [fields_of(line).get("method") for line in log.splitlines()]
    assert "unrolled.v1.SessionService/CreateSession" in methods


@pytest.mark.parametrize(
    ("variable", "other"),
    [("UNROLLED_PORT", "UNROLLED_METRICS_PORT"), ("UNROLLED_METRICS_PORT", "UNROLLED_PORT")],
)
def test_ports_and_models_work_as_variables(
    repository: Repository, variable: str, other: str
) -> None:
    with taken_port() as port:
        environment = {"UNROLLED_MODELS": str(repository.path), variable: str(port), other: "0"}
        ended = run_to_end(**environment)
    assert ended.returncode == 1
    assert str(port) in ended.stderr.splitlines()[-1]


def test_a_flag_wins_over_its_variable(repository: Repository) -> None:
    environment = {"UNROLLED_PORT": "70000", "UNROLLED_SESSION_TTL": "7s"}
    flags = ["--session-ttl", "9s"]
    with (
        running_server(repository.path, *flags, environment=environment) as server,
        connected(server.address) as stubs,
    ):
        session = stubs.sessions.CreateSession(CreateSessionRequest(model="lstm")).session
    assert session.expire_time.seconds - session.create_time.seconds == 9


def test_what_is_logged_is_one_line_of_pairs_per_event(repository: Repository) -> None:
    with running_server(repository.path, "--log-level", "debug") as server:
        with connected(server.address) as stubs:
            stubs.completions.Complete(CompleteRequest(model="lstm", prompt="a", max_tokens=1))
            refused(stubs.completions.Complete, CompleteRequest(model='a "b"\n=c'))
        status, log = server.terminate()
    assert status == 0
    lines = [fields_of(line.rstrip("\n")) for line in [*server.log, *log.splitlines()]]
    assert all(list(line)[:3] == ["time", "level", "event"] for line in lines)
    calls = [(line["method"], line["code"]) for line in lines if line["event"] == "call"]
    assert calls == [
        ("unrolled.v1.CompletionService/Complete", "OK"),
        ("unrolled.v1.CompletionService/Complete", "NOT_FOUND"),
    ]

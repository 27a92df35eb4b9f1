"""Traces: what a real collector gets of calls, and what there is without one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support.calls import SECONDS, Stubs, connected, refused
from support.collector import Collector, collecting, facts
from support.models import Repository
from support.server import running_server
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest
from unrolled_server.tracing import CallSpan

METHOD = "unrolled.v1.CompletionService/"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-0{flag}") for flag in (1, 0))


@contextmanager
def traced(
    repository: Repository, *flags: str, **environment: str
) -> Iterator[tuple[str, Stubs, Collector]]:
    """A server's address and services, and a collector that has it all once the block is over."""
    with collecting() as collector:
        flags = ("--otlp-endpoint", collector.endpoint, *flags)
        with (
            running_server(repository.path, *flags, environment=environment) as server,
            connected(server.address) as stubs,
        ):
            yield server.address, stubs, collector
            assert server.terminate()[0] == 0


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


def test_a_turn_is_a_trace_from_its_wait_to_its_commit(
    repository: Repository, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'sessions.db'}")
    with traced(repository, *store) as (_, stubs, collector):
        session = stubs.create("lstm")
        turn = CompleteRequest(session=session, prompt="Hello", max_tokens=40)
        metadata = (SAMPLED, ("x-request-id", "call-7"))
        stubs.completions.Complete(turn, SECONDS, metadata)
    (call,) = [span for span in collector.calls() if span.name == f"{METHOD}Complete"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert facts(call.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{METHOD}Complete",
        "rpc.response.status_code": "OK",
        "unrolled.request_id": "call-7",
        "unrolled.model": "lstm/1",
    }
    (whole,) = collector.parts(call)
    assert whole.name == "turn"
    assert facts(whole.attributes) == {
        "unrolled.model": "lstm/1",
        "unrolled.tokens.told": 5,
        "unrolled.tokens.drawn": 40,
    }
    parts = collector.parts(whole)
    assert names(parts) == ["wait", "feed", "draw", "commit"]
    times = [call.start_time_unix_nano, whole.start_time_unix_nano]
    times += [
        time for part in parts for time in (part.start_time_unix_nano, part.end_time_unix_nano)
    ]
    times += [whole.end_time_unix_nano, call.end_time_unix_nano]
    assert times == sorted(times)
    # One begins where the other ends.
    assert all(
        one.end_time_unix_nano == next_.start_time_unix_nano for one, next_ in pairwise(parts)
    )
    assert collector.resource["service.name"] == "unrolled-server"
    # Neither names nor texts leave the server.
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    for secret in (session, session.removeprefix("sessions/"), "default", "Hello"):
        assert secret.encode() not in sent


def test_calls_that_do_not_end_well(repository: Repository) -> None:
    with traced(repository) as (address, stubs, collector):
        refused(stubs.completions.Complete, CompleteRequest(model="nobody"))
        opening = ConverseRequest(open=ConverseRequest.Open(model="lstm"))
        turn = ConverseRequest(complete=CompleteRequest(prompt="a", max_tokens=3))
        silent = ConverseRequest(feed=ConverseRequest.Feed(text="abc"))
        list(stubs.completions.Converse(iter([opening, turn, silent]), timeout=SECONDS))
        long = CompleteRequest(model="lstm", prompt="a", max_tokens=60_000)
        left = stubs.completions.StreamComplete(long, timeout=SECONDS)
        assert next(left).delta.text
        left.cancel()
        with grpc.insecure_channel(address) as channel:
            health: Any = HealthStub(channel)
            health.Check(HealthCheckRequest(), timeout=SECONDS)
    unknown, conversation, given_up = calls = collector.calls()
    assert names(calls) == [f"{METHOD}Complete", f"{METHOD}Converse", f"{METHOD}StreamComplete"]
    codes = [facts(call.attributes)["rpc.response.status_code"] for call in (unknown, given_up)]
    assert codes == ["NOT_FOUND", "CANCELLED"]
    # What the caller got wrong or gave up is no error of the server's.
    assert [call.status.code for call in calls] == 3 * [Status.STATUS_CODE_UNSET]
    assert collector.parts(unknown) == []
    drawn, fed = collector.parts(conversation)
    assert names(collector.parts(drawn)) == ["wait", "feed", "draw", "commit"]
    assert names(collector.parts(fed)) == ["wait", "feed", "commit"]
    (cut,) = collector.parts(given_up)
    assert facts(cut.attributes) == {"unrolled.model": "lstm/1"}
    assert names(collector.parts(cut)) == ["wait", "feed", "draw"]
    traces = {span.trace_id for span in collector.spans}
    assert len(traces) == 3


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("OK", StatusCode.UNSET),
        ("NOT_FOUND", StatusCode.UNSET),
        ("CANCELLED", StatusCode.UNSET),
        ("DEADLINE_EXCEEDED", StatusCode.ERROR),
        ("UNAVAILABLE", StatusCode.ERROR),
        ("INTERNAL", StatusCode.ERROR),
    ],
)
def test_codes_that_are_errors_of_the_server(code: str, status: StatusCode) -> None:
    """Those that OpenTelemetry's conventions for gRPC servers list."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CallSpan(provider.get_tracer("test"), "method", "call-1", Context()).end(code)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is status
    assert (span.attributes or {}).get("error.type") == (
        code if status is StatusCode.ERROR else None
    )


def test_whether_a_trace_is_kept_is_the_caller_s_choice_and_open_telemetry_s(
    repository: Repository,
) -> None:
    turn = CompleteRequest(model="lstm", prompt="a", max_tokens=2)
    with traced(repository, OTEL_SERVICE_NAME="mine") as (_, stubs, collector):
        stubs.completions.Complete(turn, SECONDS, (NOT_SAMPLED,))
        stubs.completions.Complete(turn, SECONDS, (("traceparent", "rubbish"),))
    assert len(collector.calls()) == 1
    assert collector.calls()[0].trace_id.hex() != TRACE
    assert collector.resource["service.name"] == "mine"
    with traced(repository, OTEL_TRACES_SAMPLER="always_off") as (_, stubs, collector):
        stubs.completions.Complete(turn, SECONDS, (SAMPLED,))
    assert collector.requests == []


def test_a_collector_that_is_not_there_costs_its_traces_alone(repository: Repository) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    turn = CompleteRequest(model="lstm", prompt="a", max_tokens=2)
    with (
        running_server(repository.path, "--otlp-endpoint", endpoint) as server,
        connected(server.address) as stubs,
    ):
        for _ in range(3):
            assert len(stubs.completions.Complete(turn, timeout=SECONDS).token_ids) == 2
        assert server.terminate()[0] == 0


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which OpenTelemetry cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry'] = None\n")
    return {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}


def test_without_the_extra_the_server_serves_and_says_what_is_missing(
    repository: Repository, bare: dict[str, str]
) -> None:
    with running_server(repository.path, environment=bare) as server:
        assert server.terminate()[0] == 0
    command = [sys.executable, "-m", "unrolled_server", "--models", str(repository.path)]
    command += ["--port", "0", "--otlp-endpoint", "http://127.0.0.1:4317"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=bare)
    assert done.returncode == 1
    assert done.stderr.startswith("unrolled-server: --otlp-endpoint needs opentelemetry")
    assert "pip install '.[tracing]'" in done.stderr

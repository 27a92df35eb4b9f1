"""Calls as spans of OpenTelemetry, sent to a collector by OTLP over gRPC.

Loaded only where --otlp-endpoint asks for it. A call is a span, a child of the caller's where its
metadata has a traceparent (W3C Trace Context); in it each turn is one, and what the turn did one
after the other: wait, feed, draw, commit. No attribute names a session or a tenant. Sampling,
headers, certificates, the service's name and so on follow OpenTelemetry's own variables (OTEL_*).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from unrolled_server.turn_times import TurnTimes

NAME = "unrolled-server"
LAST_SECONDS = 3.0
"""What the collector gets to take the last spans."""
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that make a server's span an error, by OpenTelemetry's conventions for gRPC."""


class CallSpan:
    """A call under way; everything in it is timed by time.perf_counter from its begin."""

    def __init__(self, tracer: trace.Tracer, method: str, request_id: str, parent: Context) -> None:
        self._tracer = tracer
        self._epoch = time.time_ns() - time.perf_counter_ns()
        self._span = tracer.start_span(
            method,
            parent,
            SpanKind.SERVER,
            {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "unrolled.request_id": request_id,
            },
            start_time=self._at(time.perf_counter()),
        )

    def end(self, code: str) -> None:
        """It has ended with this code of gRPC."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code in FAULTS:
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end(self._at(time.perf_counter()))

    def add_turn(self, times: TurnTimes) -> None:
        """A turn of it is over."""
        if not self._span.is_recording():
            return
        self._span.set_attribute("unrolled.model", times.model)
        facts: dict[str, str | int] = {"unrolled.model": times.model}
        if times.drawn is not None:
            facts |= {"unrolled.tokens.told": times.told, "unrolled.tokens.drawn": times.drawn}
        turn = self._part("turn", self._span, times.begun, facts)
        for name, began, ended in times.phases():
            self._part(name, turn, began).end(self._at(ended))
        turn.end(self._at(times.over))

    def _part(
        self, name: str, whole: Span, began: float, facts: dict[str, str | int] | None = None
    ) -> Span:
        within = trace.set_span_in_context(whole)
        return self._tracer.start_span(name, within, attributes=facts, start_time=self._at(began))

    def _at(self, seconds: float) -> int:
        """Nanoseconds since 1970."""
        return self._epoch + round(seconds * 1e9)


_call: ContextVar[CallSpan | None] = ContextVar("call", default=None)
"""The call that the running task serves."""


class Tracer:
    """Makes spans; a thread of its own sends them."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: URL of the collector; "http" is plain text."""
        name = os.environ.get("OTEL_SERVICE_NAME", NAME)
        facts = {SERVICE_NAME: name, SERVICE_VERSION: version("unrolled")}
        self._exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))
        self._provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(NAME, version("unrolled"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, method: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> CallSpan:
        """A call begins; turns in this task are parts of it. method: as metrics name it."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        call = CallSpan(self._tracer, method, request_id, self._propagator.extract(carrier))
        _call.set(call)
        return call

    def turn(self, times: TurnTimes) -> None:
        """A turn of the task's call is over."""
        call = _call.get()
        if call is not None:
            call.add_turn(times)

    def close(self) -> None:
        """Send what there is, within LAST_SECONDS."""
        giving_up = threading.Timer(LAST_SECONDS, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()

"""One channel to one server, and how calls over it are made."""

# ruff: noqa: ASYNC109 -- a timeout is the deadline of a gRPC call, and is sent to the server.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio

from unrolled.completion_stream import AsyncCompletionStream, CompletionStream
from unrolled.errors import translated
from unrolled.security import Security
from unrolled.v1.completion_pb2 import CompleteRequest, Outcome
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.model_pb2_grpc import ModelServiceStub
from unrolled.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from unrolled.v1.completion_pb2_grpc import CompletionServiceAsyncStub
    from unrolled.v1.model_pb2_grpc import ModelServiceAsyncStub
    from unrolled.v1.session_pb2_grpc import SessionServiceAsyncStub

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
ChannelOptions = Sequence[tuple[str, str | int]]

_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A conversation may be silent for hours; without this its pings end after the second.
    ("grpc.http2.max_pings_without_data", 0),
)

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


def deadline(timeout: float | None, default: float | None = None) -> float | None:
    """Seconds for gRPC: the call's own, else the default; infinity is none."""
    chosen = default if timeout is None else timeout
    return None if chosen == math.inf else chosen


class Connection:
    """The stubs of a server for threads. `timeout`: seconds a call may take unless it says."""

    def __init__(
        self,
        target: str,
        timeout: float | None,
        security: Security,
        options: ChannelOptions,
    ) -> None:
        merged = (*_OPTIONS, *security.options, *options)
        self.channel = (
            grpc.insecure_channel(target, merged)
            if security.credentials is None
            else grpc.secure_channel(target, security.credentials, merged)
        )
        self.timeout = timeout
        self.completions = CompletionServiceStub(self.channel)
        self.sessions = SessionServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Answer],
        request: _Request,
        timeout: float | None,
    ) -> _Answer:
        with translated():
            return method(request, timeout=deadline(timeout, self.timeout))

    def stream(
        self,
        request: CompleteRequest,
        timeout: float | None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> CompletionStream:
        call = self.completions.StreamComplete(request, timeout=deadline(timeout, self.timeout))
        return CompletionStream(call, on_outcome)


class AsyncConnection:
    """The stubs of a server for asyncio; made within the running loop."""

    def __init__(
        self,
        target: str,
        timeout: float | None,
        security: Security,
        options: ChannelOptions,
    ) -> None:
        merged = (*_OPTIONS, *security.options, *options)
        self.channel = (
            grpc.aio.insecure_channel(target, merged)
            if security.credentials is None
            else grpc.aio.secure_channel(target, security.credentials, merged)
        )
        self.timeout = timeout
        self.completions = cast("CompletionServiceAsyncStub", CompletionServiceStub(self.channel))
        self.sessions = cast("SessionServiceAsyncStub", SessionServiceStub(self.channel))
        self.models = cast("ModelServiceAsyncStub", ModelServiceStub(self.channel))

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer],
        request: _Request,
        timeout: float | None,
    ) -> _Answer:
        with translated():
            return await method(request, timeout=deadline(timeout, self.timeout))

    def stream(
        self,
        request: CompleteRequest,
        timeout: float | None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> AsyncCompletionStream:
        call = self.completions.StreamComplete(request, timeout=deadline(timeout, self.timeout))
        return AsyncCompletionStream(call, on_outcome)

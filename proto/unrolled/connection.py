"""One channel to one server, and how calls over it are made."""

# ruff: noqa: ASYNC109 -- a timeout is the deadline of a gRPC call, and is sent to the server.

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio

from unrolled.completion_stream import AsyncCompletionStream, CompletionStream
from unrolled.errors import translated
from unrolled.fields import seconds
from unrolled.retrying import (
    ChannelOptions,
    may_be_repeated,
    reads_repeated,
    turns_repeated,
)
from unrolled.routing import Metadata, routing, session_of
from unrolled.security import Security
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse, Outcome
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.model_pb2_grpc import ModelServiceStub
from unrolled.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from unrolled.v1.completion_pb2_grpc import CompletionServiceAsyncStub
    from unrolled.v1.model_pb2_grpc import ModelServiceAsyncStub
    from unrolled.v1.session_pb2_grpc import SessionServiceAsyncStub

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_OPTIONS: ChannelOptions = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A conversation may be silent for hours; without this its pings end after the second.
    ("grpc.http2.max_pings_without_data", 0),
    # By default up to two minutes, after a long outage, in which every call fails at once.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_CENTURY = 100 * 365 * 86_400.0
"""Seconds. To gRPC a deadline that is farther away than some 230 years has passed."""

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


def deadline(timeout: float | None, default: float | None = None) -> float | None:
    """Seconds for gRPC: the call's own, else the default; None where it has all the time there is.

    Raises TypeError or ValueError for what is not a number.
    """
    chosen = default if timeout is None else timeout
    if chosen is None:
        return None
    left = seconds("timeout", chosen)
    return None if left > _CENTURY else left


class Connection:
    """The stubs of a server for threads. `timeout`: seconds a call may take unless it says."""

    def __init__(
        self,
        target: str,
        timeout: float | None,
        security: Security,
        options: ChannelOptions,
    ) -> None:
        def channel(retries: ChannelOptions) -> grpc.Channel:
            merged = (*_OPTIONS, *security.options, *retries, *options)
            if security.credentials is None:
                return grpc.insecure_channel(target, merged)
            return grpc.secure_channel(target, security.credentials, merged)

        self.channel = channel(reads_repeated())
        # The same connection in plain text; with TLS gRPC makes another at the first such turn.
        self._repeating = channel(turns_repeated())
        self.timeout = timeout
        self._metadata = tuple(security.metadata)
        self.completions = CompletionServiceStub(self.channel)
        self._repeated = CompletionServiceStub(self._repeating)
        self.sessions = SessionServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Answer],
        request: _Request,
        timeout: float | None,
    ) -> _Answer:
        with translated():
            return method(
                request,
                timeout=deadline(timeout, self.timeout),
                metadata=self.metadata(session_of(request)),
            )

    def complete(self, request: CompleteRequest, timeout: float | None) -> CompleteResponse:
        return self.unary(self._turns(request).Complete, request, timeout)

    def stream(
        self,
        request: CompleteRequest,
        timeout: float | None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> CompletionStream:
        call = self._turns(request).StreamComplete(
            request,
            timeout=deadline(timeout, self.timeout),
            metadata=self.metadata(session_of(request)),
        )
        return CompletionStream(call, on_outcome)

    def metadata(self, session: str) -> Metadata:
        """What goes with a call on this session; empty: on none."""
        return (*self._metadata, *routing(session))

    def close(self) -> None:
        self._repeating.close()
        self.channel.close()

    def _turns(self, request: CompleteRequest) -> CompletionServiceStub:
        return self._repeated if may_be_repeated(request) else self.completions


class AsyncConnection:
    """The stubs of a server for asyncio; made within the running loop."""

    def __init__(
        self,
        target: str,
        timeout: float | None,
        security: Security,
        options: ChannelOptions,
    ) -> None:
        def channel(retries: ChannelOptions) -> grpc.aio.Channel:
            merged = (*_OPTIONS, *security.options, *retries, *options)
            if security.credentials is None:
                return grpc.aio.insecure_channel(target, merged)
            return grpc.aio.secure_channel(target, security.credentials, merged)

        self.channel = channel(reads_repeated())
        # The same connection in plain text; with TLS gRPC makes another at the first such turn.
        self._repeating = channel(turns_repeated())
        self.timeout = timeout
        self._metadata = tuple(security.metadata)
        self.completions = cast("CompletionServiceAsyncStub", CompletionServiceStub(self.channel))
        self._repeated = cast("CompletionServiceAsyncStub", CompletionServiceStub(self._repeating))
        self.sessions = cast("SessionServiceAsyncStub", SessionServiceStub(self.channel))
        self.models = cast("ModelServiceAsyncStub", ModelServiceStub(self.channel))

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer],
        request: _Request,
        timeout: float | None,
    ) -> _Answer:
        with translated():
            return await method(
                request,
                timeout=deadline(timeout, self.timeout),
                metadata=self.metadata(session_of(request)),
            )

    async def complete(self, request: CompleteRequest, timeout: float | None) -> CompleteResponse:
        return await self.unary(self._turns(request).Complete, request, timeout)

    def stream(
        self,
        request: CompleteRequest,
        timeout: float | None,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> AsyncCompletionStream:
        call = self._turns(request).StreamComplete(
            request,
            timeout=deadline(timeout, self.timeout),
            metadata=self.metadata(session_of(request)),
        )
        return AsyncCompletionStream(call, on_outcome)

    def metadata(self, session: str) -> Metadata:
        """What goes with a call on this session; empty: on none."""
        return (*self._metadata, *routing(session))

    async def close(self) -> None:
        await self._repeating.close()
        await self.channel.close()

    def _turns(self, request: CompleteRequest) -> CompletionServiceAsyncStub:
        return self._repeated if may_be_repeated(request) else self.completions

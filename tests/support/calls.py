"""Calls to a server over its wire contract, and what its refusals say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.model_pb2_grpc import ModelServiceStub
from unrolled.v1.session_pb2 import CreateSessionRequest, GetSessionRequest
from unrolled.v1.session_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from unrolled.v1.completion_pb2_grpc import CompletionServiceAsyncStub
    from unrolled.v1.model_pb2_grpc import ModelServiceAsyncStub
    from unrolled.v1.session_pb2_grpc import SessionServiceAsyncStub

Options: TypeAlias = Sequence[tuple[str, str | int]]

SECONDS = 60.0
"""Deadline of calls that are expected to end by themselves."""

SMALL_WINDOW: Options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""A channel that takes at most 64 KiB of a stream before somebody reads it."""

LONG = 6000
"""Tokens of an unread turn: hundreds of kilobytes with their log-probabilities."""


@dataclass(frozen=True)
class Stubs:
    """The services of one server, for threads."""

    completions: CompletionServiceStub
    sessions: SessionServiceStub
    models: ModelServiceStub

    def create(self, model: str, seed: int | None = None) -> str:
        """The name of a new session."""
        request = CreateSessionRequest(model=model, seed=seed)
        return self.sessions.CreateSession(request, timeout=SECONDS).session.name

    def position(self, session: str) -> int:
        """Where a session stands."""
        request = GetSessionRequest(name=session)
        return self.sessions.GetSession(request, timeout=SECONDS).session.position

    def tell(self, session: str, text: str) -> None:
        """Tell a session some text."""
        request = CompleteRequest(session=session, prompt=text, max_tokens=0)
        self.completions.Complete(request, timeout=SECONDS)


@dataclass(frozen=True)
class AsyncStubs:
    """The services of one server, for asyncio."""

    completions: CompletionServiceAsyncStub
    sessions: SessionServiceAsyncStub
    models: ModelServiceAsyncStub


@contextmanager
def connected(
    address: str, options: Options = (), credentials: grpc.ChannelCredentials | None = None
) -> Iterator[Stubs]:
    """The services at HOST:PORT, in plain text unless there are credentials."""
    with (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        yield Stubs(
            CompletionServiceStub(channel), SessionServiceStub(channel), ModelServiceStub(channel)
        )


@asynccontextmanager
async def async_connected(address: str) -> AsyncIterator[AsyncStubs]:
    """The services at HOST:PORT."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield AsyncStubs(
            cast("CompletionServiceAsyncStub", CompletionServiceStub(channel)),
            cast("SessionServiceAsyncStub", SessionServiceStub(channel)),
            cast("ModelServiceAsyncStub", ModelServiceStub(channel)),
        )


@contextmanager
def unread_turn(address: str, request: CompleteRequest) -> Iterator[grpc.Call]:
    """A turn of LONG tokens, begun and then left unread, so that it does not end; then cancelled.

    Iterate over what is yielded to read on. The first event has been read.
    """
    whole = CompleteRequest(max_tokens=LONG, logprobs=5)
    whole.MergeFrom(request)
    with connected(address, SMALL_WINDOW) as stubs:
        call = stubs.completions.StreamComplete(whole, timeout=SECONDS)
        assert next(call).delta.token_ids
        try:
            yield cast("grpc.Call", call)
        finally:
            call.cancel()


@dataclass(frozen=True)
class Refusal:
    """An error of the server, taken apart."""

    code: str
    reason: str
    """Without the prefix of the enum."""
    metadata: dict[str, str]
    fields: list[str]
    """Of the BadRequest; empty where there is none."""
    retry_after: float | None
    """Seconds of the RetryInfo; None where there is none."""
    message: str


def refused(call: Callable[..., object], request: Message) -> Refusal:
    """Make a call that must fail, unary or streamed, and return how it did."""

    def read_whole() -> None:
        answer = call(request, timeout=SECONDS)
        if isinstance(answer, Iterator):
            list(answer)

    with pytest.raises(grpc.RpcError) as caught:
        read_whole()
    return refusal_of(caught.value)


def refusal_of(error: grpc.RpcError) -> Refusal:
    """What the status of a failed call says."""
    call = cast("grpc.Call", error)
    (status,) = [v for k, v in call.trailing_metadata() if k == "grpc-status-details-bin"]
    assert isinstance(status, bytes)
    refusal = refusal_of_status(Status.FromString(status))
    assert refusal.code == call.code().name
    assert refusal.message == call.details()
    return refusal


def refusal_of_status(status: Status) -> Refusal:
    """What a google.rpc.Status says; its ErrorInfo has to be of the domain "unrolled"."""
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    has_retry = False
    for detail in status.details:
        has_retry = detail.Unpack(retry) or has_retry
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "unrolled"
    (code,) = [code.name for code in grpc.StatusCode if code.value[0] == status.code]
    return Refusal(
        code,
        info.reason.removeprefix("ERROR_REASON_"),
        dict(info.metadata),
        [violation.field for violation in bad.field_violations],
        retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        status.message,
    )

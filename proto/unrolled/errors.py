"""What a call that fails raises.

UnrolledError                any status; code, message, reason and the rest say which
├── InvalidArgument          a field was refused: field_violations names it
├── NotFound                 no such model, or no such session (any more)
├── Aborted                  the turn met another one and may be tried again
│   └── SessionBusy          another turn of the session is under way
├── FailedPrecondition       the session does not stand where the call expects it
├── ResourceExhausted        a limit of the server: retry_after where waiting helps
├── Unauthenticated          the server wants an API key, and another one than this
├── Unavailable              nobody answers there, the way there broke, or the server is draining
├── DeadlineExceeded         the timeout passed; the turn has left no trace unless it had ended
├── Cancelled                this side cancelled the call, or it met the very end of the server
└── Unimplemented            this release of the server does not do that
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

DOMAIN = "unrolled"

_MessageT = TypeVar("_MessageT", bound=Message)


class FieldViolation(NamedTuple):
    """A request field that was refused, and why."""

    field: str
    description: str


class UnrolledError(Exception):
    """A call failed with this status.

    `reason` is an ErrorReason of the contract without its prefix ("SESSION_BUSY"), and `metadata`
    what the contract lists beside it; None and empty where no server of this kind answered.
    `retry_after` is in seconds, None where the server gives no hint.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, reason, metadata, field_violations, retry_after)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.reason or self.code.name}]"


class InvalidArgument(UnrolledError):
    """INVALID_ARGUMENT."""


class NotFound(UnrolledError):
    """NOT_FOUND."""


class Aborted(UnrolledError):
    """ABORTED."""


class SessionBusy(Aborted):
    """ABORTED with reason SESSION_BUSY."""


class FailedPrecondition(UnrolledError):
    """FAILED_PRECONDITION."""


class ResourceExhausted(UnrolledError):
    """RESOURCE_EXHAUSTED."""


class Unavailable(UnrolledError):
    """UNAVAILABLE."""


class Unauthenticated(UnrolledError):
    """UNAUTHENTICATED."""


class DeadlineExceeded(UnrolledError):
    """DEADLINE_EXCEEDED."""


class Cancelled(UnrolledError):
    """CANCELLED."""


class Unimplemented(UnrolledError):
    """UNIMPLEMENTED."""


_KINDS: dict[grpc.StatusCode, type[UnrolledError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def error_from_status(status: Status) -> UnrolledError:
    """The exception for a status, such as that of a conversation's error event."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = next((i for i in _details(status, ErrorInfo) if i.domain == DOMAIN), ErrorInfo())
    reason = info.reason.removeprefix("ERROR_REASON_") or None
    kind = SessionBusy if reason == "SESSION_BUSY" else _KINDS.get(code, UnrolledError)
    violations = tuple(
        FieldViolation(violation.field, violation.description)
        for bad in _details(status, BadRequest)
        for violation in bad.field_violations
    )
    retry_after = next(
        (r.retry_delay.ToTimedelta().total_seconds() for r in _details(status, RetryInfo)), None
    )
    return kind(code, status.message, reason, dict(info.metadata), violations, retry_after)


def error_from_rpc(error: grpc.RpcError) -> UnrolledError:
    """The exception for a failed call, with whatever details its trailers carry."""
    try:
        # Whatever gRPC raises, for threads or for asyncio, has these methods of a call.
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        # A proxy may replace the code or the message and leave the trailer.
        status = None
    if status is None:
        status = _status_of_transport(error.code(), error.details() or "")
    return error_from_status(status)


def _status_of_transport(code: grpc.StatusCode, message: str) -> Status:
    """The status of a call that no server of this kind has ended."""
    if code is grpc.StatusCode.INTERNAL and "RST_STREAM" in message:
        # How a proxy ends a stream whose server is gone.
        code = grpc.StatusCode.UNAVAILABLE
    return Status(code=code.value[0], message=message)


class translated:
    """Context in which a failed RPC leaves as an UnrolledError."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, grpc.RpcError):
            raise error_from_rpc(error) from error
        if isinstance(error, asyncio.CancelledError) and not _task_is_cancelled():
            # grpc.aio reports a call that was cancelled as if the reading task had been.
            raise Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled here") from error


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _details(status: Status, kind: type[_MessageT]) -> list[_MessageT]:
    """The status's details of one kind; what cannot be decoded is left out."""
    found = []
    for detail in status.details:
        message = kind()
        try:
            if detail.Unpack(message):
                found.append(message)
        except DecodeError:
            continue
    return found

"""Domain errors as google.rpc.Status, with details that programs can act on."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from unrolled_server.errors import InvalidField, ServerError

DOMAIN = "unrolled"


class InternalError(ServerError):
    """Whatever nobody foresaw: callers get one fixed text, the log has the rest."""

    code = "INTERNAL"
    reason = "INTERNAL"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")


def status_of(error: ServerError) -> status_pb2.Status:
    """The status of an error: ErrorInfo always, BadRequest and RetryInfo where they fit."""
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(
            reason=f"ERROR_REASON_{error.reason}", domain=DOMAIN, metadata=error.metadata
        )
    ]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.problem
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration(nanos=0)
        delay.FromMilliseconds(round(1000 * error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = grpc.StatusCode[error.code].value[0]
    return status_pb2.Status(
        code=code, message=error.message, details=[_packed(detail) for detail in details]
    )


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed

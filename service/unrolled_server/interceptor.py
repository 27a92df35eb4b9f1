"""What every call goes through: domain errors become statuses, calls are counted and named.

Where there are API keys, a call without a good one goes no further than this. The name of a call
is its x-request-id, the caller's own where it sent one: every line of the log within the call has
it, and the caller gets it back in the trailing metadata.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from unrolled_server.api_keys import ApiKeys
from unrolled_server.errors import InvalidField, ServerError
from unrolled_server.logs import log_event, request_id
from unrolled_server.metrics import NoRpcMetrics, RpcMetrics
from unrolled_server.status import InternalError, status_of
from unrolled_server.tenants import tenant

if TYPE_CHECKING:
    from unrolled_server.tracing import CallSpan, Tracer

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = Callable[..., Any]

OPEN_SERVICES = ("grpc.health.v1.", "grpc.reflection.")
"""Beginnings of methods that take no API key."""
FAULTS = ("DATA_LOSS", "UNAVAILABLE")
"""Codes of calls that are logged though nobody debugs; what nobody foresaw has a line already."""
REQUEST_ID = "x-request-id"
REASON = "unrolled-reason"
"""A trailer with the reason of an error, for proxies: what they log, and send elsewhere."""
_ACCEPTABLE_ID = re.compile(r"[!-~]{1,128}")
"""What a caller may name its call: longer ids, or such with spaces, would be a nuisance in logs."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method, whatever streams."""

    def __init__(
        self,
        metrics: RpcMetrics | NoRpcMetrics,
        keys: Callable[[], ApiKeys | None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:
        """`keys`: those that are good now; None where none is asked for."""
        self._metrics = metrics
        self._keys = keys
        self._tracer = tracer
        self._handlers: dict[str, tuple[Handler, Handler]] = {}
        """By method: what it is served by, and that with everything around it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            self._metrics.unknown()
            return None
        method = str(handler_call_details.method).removeprefix("/")
        known = self._handlers.get(method)
        if known is None or known[0] is not handler:
            wrapped = self._wrapped(method, _behaviour(handler), _parser(handler))
            known = self._handlers[method] = handler, _rebuilt(handler, wrapped)
        return known[1]

    def _wrapped(self, method: str, behaviour: Behaviour, parse: Behaviour) -> Behaviour:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                async with self._observed(method, context):
                    async for response in behaviour(parse(request), context):
                        yield response

            return stream

        async def call(request: Any, context: Context) -> Any:
            async with self._observed(method, context):
                return await behaviour(parse(request), context)

        return call

    @asynccontextmanager
    async def _observed(self, method: str, context: Context) -> AsyncIterator[None]:
        # Each call is a task of its own, with which the variable ends.
        name = _request_id(context)
        request_id.set(name)
        context.set_trailing_metadata(((REQUEST_ID, name),))
        started = time.perf_counter()
        self._metrics.begin(method)
        span = self._span(method, name, context)
        code = "OK"
        failure: ServerError | None = None
        try:
            self._let_in(method, context)
            yield
        except ServerError as error:
            code, failure = error.code, error
        except asyncio.CancelledError:
            code = "CANCELLED" if _time_left(context) else "DEADLINE_EXCEEDED"
            raise
        except grpc.aio.AbortError:
            code = context.code().name
            raise
        except Exception:
            code, failure = "INTERNAL", InternalError()
            logger.exception("call_failed", extra={"fields": {"method": method}})
        finally:
            seconds = time.perf_counter() - started
            self._metrics.end(method, code, seconds)
            if span is not None:
                span.end(code)
            _log_call(method, code, seconds, failure)
        if failure is not None:
            # Counted before: the status of an unread stream leaves when its reader reads.
            await _abort(context, failure)

    def _span(self, method: str, name: str, context: Context) -> CallSpan | None:
        if self._tracer is None or method.startswith(OPEN_SERVICES):
            return None
        return self._tracer.begin(method, name, context.invocation_metadata() or ())

    def _let_in(self, method: str, context: Context) -> None:
        """Find out whose call it is. Raises Unauthenticated."""
        keys = self._keys()
        if keys is not None and not method.startswith(OPEN_SERVICES):
            tenant.set(keys.tenant(_sent(context, "authorization")))


def _log_call(method: str, code: str, seconds: float, failure: ServerError | None) -> None:
    """One line."""
    level = logging.WARNING if code in FAULTS else logging.DEBUG
    facts = {} if failure is None else {"reason": failure.reason}
    log_event(logger, level, "call", method=method, code=code, seconds=seconds, **facts)


def _request_id(context: Context) -> str:
    """The caller's, or a new one where it sent none that will do."""
    sent = _sent(context, REQUEST_ID)
    return sent if _ACCEPTABLE_ID.fullmatch(sent) else secrets.token_hex(16)


def _sent(context: Context, name: str) -> str:
    """The first value of this name in the call's metadata; empty where there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def _time_left(context: Context) -> bool:
    left: float | None = context.time_remaining()
    return left is None or left > 0


async def _abort(context: Context, error: ServerError) -> None:
    # to_status packs the google.rpc.Status into the trailer that clients unpack.
    status = rpc_status.to_status(status_of(error))
    reason = (REASON, error.reason)
    trailers = (*status.trailing_metadata, *context.trailing_metadata(), reason)
    try:
        await context.abort(status.code, status.details, trailers)
    except grpc.aio.InternalError as gone:
        # Nobody is there to be told.
        raise asyncio.CancelledError from gone


def _parser(handler: Handler) -> Behaviour:
    """From what came over the wire, bytes or a stream of them, to messages.

    gRPC would parse before the method is called, and answer what it cannot parse itself.
    """

    deserialize: Behaviour = handler.request_deserializer or bytes

    def parse(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError as error:
            raise InvalidField("request", "not a message of the contract") from error

    async def parse_all(messages: AsyncIterable[bytes]) -> AsyncIterator[Any]:
        async for message in messages:
            yield parse(message)

    return parse_all if handler.request_streaming else parse


def _behaviour(handler: Handler) -> Behaviour:
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    behaviour: Behaviour = next(filter(None, (getattr(handler, kind) for kind in kinds)))
    return behaviour


def _rebuilt(handler: Handler, behaviour: Behaviour) -> Handler:
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = makers[handler.request_streaming, handler.response_streaming]
    return make(behaviour, None, handler.response_serializer)

"""What nobody foresaw: callers get one fixed text, the log has the rest, and the server goes on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from support.calls import SECONDS, Refusal, refusal_of
from unrolled.v1.completion_pb2 import (
    CompleteEvent,
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    ConverseResponse,
    ScoreRequest,
    ScoreResponse,
)
from unrolled.v1.completion_pb2_grpc import (
    CompletionServiceServicer,
    add_CompletionServiceServicer_to_server,
)
from unrolled_server.errors import Overloaded
from unrolled_server.interceptor import CallInterceptor
from unrolled_server.logs import LogfmtFormatter
from unrolled_server.metrics import RpcMetrics

METHOD = "unrolled.v1.CompletionService/"


class Faulty(CompletionServiceServicer):
    """A service whose methods fail, each in its way."""

    async def Complete(self, request: CompleteRequest, context: Any) -> CompleteResponse:
        raise KeyError("a secret\nof two lines")

    async def StreamComplete(self, request: CompleteRequest, context: Any) -> None:  # type: ignore[override]
        await context.write(CompleteEvent())
        raise ZeroDivisionError("a secret")

    async def Converse(self, requests: AsyncIterator[ConverseRequest], context: Any) -> None:  # type: ignore[override]
        async for _ in requests:
            await context.write(ConverseResponse())
        raise Overloaded(7)

    async def Score(self, request: ScoreRequest, context: Any) -> ScoreResponse:
        return ScoreResponse(total_logprob=-1.5)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def channel(registry: CollectorRegistry) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[CallInterceptor(RpcMetrics(registry))])
    add_CompletionServiceServicer_to_server(Faulty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def handled(registry: CollectorRegistry, method: str, code: str) -> float:
    labels = {"method": METHOD + method, "code": code}
    return registry.get_sample_value("unrolled_rpc_handled_total", labels) or 0.0


async def failed(call: Callable[[], Any]) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        await call()
    return refusal_of(caught.value)


def unary(channel: grpc.aio.Channel, method: str) -> Callable[[], Any]:
    multi: Any = channel.unary_unary(f"/{METHOD}{method}")
    return lambda: multi(b"", timeout=SECONDS)


def streamed(channel: grpc.aio.Channel, method: str) -> Callable[[], Any]:
    multi: Any = channel.unary_stream(f"/{METHOD}{method}")

    async def read() -> int:
        return len([message async for message in multi(b"", timeout=SECONDS)])

    return read


@pytest.mark.parametrize(("method", "call"), [("Complete", unary), ("StreamComplete", streamed)])
async def test_an_unknown_failure_tells_the_caller_nothing(
    channel: grpc.aio.Channel,
    registry: CollectorRegistry,
    method: str,
    call: Callable[[grpc.aio.Channel, str], Callable[[], Any]],
) -> None:
    refusal = await failed(call(channel, method))
    assert (refusal.code, refusal.reason, refusal.metadata) == ("INTERNAL", "INTERNAL", {})
    assert "secret" not in refusal.message
    assert handled(registry, method, "INTERNAL") == 1


async def test_an_unknown_failure_is_one_line_of_the_log(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await failed(unary(channel, "Complete"))
    (record,) = caplog.records
    line = LogfmtFormatter().format(record)
    assert "\n" not in line
    assert f"event=call_failed method={METHOD}Complete" in line
    assert "a secret" in line


async def test_after_a_failure_the_server_goes_on(
    channel: grpc.aio.Channel, registry: CollectorRegistry
) -> None:
    await failed(unary(channel, "Complete"))
    answer = await unary(channel, "Score")()
    assert ScoreResponse.FromString(answer).total_logprob == -1.5
    assert handled(registry, "Score", "OK") == 1


async def test_a_known_failure_at_the_end_of_a_stream_keeps_its_details(
    channel: grpc.aio.Channel, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    multi: Any = channel.stream_stream(f"/{METHOD}Converse")

    async def read() -> None:
        async for _ in multi(iter([b"", b""]), timeout=SECONDS):
            pass

    with caplog.at_level(logging.WARNING):
        refusal = await failed(read)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert (refusal.metadata, refusal.retry_after) == ({"limit": "7"}, 1.0)
    assert handled(registry, "Converse", "RESOURCE_EXHAUSTED") == 1
    assert caplog.records == []

"""Statuses as exceptions."""

from __future__ import annotations

import math
import pickle
from queue import SimpleQueue

import grpc
import pytest
import unrolled
from client.fake_service import FakeService, failure, served
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status
from unrolled import AsyncClient, Client, UnrolledError, error_from_status

KINDS = [
    (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", unrolled.InvalidArgument),
    (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", unrolled.NotFound),
    (grpc.StatusCode.ABORTED, "SESSION_BUSY", unrolled.SessionBusy),
    (grpc.StatusCode.ABORTED, "FENCED", unrolled.Aborted),
    (grpc.StatusCode.FAILED_PRECONDITION, "POSITION_MISMATCH", unrolled.FailedPrecondition),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", unrolled.ResourceExhausted),
    (grpc.StatusCode.UNAVAILABLE, "DRAINING", unrolled.Unavailable),
    (grpc.StatusCode.DEADLINE_EXCEEDED, None, unrolled.DeadlineExceeded),
    (grpc.StatusCode.CANCELLED, None, unrolled.Cancelled),
    (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", unrolled.Unimplemented),
    (grpc.StatusCode.DATA_LOSS, "RECORD_CORRUPT", UnrolledError),
    (grpc.StatusCode.INTERNAL, "INTERNAL", UnrolledError),
]


@pytest.mark.parametrize(("code", "reason", "kind"), KINDS)
async def test_each_status_has_its_exception(
    fake: FakeService,
    client: Client,
    async_client: AsyncClient,
    code: grpc.StatusCode,
    reason: str | None,
    kind: type[UnrolledError],
) -> None:
    fake.failure = failure(code, "no", reason)
    with pytest.raises(UnrolledError) as caught:
        client.models()
    fake.failure = failure(code, "no", reason)
    with pytest.raises(UnrolledError) as async_caught:
        await async_client.models()

    for error in (caught.value, async_caught.value):
        assert type(error) is kind
        assert (error.code, error.message, error.reason) == (code, "no", reason)
        assert error.retry_after is None
        assert isinstance(error.__cause__, grpc.RpcError)


def test_details_are_told(fake: FakeService, client: Client) -> None:
    fake.failure = failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        "top_p: must be more than 0",
        "ERROR_REASON_INVALID_FIELD",
        {"field": "top_p"},
        violations={"top_p": "must be more than 0"},
        retry_after=1.5,
    )
    with pytest.raises(unrolled.InvalidArgument) as caught:
        client.complete("a", model="tiny")

    error = caught.value
    assert str(error) == "top_p: must be more than 0 [INVALID_FIELD]"
    assert error.reason == "INVALID_FIELD"
    assert error.metadata == {"field": "top_p"}
    assert error.field_violations == (("top_p", "must be more than 0"),)
    assert error.retry_after == 1.5


def test_reasons_of_others_are_not_ours(fake: FakeService, client: Client) -> None:
    fake.failure = failure(
        grpc.StatusCode.UNAVAILABLE, "no", "SESSION_BUSY", {"a": "b"}, domain="example.com"
    )
    with pytest.raises(unrolled.Unavailable) as caught:
        client.models()

    assert (caught.value.reason, caught.value.metadata) == (None, {})


def test_nobody_there() -> None:
    with (
        unrolled.Client("127.0.0.1:1", timeout=30) as client,
        pytest.raises(unrolled.Unavailable) as caught,
    ):
        client.models()

    assert (caught.value.reason, caught.value.retry_after) == (None, None)


async def test_asyncio_nobody_there() -> None:
    async with unrolled.AsyncClient("127.0.0.1:1", timeout=30) as client:
        with pytest.raises(unrolled.Unavailable):
            await client.complete("a", model="tiny")
        with pytest.raises(unrolled.Unavailable):
            await anext(client.stream("a", model="tiny"))


def is_abandoned_in_time(default: float | None, own: float | None) -> bool:
    """Whether a stream that its timeout ended had begun; on a busy machine it may not have."""
    with served() as fake, unrolled.Client(fake.target, timeout=default) as client:
        fake.holds = True
        deltas: SimpleQueue[object] = SimpleQueue()
        stream = map(deltas.put, client.stream("a", model="tiny", timeout=own))
        with pytest.raises(unrolled.DeadlineExceeded):
            list(stream)
        assert deltas.empty() or fake.abandoned.wait(30)
        return not deltas.empty()


@pytest.mark.parametrize(("default", "own"), [(None, 1.0), (1.0, None), (math.inf, 1.0)])
def test_a_timeout_ends_the_call(default: float | None, own: float | None) -> None:
    seconds = 0.05
    while not is_abandoned_in_time(default and default * seconds, own and own * seconds):
        seconds *= 2


def test_a_call_without_a_timeout_has_the_clients(fake: FakeService) -> None:
    with unrolled.Client(fake.target, timeout=3600) as client:
        client.models()
        client.models(timeout=7200)
        client.models(timeout=math.inf)

    one, two, forever = fake.deadlines
    # gRPC rounds deadlines up on their way.
    assert one < 4000 < two < 8000 < forever


async def test_asyncio_a_call_without_a_timeout_has_the_clients(fake: FakeService) -> None:
    async with unrolled.AsyncClient(fake.target, timeout=3600) as client:
        await client.models()
        await client.models(timeout=math.inf)
        await anext(client.stream(model="tiny"))

    one, forever, stream = fake.deadlines
    assert max(one, stream) < 4000 < forever


def test_details_that_cannot_be_read_are_left_out() -> None:
    status = failure(grpc.StatusCode.UNAVAILABLE, "no", "DRAINING")
    status.details.insert(0, Any(type_url=status.details[0].type_url, value=b"\xff"))

    assert error_from_status(status).reason == "DRAINING"


def test_a_code_that_grpc_lacks_is_unknown() -> None:
    assert error_from_status(Status(code=99)).code is grpc.StatusCode.UNKNOWN


def test_errors_survive_pickling() -> None:
    status = failure(
        grpc.StatusCode.ABORTED, "busy", "SESSION_BUSY", {"session": "a"}, retry_after=1
    )
    error = pickle.loads(pickle.dumps(error_from_status(status)))  # noqa: S301 -- our own

    assert type(error) is unrolled.SessionBusy
    assert (error.reason, error.metadata, error.retry_after) == (
        "SESSION_BUSY",
        {"session": "a"},
        1,
    )

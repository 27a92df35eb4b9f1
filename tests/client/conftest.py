"""A fake server for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import unrolled
from client.fake_service import FakeService, served

ONCE = (("grpc.enable_retries", 0),)
"""The fake fails one call at a time, and the test wants to see that failure."""


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with served() as service:
        yield service


@pytest.fixture
def client(fake: FakeService) -> Iterator[unrolled.Client]:
    with unrolled.Client(fake.target, options=ONCE) as connected:
        yield connected


@pytest.fixture
async def async_client(fake: FakeService) -> AsyncIterator[unrolled.AsyncClient]:
    async with unrolled.AsyncClient(fake.target, options=ONCE) as connected:
        yield connected

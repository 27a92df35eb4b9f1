"""A fake server for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import unrolled
from client.fake_service import FakeService, served


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with served() as service:
        yield service


@pytest.fixture
def client(fake: FakeService) -> Iterator[unrolled.Client]:
    with unrolled.Client(fake.target) as connected:
        yield connected


@pytest.fixture
async def async_client(fake: FakeService) -> AsyncIterator[unrolled.AsyncClient]:
    async with unrolled.AsyncClient(fake.target) as connected:
        yield connected

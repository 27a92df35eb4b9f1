"""Fixtures for tests that call the server shared by all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from support.calls import AsyncStubs, Stubs, async_connected, connected
from support.metrics import Metrics
from support.server import RunningServer


@pytest.fixture(scope="session")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with connected(server.address) as stubs:
        yield stubs


@pytest.fixture
async def async_stubs(server: RunningServer) -> AsyncIterator[AsyncStubs]:
    async with async_connected(server.address) as stubs:
        yield stubs


@pytest.fixture(scope="session")
def metrics(server: RunningServer) -> Metrics:
    return Metrics(server.metrics_url)

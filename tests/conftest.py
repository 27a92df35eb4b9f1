"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support.models import Repository, make_repository
from support.server import RunningServer, running_server

# Where a test does not say where its server keeps sessions, it leaves nothing behind.
os.environ["UNROLLED_STORE"] = "memory"

# How long an example takes is the machine's doing.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The models of `support.models.RECIPES`. Not to be changed by tests."""
    return make_repository(tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(repository: Repository) -> Iterator[RunningServer]:
    """One server for all tests that leave no trace but sessions."""
    with running_server(repository.path) as running:
        yield running


@pytest.fixture(scope="session")
def crowded_server(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with a store whose memory has room for two idle sessions."""
    store = tmp_path_factory.mktemp("store") / "sessions.db"
    flags = ("--store", f"sqlite:{store}", "--max-sessions", "2")
    with running_server(repository.path, *flags) as running:
        yield running

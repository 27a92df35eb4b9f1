"""Two servers on one Redis: sessions that move between them, and what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.calls import SECONDS, Stubs
from support.lone import LoneSession
from support.models import Repository
from support.redis import RunningRedis, running_redis
from support.stored import Serving, serving
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RunningRedis]:
    with running_redis(tmp_path) as redis:
        yield redis


@pytest.fixture
def pair(repository: Repository, redis: RunningRedis) -> Iterator[tuple[Serving, Serving]]:
    """Two servers on one Redis."""
    with serving(repository.path, redis.url) as one, serving(repository.path, redis.url) as other:
        yield one, other


def turn(
    stubs: Stubs, session: str, prompt: str, drawn: int, request_id: str = ""
) -> CompleteResponse:
    request = CompleteRequest(
        session=session, prompt=prompt, max_tokens=drawn, request_id=request_id
    )
    return stubs.completions.Complete(request, timeout=SECONDS)


def test_a_session_goes_from_server_to_server_bit_for_bit(
    repository: Repository, pair: tuple[Serving, Serving]
) -> None:
    lone = LoneSession(repository, "lstm", 9)
    name = pair[0].stubs.create("lstm", seed=9)
    for number in (0, 1, 1, 0, 1, 0, 0):
        lone.tell("abc")
        assert turn(pair[number].stubs, name, "abc", 5).text == lone.draw(5)
        for each in pair:
            assert each.stubs.position(name) == lone.position

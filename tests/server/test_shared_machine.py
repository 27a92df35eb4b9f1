"""Two servers' sessions, in one process, on one real Redis, against a model of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from pathlib import Path
from random import Random
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.redis import RunningRedis, running_redis
from unrolled.v1 import model_pb2
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.errors import Fenced, ServerError, SessionBusy, SessionNotFound
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.redis_store import RedisStore
from unrolled_server.session import Session
from unrolled_server.shared_keeper import SharedKeeper
from unrolled_server.store import Claim
from unrolled_server.types import Past
from unrolled_server.vocabulary import CharacterVocabulary

Value = TypeVar("Value")

VOCABULARY = CharacterVocabulary([b"a"], None, (), None)
MODEL = ServedModel("m", 1, "0f" * 32, 4, VOCABULARY, cast("Any", None), "cpu")

FEW = 3
"""Sessions at once: one more than either memory has room for."""


class Turn:
    """A turn as the model knows it, and the server that runs it."""

    def __init__(self, machine: SharedMachine, server: Server, session: Session) -> None:
        self.machine = machine
        self.server = server
        self.session = session
        self.start = server.sessions.memory.past(session)
        self.lost: ServerError | None = None
        """Why its server gave it up, which may be long before its commit."""
        self.was_due: type[ServerError] | None = None
        """What the model had to say then."""
        self.is_over = False
        server.sessions.memory.hold(session, self.lose)

    def lose(self) -> None:
        self.lost = self.server.sessions.why_ended(self.session.name)
        self.was_due = self.machine.due(self)


class Server:
    """Room for two sessions in memory."""

    def __init__(self, url: str) -> None:
        models = Models([Entry(model_pb2.Model(name="m", version=1), MODEL)])
        self.store = RedisStore(url, timeout=30.0)
        self.sessions = SharedKeeper(CachedSessions(2, 3600.0), models, self.store)


def content(number: int, position: int) -> Past:
    """What turn `number` of all leaves."""
    return Past(np.full(4, number, np.float32), number, position)


class SharedMachine(RuleBasedStateMachine):
    redis: ClassVar[RunningRedis]
    names: Bundle[str] = Bundle("names")
    turns: Bundle[Turn] = Bundle("turns")
    either = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.truth: dict[str, Past] = {}
        """Sessions that have not been deleted."""
        self.owner: dict[str, Turn] = {}
        """The turn that claimed a session last."""
        self.number = 0

    def run(self, work: Awaitable[Value]) -> Value:
        return self.loop.run_until_complete(work)

    def outcome(self, work: Awaitable[Any]) -> type[ServerError] | None:
        """What the work raised."""
        try:
            self.run(work)
        except ServerError as error:
            return type(error)
        return None

    @initialize()
    def begin(self) -> None:
        with self.redis.client() as client:
            client.flushall()

        async def opened() -> list[Server]:
            servers = [Server(self.redis.url) for _ in range(2)]
            for server in servers:
                await server.store.open()
            return servers

        self.servers = self.run(opened())

    def teardown(self) -> None:
        for server in getattr(self, "servers", []):
            self.run(server.sessions.close())
        self.loop.close()

    @precondition(lambda self: len(self.truth) < FEW)
    @rule(target=names, on=either)
    def create(self, on: int) -> str:
        name = self.run(self.servers[on].sessions.create(MODEL)).name
        self.truth[name] = Past(None, None, 0)
        return name

    @precondition(lambda self: len(self.truth) < FEW)
    @rule(target=names, name=names, on=either)
    def fork(self, name: str, on: int) -> Any:
        if name not in self.truth:
            assert self.outcome(self.servers[on].sessions.fork(name, None)) is SessionNotFound
            return multiple()
        child = self.run(self.servers[on].sessions.fork(name, None)).name
        self.truth[child] = self.truth[name]
        return child

    @rule(target=turns, name=names, on=either, is_at=st.booleans(), is_checked=st.booleans())
    def begin_turn(self, name: str, on: int, is_at: bool, is_checked: bool) -> Any:
        server = self.servers[on]
        seen: list[Past] = []

        def check(session: Session) -> None:
            seen.append(server.sessions.memory.past(session))

        position = self.truth[name].position if name in self.truth else 0
        claim = Claim(position if is_at else None)
        loading = server.sessions.load(name, claim, check if is_checked else None)
        if name not in self.truth:
            assert self.outcome(loading) is SessionNotFound
            return multiple()
        session = self.run(loading)
        same(server.sessions.memory.past(session), self.truth[name])
        if is_checked:
            same(seen[-1], self.truth[name])
        owner = self.owner.get(name)
        if owner is not None and owner.server is server and not owner.is_over:
            with pytest.raises(SessionBusy):
                server.sessions.memory.hold(session, lambda: None)
            return multiple()
        self.owner[name] = turn = Turn(self, server, session)
        return turn

    def due(self, turn: Turn) -> type[ServerError] | None:
        """What a commit of the turn has to raise now."""
        if turn.session.name not in self.truth:
            return SessionNotFound
        return None if self.owner.get(turn.session.name) is turn else Fenced

    @rule(turn=consumes(turns))
    def commit(self, turn: Turn) -> None:
        self.number += 1
        name, past = turn.session.name, content(self.number, turn.start.position + self.number % 3)
        if turn.lost is not None:
            assert type(turn.lost) is turn.was_due
        else:
            sessions, due = turn.server.sessions, self.due(turn)
            assert self.outcome(sessions.commit(turn.session, past)) is due
            sessions.release(turn.session)
            if due is None:
                self.truth[name] = past
        turn.is_over = True

    @rule(name=names, ons=st.lists(either, min_size=1, max_size=3), order=st.randoms())
    def race(self, name: str, ons: list[int], order: Random) -> None:
        """Turns that begin before any of them ends."""
        turns = [self.begin_turn(name, on, True, order.random() < 0.5) for on in ons]
        begun = [turn for turn in turns if isinstance(turn, Turn)]
        order.shuffle(begun)
        for turn in begun:
            self.commit(turn)

    @rule(turn=consumes(turns))
    def leave(self, turn: Turn) -> None:
        if turn.lost is None:
            turn.server.sessions.release(turn.session)
        turn.is_over = True

    @rule(name=names, on=either)
    def look(self, name: str, on: int) -> None:
        sessions = self.servers[on].sessions
        if name in self.truth:
            session = self.run(sessions.load(name))
            same(sessions.memory.past(session), self.truth[name])
        else:
            assert self.outcome(sessions.load(name)) is SessionNotFound

    @rule(name=names, on=either, position=st.integers(100, 200))
    def begin_elsewhere(self, name: str, on: int, position: int) -> None:
        """A claim at a position that the session is not at, which takes nothing over."""
        if name in self.truth and self.truth[name].position < 100:
            self.run(self.servers[on].sessions.load(name, Claim(position)))

    @rule(name=names, on=either)
    def refuse(self, name: str, on: int) -> None:
        """A claim that the session as it is speaks against, which takes nothing over."""
        sessions, seen = self.servers[on].sessions, [Past(None, None, -1)]

        def check(session: Session) -> None:
            seen.append(sessions.memory.past(session))
            raise SessionBusy(name)

        refused = self.outcome(sessions.load(name, Claim(), check))
        if name in self.truth:
            assert refused is SessionBusy
            same(seen[-1], self.truth[name])
        else:
            assert refused is SessionNotFound

    @rule(name=names, on=either)
    def delete(self, name: str, on: int) -> None:
        expected = None if self.truth.pop(name, None) else SessionNotFound
        assert self.outcome(self.servers[on].sessions.delete(name)) is expected

    @rule(on=either, size=st.integers(1, 5))
    def list_all(self, on: int, size: int) -> None:
        found, token = [], ""
        while True:
            views, token = self.run(self.servers[on].sessions.page("", size, token))
            found += [(view.name, view.position) for view in views]
            if not token:
                break
        assert found == sorted((name, past.position) for name, past in self.truth.items())

    @rule(on=either)
    def expire(self, on: int) -> None:
        sessions = self.servers[on].sessions
        self.run(sessions.expire())
        assert sum(sessions.stored().values()) == len(self.truth)

    @rule()
    def forget_scripts_and_connections(self) -> None:
        with self.redis.client() as client:
            client.script_flush()
            client.client_kill_filter(_type="normal", skipme=True)
        # This loop does not hear of it unless it runs.
        for server in self.servers:
            while not self.run(server.store.ping()):
                pass


def same(found: Past, expected: Past) -> None:
    assert (found.position, found.pending) == (expected.position, expected.pending)
    assert (found.state is None) == (expected.state is None)
    if found.state is not None and expected.state is not None:
        assert found.state.tobytes() == expected.state.tobytes()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with running_redis(folder) as redis:
        yield redis


def test_two_servers_are_as_one(redis: RunningRedis) -> None:
    SharedMachine.redis = redis
    run_state_machine_as_test(
        SharedMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )

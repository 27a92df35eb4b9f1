"""Long texts, which are encoded beside the event loop, and what happens there meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
from unrolled.v1 import model_pb2
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.encoding import LONG
from unrolled_server.errors import (
    Draining,
    Overloaded,
    ServerError,
    SessionNotFound,
    UnknownText,
)
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.session import Session
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.session_names import session_name
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.sessions import Sessions
from unrolled_server.shared_keeper import SharedKeeper
from unrolled_server.store import Claim, Sight, StoreStats, Version
from unrolled_server.tasks import TurnLimits
from unrolled_server.turn import Task, Turn
from unrolled_server.turns import Turns
from unrolled_server.types import (
    Durability,
    Ending,
    FinishReason,
    Past,
    Tokens,
    TurnRequest,
)
from unrolled_server.vocabulary import CharacterVocabulary

LONG_TEXT = "a" * LONG
ROOM = 50
"""Turns at once: more than asyncio has threads for what may block."""


class Gate(CharacterVocabulary):
    """A letter's id is its place in "abc", one more after a token; long texts wait at the gate."""

    def __init__(self) -> None:
        super().__init__([b"a", b"b", b"c"], None, (), None)
        self.begun: SimpleQueue[int | None] = SimpleQueue()
        """What precedes each long text, as they come to the gate."""
        self.asked = 0
        """Texts, the short ones included."""
        self.opened = Event()
        self.in_passing: Callable[[], None] = lambda: None
        """Called for every text."""

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        self.asked += 1
        self.in_passing()
        if len(text) >= LONG:
            self.begun.put(previous)
            assert self.opened.wait(60)
        return super().encode(text) + np.int32(previous is not None)

    async def comer(self) -> int | None:
        """What precedes the next long text that comes to the gate."""
        return await asyncio.to_thread(self.begun.get, timeout=60)


class Engine:
    """Ends turns at once."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def nudge(self) -> None:
        pass

    def submit(self, turn: Turn) -> None:
        task, told = turn.task, len(turn.task.told)
        self.tasks.append(task)
        newest = int(task.told[-1]) if told else task.start.pending
        end = Past(np.zeros(4, np.float32), newest, task.start.position + told, previous=newest)
        turn.receive(Ending(FinishReason.LENGTH, "", told, 0, end))


class House:
    """Turns of a model whose vocabulary has a gate."""

    def __init__(self, room: int = ROOM, store: Store | None = None) -> None:
        self.vocabulary, self.engine = Gate(), Engine()
        self.model = ServedModel(
            "m", 1, "0f" * 32, 4, self.vocabulary, cast("Any", self.engine), "cpu"
        )
        models = Models([Entry(model_pb2.Model(name="m", version=1), self.model)])
        self.sessions = SessionKeeper(Sessions(ROOM, 3600.0))
        if store is not None:
            memory = CachedSessions(ROOM, 3600.0)
            self.sessions = SharedKeeper(memory, models, cast("Any", store))
        self.memory = self.sessions.memory
        limits = TurnLimits(100, 2 * LONG, room)
        self.turns = Turns(models, self.sessions, limits, PrefixCache(0))

    async def tell(self, session: str, text: str) -> int:
        """A turn; where it leaves the session."""
        request = TurnRequest("", session, text, "prompt", 0)
        async with await self.turns.begin(request) as turn:
            async for _ in turn:
                pass
        return turn.outcome.ending.past.position

    async def refused(self, session: str, text: str) -> ServerError:
        with pytest.raises(ServerError) as caught:
            await self.tell(session, text)
        return caught.value

    def told(self) -> list[int]:
        """What the last turn told."""
        return list(map(int, self.engine.tasks[-1].told))


@asynccontextmanager
async def house(room: int = ROOM, store: Store | None = None) -> AsyncIterator[House]:
    here = House(room, store)
    try:
        yield here
    finally:
        here.vocabulary.opened.set()


async def test_others_go_on_while_a_long_text_is_encoded() -> None:
    """More of them than there are threads, which others need too."""
    async with house() as here:
        names = [here.memory.create(here.model).name for _ in range(ROOM)]
        long = [asyncio.create_task(here.tell(name, LONG_TEXT)) for name in names[1:]]
        await here.vocabulary.comer()
        assert await here.tell(names[0], "abc") == 3
        assert here.told() == [0, 1, 2]
        assert await asyncio.to_thread(lambda: "a thread is free") == "a thread is free"
        assert not any(task.done() for task in long)
        here.vocabulary.opened.set()
        assert await asyncio.gather(*long) == [LONG] * len(long)
        assert here.vocabulary.asked == ROOM


async def test_what_is_left_while_it_is_encoded_leaves_no_trace() -> None:
    async with house(room=1) as here:
        session = here.memory.create(here.model)
        left = asyncio.create_task(here.tell(session.name, LONG_TEXT))
        await here.vocabulary.comer()
        assert isinstance(await here.refused(session.name, "a"), Overloaded)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert session.position == 0
        assert not here.engine.tasks
        assert await here.tell(session.name, "ab") == 2


async def test_a_text_is_encoded_again_for_a_session_that_has_moved() -> None:
    async with house() as here:
        name = here.memory.create(here.model).name
        long = asyncio.create_task(here.tell(name, LONG_TEXT))
        assert await here.vocabulary.comer() is None
        assert await here.tell(name, "c") == 1
        here.vocabulary.opened.set()
        assert await here.vocabulary.comer() == 2
        assert await long == 1 + LONG
        assert here.told() == [1] * LONG


async def ended(here: House, session: Session) -> None:
    here.memory.delete(session.name)


async def drained(here: House, session: Session) -> None:
    await here.turns.drain(60, asyncio.Event())


@pytest.mark.parametrize(("happens", "error"), [(ended, SessionNotFound), (drained, Draining)])
async def test_what_happens_while_it_is_encoded_is_heeded(
    happens: Callable[[House, Session], Any], error: type[ServerError]
) -> None:
    async with house() as here:
        session = here.memory.create(here.model)
        long = asyncio.create_task(here.refused(session.name, LONG_TEXT))
        await here.vocabulary.comer()
        await happens(here, session)
        here.vocabulary.opened.set()
        assert isinstance(await long, error)
        assert not here.engine.tasks


async def test_a_long_text_that_cannot_be_encoded() -> None:
    async with house() as here:
        here.vocabulary.opened.set()
        session = here.memory.create(here.model)
        error = await here.refused(session.name, LONG_TEXT + "ax")
        assert isinstance(error, UnknownText)
        assert (error.metadata["field"], error.metadata["offset"]) == ("prompt", str(LONG + 1))
        assert session.position == 0
        assert await here.tell(session.name, LONG_TEXT) == LONG


# With a store that others use too


class Store:
    """One session, which another server has claimed last; what it was asked for."""

    durability = Durability.PROCESS_CRASH
    name = "redis"
    timeout = 5.0

    def __init__(self) -> None:
        self.stats = StoreStats()
        self.session = session_name(0, bytes(range(16)))
        self.past = Past(np.zeros(4, np.float32), 1, 3, previous=1)
        self.looks: list[str] = []

    async def look(
        self, id_: bytes, tenant: str, known: Version | None, claim: Claim | None = None
    ) -> Sight:
        # An answer comes some rounds of the loop later, as from a socket.
        for _ in range(3):
            await asyncio.sleep(0)
        self.looks.append("read" if claim is None else "claim")
        facts = SessionFacts(self.session, tenant, "m/1", "0f" * 32, 1, 1, 7, 3, 4, 0.0, 0.0, 0.0)
        record = None if known else SessionRecord(facts, self.past, b"")
        return Sight(Version(0 if claim is None else 1, b"d" * 16), 0.0, record)

    async def commit(self, record: SessionRecord, since: bytes = b"") -> Any:
        raise NotImplementedError


class LateLoop:
    """Moves the running loop's clock."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.late = 0.0

    def pass_by(self, seconds: float) -> None:
        self.late += seconds


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LateLoop:
    late = LateLoop()
    real = late.loop.time
    monkeypatch.setattr(late.loop, "time", lambda: real() + late.late)
    return late


async def test_a_long_text_is_encoded_before_its_session_is_claimed(clock: LateLoop) -> None:
    """Others get at the session meanwhile, and the time is not the store's."""
    store = Store()
    async with house(store=store) as here:
        request = TurnRequest("", store.session, LONG_TEXT, "prompt", 0)
        begun = asyncio.create_task(here.turns.begin(request))
        assert await here.vocabulary.comer() == 1
        assert store.looks == ["read"]
        assert (await here.sessions.load(store.session)).position == 3
        clock.pass_by(10 * store.timeout)
        here.vocabulary.opened.set()
        assert (await begun).told == LONG
        assert store.looks == ["read", "read", "read", "claim"]
        assert here.vocabulary.asked == 1


async def test_a_short_text_is_encoded_once_in_time_of_its_own(clock: LateLoop) -> None:
    store = Store()
    async with house(store=store) as here:
        here.vocabulary.in_passing = lambda: clock.pass_by(10 * store.timeout)
        request = TurnRequest("", store.session, "abc", "prompt", 0)
        assert (await here.turns.begin(request)).told == 3
        assert store.looks == ["read", "claim"]
        assert here.vocabulary.asked == 1
        assert not store.stats.errors["unavailable"]

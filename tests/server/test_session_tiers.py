"""Memory and store together, with a store that answers when it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest
from unrolled.v1 import model_pb2
from unrolled_server import stored_keeper
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.checkpoints import LAST_TURN
from unrolled_server.errors import SessionBusy, SessionNotFound, StoreFull, StoreUnavailable
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.session import Session
from unrolled_server.session_names import name_of, session_id
from unrolled_server.session_record import SessionRecord, encode
from unrolled_server.store import Receipt, StorePage, StoreStats
from unrolled_server.stored_keeper import StoredKeeper
from unrolled_server.types import CheckpointView, Durability, Past
from unrolled_server.vocabulary import CharacterVocabulary

TTL = 60.0
VOCABULARY = CharacterVocabulary([b"a"], None, (), None)
MODEL = ServedModel("m", 1, "0f" * 32, 4, VOCABULARY, cast("Any", None), "cpu")


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class DictStore:
    """A Store in a dictionary. While it is shut nothing is answered; then, in order."""

    durability = Durability.FSYNC
    lateness = 5.0

    def __init__(self) -> None:
        self.stats = StoreStats()
        self.records: dict[bytes, SessionRecord] = {}
        self.fails = False
        self.is_full = False
        self.discarded: list[bytes] = []
        """What it was asked to discard."""
        self.loses_answers = False
        """Whether it fails once it has done what it was asked for."""
        self.late: asyncio.Event | None = None
        """What the next read waits for, after it has read."""
        self._open = asyncio.Event()
        self._open.set()
        self._order = asyncio.Lock()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def _turn(self) -> None:
        async with self._order:
            await self._open.wait()
        if self.fails:
            raise StoreUnavailable("dict")

    def count(self) -> Mapping[str, int]:
        return Counter(record.facts.model for record in self.records.values())

    def space(self) -> None:
        return None

    async def insert(self, record: SessionRecord) -> Receipt:
        await self._turn()
        if self.is_full:
            raise StoreFull("dict")
        self.records[id_of(record.facts.name)] = record
        if self.loses_answers:
            raise StoreUnavailable("dict")
        return Receipt(self.durability)

    async def commit(self, record: SessionRecord) -> Receipt:
        await self._turn()
        if id_of(record.facts.name) not in self.records:
            raise SessionNotFound(record.facts.name)
        self.records[id_of(record.facts.name)] = record
        return Receipt(self.durability)

    async def read(self, id_: bytes, tenant: str) -> SessionRecord | None:
        await self._turn()
        record, late, self.late = self.records.get(id_), self.late, None
        if late is not None:
            await late.wait()
        return record

    async def delete(self, id_: bytes) -> bool:
        await self._turn()
        return self.records.pop(id_, None) is not None

    async def discard(self, id_: bytes, facts: bytes) -> bool:
        await self._turn()
        self.discarded.append(id_)
        is_there = id_ in self.records and encode(self.records[id_])[0] == facts
        return is_there and self.records.pop(id_, None) is not None

    async def note_uses(self, uses: Mapping[bytes, float]) -> None:
        await self._turn()

    async def page(self, tenant: str, after: bytes, most: int) -> StorePage:
        raise NotImplementedError

    async def over(self, now: float, most: int) -> list[bytes]:
        await self._turn()
        return [id_ for id_, r in self.records.items() if r.facts.is_over(now)][:most]

    async def expire(self, ids: list[bytes], now: float) -> int:
        await self._turn()
        return sum(self.records.pop(id_, None) is not None for id_ in ids)

    async def close(self) -> None:
        self.fails = True


def id_of(name: str) -> bytes:
    id_ = session_id(name)
    assert id_ is not None
    return id_


class House:
    """Room for two sessions in memory."""

    def __init__(self, limit: int = 2) -> None:
        self.clock = Clock()
        self.store = DictStore()
        models = Models([Entry(model_pb2.Model(name="m", version=1), MODEL)])
        self.memory = CachedSessions(limit, TTL, self.clock)
        self.sessions = StoredKeeper(self.memory, models, self.store, self.clock)

    async def advance(self, session: Session, position: int) -> None:
        """A turn."""
        self.memory.hold(session, lambda: None)
        try:
            await self.sessions.commit(session, at(position))
        finally:
            self.sessions.release(session)

    def is_in_memory(self, name: str) -> bool:
        return self.memory.has(id_of(name))


@pytest.fixture
def house() -> House:
    return House()


def at(position: int) -> Past:
    return Past(np.full(4, position, np.float32), 0, position)


async def others_run() -> None:
    """Let everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_memory_moves_after_the_store(house: House) -> None:
    session = await house.sessions.create(MODEL)
    house.store.shut()
    turn = asyncio.create_task(house.advance(session, 3))
    await others_run()
    assert session.position == 0
    with pytest.raises(SessionBusy):
        house.memory.hold(session, lambda: None)
    house.store.open()
    await turn
    assert session.position == 3
    assert house.store.records[id_of(session.name)].facts.position == 3


async def test_a_turn_that_is_cancelled_during_its_commit_stands(house: House) -> None:
    session = await house.sessions.create(MODEL)
    house.store.shut()
    turn = asyncio.create_task(house.advance(session, 3))
    await others_run()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    # Nobody may begin another one, or be spilled, until it is known how this one ends.
    with pytest.raises(SessionBusy):
        house.memory.hold(session, lambda: None)
    house.store.open()
    await others_run()
    assert session.position == 3
    await house.advance(session, 4)
    assert house.store.records[id_of(session.name)].facts.position == 4


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_commit_that_fails_leaves_the_session_where_it_was(
    house: House, is_cancelled: bool
) -> None:
    session = await house.sessions.create(MODEL)
    await house.advance(session, 2)
    house.store.shut()
    house.store.fails = True
    turn = asyncio.create_task(house.advance(session, 3))
    await others_run()
    if is_cancelled:
        turn.cancel()
    house.store.open()
    with pytest.raises(asyncio.CancelledError if is_cancelled else StoreUnavailable):
        await turn
    await others_run()
    house.store.fails = False
    assert session.position == 2
    await house.advance(session, 4)
    assert session.position == 4


async def test_a_session_that_cannot_be_stored_is_none(house: House) -> None:
    house.store.fails = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await house.sessions.create(MODEL)
    assert house.memory.count(MODEL) == 0


MAKERS: dict[str, Callable[[House, str], Awaitable[Session]]] = {
    "create": lambda house, _: house.sessions.create(MODEL, idle_ttl=0),
    "fork": lambda house, parent: house.sessions.fork(parent, None),
    "restore": lambda house, _: house.sessions.restore(MODEL, at(3), 1, 0),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_a_session_that_nobody_waited_for_ends(
    house: House, make: Callable[[House, str], Awaitable[Session]]
) -> None:
    parent = (await house.sessions.create(MODEL)).name
    house.store.shut()
    making = asyncio.ensure_future(make(house, parent))
    await others_run()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert house.memory.count(MODEL) == 1
    house.store.open()
    await others_run()
    # The store has done what it was asked for.
    assert len(house.store.records) == 2
    await house.sessions.expire()
    assert list(house.store.records) == [id_of(parent)]


async def test_a_session_whose_insertion_is_unsure_ends_once_the_store_works(house: House) -> None:
    house.store.loses_answers = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await house.sessions.create(MODEL, idle_ttl=0)
    assert len(house.store.records) == 3
    house.store.loses_answers = False
    house.store.fails = True
    with pytest.raises(StoreUnavailable):
        await house.sessions.expire()
    house.store.fails = False
    kept = await house.sessions.create(MODEL, idle_ttl=0)
    # Until then the store may carry out what it has not answered.
    await house.sessions.expire()
    assert len(house.store.records) == 4
    house.clock.now += house.store.lateness
    await house.sessions.expire()
    assert list(house.store.records) == [id_of(kept.name)]
    assert house.memory.count(MODEL) == 1


async def found(house: House) -> Session:
    """A session whose maker was not told of it, and that somebody else has listed and uses."""
    house.store.loses_answers = True
    with pytest.raises(StoreUnavailable):
        await house.sessions.create(MODEL, idle_ttl=0)
    house.store.loses_answers = False
    await others_run()
    house.clock.now += house.store.lateness
    (id_,) = house.store.records
    return await house.sessions.load(name_of(id_))


async def test_a_session_that_was_found_keeps_its_turn(house: House) -> None:
    session = await found(house)
    house.memory.hold(session, lambda: None)
    await house.sessions.expire()
    await house.sessions.commit(session, at(3))
    house.sessions.release(session)
    await house.sessions.expire()
    assert house.store.records[id_of(session.name)].facts.position == 3


async def test_a_session_that_was_found_and_left_memory_is_kept(house: House) -> None:
    session = await found(house)
    await house.advance(session, 3)
    for _ in range(2):
        house.clock.now += 1
        await house.sessions.create(MODEL)
    assert not house.is_in_memory(session.name)
    await house.sessions.expire()
    assert (await house.sessions.load(session.name)).position == 3


async def test_what_the_store_had_no_room_for_is_not_asked_for_again(house: House) -> None:
    """It said so, and may go on saying so."""
    house.store.is_full = True
    with pytest.raises(StoreFull):
        await house.sessions.create(MODEL)
    await others_run()
    house.clock.now += house.store.lateness
    await house.sessions.expire()
    assert not house.store.discarded


async def test_sessions_that_are_too_many_to_be_ended_are_logged(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stored_keeper, "MAX_UNHEARD", 1)
    house.store.loses_answers = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await house.sessions.create(MODEL, idle_ttl=0)
        await others_run()
    house.clock.now += house.store.lateness
    await house.sessions.expire()
    (left,) = house.store.records
    (logged,) = caplog.records
    assert logged.getMessage() == "session_perhaps_left_in_store"
    assert vars(logged)["fields"] == {"session": name_of(left)}


async def test_the_end_waits_for_sessions_that_nobody_waits_for(house: House) -> None:
    house.store.shut()
    making = asyncio.create_task(house.sessions.create(MODEL, idle_ttl=0))
    await others_run()
    closing = asyncio.create_task(house.sessions.close())
    await others_run()
    making.cancel()
    await others_run()
    assert not closing.done()
    house.store.open()
    await closing
    assert not house.store.records


async def test_the_least_recently_used_leaves_and_comes_back(house: House) -> None:
    one, two = [(await house.sessions.create(MODEL)) for _ in range(2)]
    for session in (two, one):
        house.clock.now += 1
        await house.advance(session, 5)
    three = await house.sessions.create(MODEL)
    names = [session.name for session in (one, two, three)]
    assert [house.is_in_memory(name) for name in names] == [True, False, True]
    assert two.has_ended
    back = await house.sessions.load(two.name)
    assert (back.name, back.position, back.used) == (two.name, 5, 1_000_001.0)
    assert house.memory.past(back).state is not None
    # It is idle for longest again, but for as long as it is busy.
    house.memory.hold(back, lambda: None)
    await house.sessions.load(one.name)
    assert house.is_in_memory(two.name)


async def test_where_all_are_busy_there_are_more_than_the_limit(house: House) -> None:
    made = [await house.sessions.create(MODEL) for _ in range(2)]
    for session in made:
        house.memory.hold(session, lambda: None)
    more = await house.sessions.create(MODEL)
    assert house.memory.count(MODEL) == 3
    for session in made:
        house.sessions.release(session)
    await house.sessions.create(MODEL)
    assert house.memory.count(MODEL) == 2
    assert (await house.sessions.load(more.name)).position == 0


async def test_two_who_ask_for_a_session_get_the_same(house: House) -> None:
    first = await house.sessions.create(MODEL)
    name = first.name
    for _ in range(2):
        house.clock.now += 1
        await house.sessions.create(MODEL)
    assert not house.is_in_memory(name)
    house.store.shut()

    async def advance() -> None:
        session = await house.sessions.load(name)
        await house.advance(session, session.position + 1)

    turns = [asyncio.create_task(advance()) for _ in range(2)]
    await others_run()
    house.store.open()
    outcomes = await asyncio.gather(*turns, return_exceptions=True)
    moved = sum(outcome is None for outcome in outcomes)
    assert all(outcome is None or isinstance(outcome, SessionBusy) for outcome in outcomes)
    assert house.store.records[id_of(name)].facts.position == moved >= 1


async def test_a_session_that_is_deleted_while_it_is_read_stays_away(house: House) -> None:
    name = (await house.sessions.create(MODEL)).name
    for _ in range(2):
        house.clock.now += 1
        await house.sessions.create(MODEL)
    assert not house.is_in_memory(name)
    house.store.late = late = asyncio.Event()
    reading = asyncio.create_task(house.sessions.load(name))
    await others_run()
    await house.sessions.delete(name)
    late.set()
    with pytest.raises(SessionNotFound):
        await reading
    assert not house.is_in_memory(name)
    assert house.memory.ended["deleted"] == 1
    assert not house.memory.awaited


async def test_an_old_record_does_not_replace_a_session_that_moved_on(house: House) -> None:
    """It comes late; meanwhile the session was read, moved, and would have been spilled."""
    name = (await house.sessions.create(MODEL)).name
    for _ in range(2):
        house.clock.now += 1
        await house.sessions.create(MODEL)
    house.store.late = late = asyncio.Event()
    reading = asyncio.create_task(house.sessions.load(name))
    await others_run()
    await house.advance(await house.sessions.load(name), 8)
    for _ in range(4):
        house.clock.now += 1
        await house.sessions.create(MODEL)
    late.set()
    assert (await reading).position == 8


async def test_what_is_over_ends_in_memory_and_store(house: House) -> None:
    made = [await house.sessions.create(MODEL) for _ in range(5)]
    busy = await house.sessions.load(made[0].name)
    house.memory.hold(busy, lambda: None)
    house.clock.now += TTL
    for session in made[1:]:
        with pytest.raises(SessionNotFound):
            await house.sessions.load(session.name)
    await house.sessions.expire()
    assert list(house.store.records) == [id_of(made[0].name)]
    assert house.memory.ended == {"deleted": 0, "expired": 4}
    await house.sessions.commit(busy, at(1))
    house.sessions.release(busy)
    assert (await house.sessions.load(busy.name)).position == 1


async def test_a_read_counts_as_a_use_in_memory_or_not(house: House) -> None:
    used = await house.sessions.create(MODEL)
    house.clock.now += TTL - 1
    house.sessions.touch(used)
    for _ in range(2):
        house.clock.now += 0.25
        await house.sessions.create(MODEL)
    assert not house.is_in_memory(used.name)
    house.clock.now += TTL - 1
    assert (await house.sessions.load(used.name)).expires == house.clock.now + 0.5


async def test_records_say_which_is_the_newer_one(house: House) -> None:
    """By era and position, also where a session was taken back, and in and out of memory."""
    name = (await house.sessions.create(MODEL, undo=True)).name
    versions: list[tuple[int, int]] = []

    async def note() -> None:
        facts = house.store.records[id_of(name)].facts
        versions.append((facts.era, facts.position))
        # Out of memory, to come back.
        for _ in range(2):
            house.clock.now += 1
            await house.sessions.create(MODEL)
        assert not house.is_in_memory(name)

    await note()
    for position in (4, 9, 9):
        await house.advance(await house.sessions.load(name), position)
        await note()
        await house.sessions.change(name, None, lambda standing: standing.with_checkpoint("a"))
        await note()
        await house.sessions.change(name, None, lambda standing: standing.with_checkpoint("b"))
        await note()
        await house.sessions.change(name, None, lambda standing: standing.rewound(LAST_TURN))
        await note()
        await house.sessions.change(name, None, lambda standing: standing.without_checkpoint("a"))
        await note()
    assert versions == sorted(set(versions))
    view, _ = await house.sessions.change(name, 0, lambda standing: standing.rewound("b"))
    assert (view.position, view.checkpoints) == (9, (CheckpointView("b", 9),))


async def test_a_rewind_that_fails_leaves_all_as_it_was(house: House) -> None:
    session = await house.sessions.create(MODEL)
    await house.sessions.change(session.name, None, lambda standing: standing.with_checkpoint("a"))
    await house.advance(session, 3)
    house.store.shut()
    house.store.fails = True
    rewind = house.sessions.change(session.name, 3, lambda standing: standing.rewound("a"))
    rewinding = asyncio.create_task(rewind)
    await others_run()
    with pytest.raises(SessionBusy):
        await house.sessions.change(session.name, 3, lambda standing: standing.with_checkpoint("b"))
    house.store.open()
    with pytest.raises(StoreUnavailable):
        await rewinding
    house.store.fails = False
    view, _ = await house.sessions.change(
        session.name, 3, lambda standing: standing.without_checkpoint("a")
    )
    assert (view.position, view.checkpoints) == (3, ())


async def test_a_session_that_is_deleted_while_it_is_taken_back_stays_away(house: House) -> None:
    name = (await house.sessions.create(MODEL)).name
    await house.sessions.change(name, None, lambda standing: standing.with_checkpoint("a"))
    house.store.shut()
    deleting = asyncio.create_task(house.sessions.delete(name))
    await others_run()
    rewind = house.sessions.change(name, None, lambda standing: standing.rewound("a"))
    rewinding = asyncio.create_task(rewind)
    await others_run()
    house.store.open()
    await deleting
    with pytest.raises(SessionNotFound):
        await rewinding
    with pytest.raises(SessionNotFound):
        await house.sessions.load(name)
    assert house.memory.busy == 0


async def test_the_latest_end_holds_in_memory_and_store(house: House) -> None:
    aged = await house.sessions.create(MODEL, max_age=1.5 * TTL)
    made = house.clock.now
    house.clock.now += TTL - 1
    await house.advance(aged, 1)
    child = await house.sessions.fork(aged.name, None)
    for _ in range(2):
        house.clock.now += 0.25
        await house.sessions.create(MODEL)
    assert not house.is_in_memory(aged.name)
    back = await house.sessions.load(aged.name)
    assert back.expires == back.latest == made + 1.5 * TTL
    assert house.store.records[id_of(child.name)].facts.latest == back.latest
    house.clock.now = made + 1.5 * TTL
    for name in (aged.name, child.name):
        with pytest.raises(SessionNotFound):
            await house.sessions.load(name)
    await house.sessions.expire()
    assert len(house.store.records) == 2
    assert house.memory.ended["expired"] == 2


async def test_a_turn_over_the_latest_end_is_stored_and_the_session_ends(house: House) -> None:
    session = await house.sessions.create(MODEL, max_age=TTL / 2)
    house.memory.hold(session, lambda: None)
    house.clock.now += TTL
    await house.sessions.expire()
    await house.sessions.commit(session, at(1))
    assert house.store.records[id_of(session.name)].facts.position == 1
    house.sessions.release(session)
    with pytest.raises(SessionNotFound):
        await house.sessions.load(session.name)
    await house.sessions.expire()
    assert not house.store.records

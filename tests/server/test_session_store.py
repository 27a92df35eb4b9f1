"""Sessions in memory against a dictionary, and the arrays that they are kept in."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.memory import advance
from unrolled_server import records, sessions, states
from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.checkpoints import LAST_TURN
from unrolled_server.errors import InvalidField, SessionBusy, SessionNotFound, TooManySessions
from unrolled_server.models import ServedModel
from unrolled_server.number_pool import NumberPool
from unrolled_server.records import ROWS, Records
from unrolled_server.session import Session
from unrolled_server.session_names import KEY_BYTES, row_and_key, session_id, session_name
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.sessions import Sessions
from unrolled_server.standing import Standing
from unrolled_server.states import SLAB_BYTES
from unrolled_server.tenants import tenant
from unrolled_server.types import Past
from unrolled_server.vocabulary import CharacterVocabulary

TTL = 10.0
LIMIT = 11
SIZE = 4
"""Numbers in a state."""


def served(name: str, version: int, size: int = SIZE) -> ServedModel:
    """A model without an engine."""
    vocabulary = CharacterVocabulary([b"a"], None, (), None)
    return ServedModel(name, version, "f" * 64, size, vocabulary, cast("Any", None), "cpu")


MODELS = (served("a", 1), served("a", 2), served("b", 1))
FILTERS = {"": {0, 1, 2}, "a": {0, 1}, "a/2": {1}, "b": {2}, "b/1": {2}, "c": set[int]()}


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Against a dictionary


@dataclass
class Known:
    """A session as it has to be."""

    handle: Session
    model: int
    seed: int
    ttl: float
    latest: float
    created: float
    used: float
    past: Past = field(default_factory=lambda: Past(None, None, 0))
    held: bool = False
    told: int = 0
    """Times that its turn was told of its end."""

    @property
    def ends(self) -> float:
        """When it is over if it is not used; infinity: never."""
        return min(self.used + self.ttl if self.ttl else inf, self.latest)

    def is_over(self, now: float) -> bool:
        return not self.held and self.ends <= now


tokens = st.none() | st.integers(0, 2**31 - 1)
checkpoints = st.builds(
    Past,
    st.lists(st.floats(width=32, allow_nan=False), min_size=SIZE, max_size=SIZE).map(
        lambda numbers: np.array(numbers, np.float32)
    ),
    tokens,
    st.integers(0, 2**63 - 1),
    st.binary(max_size=3),
    tokens,
)
seeds = st.integers(0, 2**64 - 1)
waits = st.sampled_from([0.5, 1.0, 3.0, 8.0])
ttls = st.none() | st.sampled_from([0.0, 2.0, 1e9])


class StoreMachine(RuleBasedStateMachine):
    """Drives a Sessions; `known` follows along."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sessions = Sessions(LIMIT, TTL, self.clock)
        self.known: dict[str, Known] = {}
        """Those that have not been removed for certain; some may be over."""
        self.gone: list[Session] = []
        self.deleted = 0

    def living(self) -> dict[str, Known]:
        now = self.clock.now
        return {name: known for name, known in self.known.items() if not known.is_over(now)}

    def pick(self, data: st.DataObject, held: bool | None = None) -> Known:
        """One that lives, held or not as told."""
        living = [k for k in self.living().values() if held in (None, k.held)]
        return data.draw(st.sampled_from(living))

    def make(self, act: Callable[[], Session], known: Callable[[Session], Known]) -> None:
        """Create or fork where there is room, and be refused where there is none."""
        if len(self.living()) >= LIMIT:
            with pytest.raises(TooManySessions):
                act()
            return
        made = act()
        assert made.name not in self.known
        assert made.name not in {handle.name for handle in self.gone}
        self.known[made.name] = known(made)

    @rule(
        count=st.integers(1, 6),
        model=st.integers(0, 2),
        seed=st.none() | seeds,
        ttl=ttls,
        age=ttls,
    )
    def create(
        self, count: int, model: int, seed: int | None, ttl: float | None, age: float | None
    ) -> None:
        for _ in range(count):
            self.create_one(model, seed, ttl, age)

    def create_one(
        self, model: int, seed: int | None, ttl: float | None, age: float | None
    ) -> None:
        now = self.clock.now
        self.make(
            lambda: self.sessions.create(MODELS[model], seed, ttl, max_age=age),
            lambda made: Known(
                made,
                model,
                made.seed if seed is None else seed,
                TTL if ttl is None else ttl,
                now + age if age else inf,
                now,
                now,
            ),
        )

    @precondition(lambda self: self.living())
    @rule(data=st.data(), seed=st.none() | seeds)
    def fork(self, data: st.DataObject, seed: int | None) -> None:
        parent, now = self.pick(data), self.clock.now
        full = len(self.living()) >= LIMIT
        self.make(
            lambda: self.sessions.fork(parent.handle.name, seed),
            lambda made: replace(
                parent,
                handle=made,
                seed=parent.seed if seed is None else seed,
                created=now,
                used=now,
                held=False,
                told=0,
            ),
        )
        if not full:
            parent.used = now

    @precondition(lambda self: any(not known.held for known in self.living().values()))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        known = self.pick(data, held=False)

        def end_turn() -> None:
            known.told += 1

        self.sessions.hold(self.sessions.get(known.handle.name), end_turn)
        known.held = True
        with pytest.raises(SessionBusy):
            self.sessions.hold(known.handle, lambda: None)

    @precondition(lambda self: any(known.held for known in self.living().values()))
    @rule(data=st.data(), past=checkpoints)
    def commit(self, data: st.DataObject, past: Past) -> None:
        known = self.pick(data, held=True)
        advance(self.sessions, known.handle, past)
        known.past, known.used = past, self.clock.now

    @precondition(lambda self: any(known.held for known in self.living().values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """End a turn, committed or not."""
        known = self.pick(data, held=True)
        self.sessions.release(known.handle)
        known.held = False

    @precondition(lambda self: any(not known.held for known in self.living().values()))
    @rule(data=st.data(), past=checkpoints)
    def turn(self, data: st.DataObject, past: Past) -> None:
        known = self.pick(data, held=False)
        self.sessions.hold(known.handle, lambda: None)
        advance(self.sessions, known.handle, past)
        self.sessions.release(known.handle)
        known.past, known.used = past, self.clock.now

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        known = self.pick(data)
        self.sessions.touch(known.handle)
        known.used = self.clock.now

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        known = self.pick(data)
        self.sessions.delete(known.handle.name)
        assert known.told == known.held
        del self.known[known.handle.name]
        self.gone.append(known.handle)
        self.deleted += 1
        # The end of a turn comes after that of its session.
        self.sessions.release(known.handle)

    @rule(seconds=waits)
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        while self.sessions.expire():
            pass
        self.forget_those_over()
        for number, model in enumerate(MODELS):
            held = sum(known.model == number for known in self.known.values())
            assert self.sessions.count(model) == held
        expired = len(self.gone) - self.deleted
        assert self.sessions.ended == {"deleted": self.deleted, "expired": expired}

    def forget_those_over(self) -> None:
        living = self.living()
        self.gone += [known.handle for name, known in self.known.items() if name not in living]
        self.known = living

    @rule(model=st.sampled_from(sorted(FILTERS)), size=st.integers(1, 12))
    def list_pages(self, model: str, size: int) -> None:
        listed: list[Session] = []
        token = ""
        while True:
            page, token = self.sessions.page(model, size, token)
            assert len(page) <= size
            listed += page
            if not token:
                break
        living = self.living().items()
        expected = sorted(name for name, known in living if known.model in FILTERS[model])
        assert [session.name for session in listed] == expected

    @invariant()
    def every_session_is_as_it_has_to_be(self) -> None:
        for name, known in self.living().items():
            session = self.sessions.get(name)
            assert session == known.handle
            assert session.model is MODELS[known.model]
            assert (session.seed, session.idle_ttl) == (known.seed, known.ttl)
            assert (session.created, session.used) == (known.created, known.used)
            assert session.expires == (None if known.ends == inf else known.ends)
            assert session.latest == (None if known.latest == inf else known.latest)
            assert session.position == known.past.position
            self.check_past(self.sessions.past(session), known.past)

    def check_past(self, got: Past, wanted: Past) -> None:
        assert replace(got, state=None) == replace(wanted, state=None)
        assert (got.state is None) == (wanted.state is None)
        if got.state is not None and wanted.state is not None:
            assert got.state.tobytes() == wanted.state.tobytes()

    @invariant()
    def what_has_ended_stays_away(self) -> None:
        now = self.clock.now
        over = [known.handle for known in self.known.values() if known.is_over(now)]
        for session in [*over, *self.gone]:
            with pytest.raises(SessionNotFound):
                self.sessions.get(session.name)
        for session in self.gone[-5:]:
            self.sessions.touch(session)
            for act in (
                lambda it: it.position,
                lambda it: it.expires,
                self.sessions.past,
                lambda it: self.sessions.hold(it, lambda: None),
                lambda it: advance(self.sessions, it, Past(None, None, 0)),
            ):
                with pytest.raises(SessionNotFound):
                    act(session)


def test_sessions_behave_as_a_dictionary_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks, slabs, rounds and pages so small that many are needed."""
    monkeypatch.setattr(records, "ROWS", 4)
    monkeypatch.setattr(states, "SLAB_BYTES", 2 * 4 * SIZE)
    monkeypatch.setattr(sessions, "MAX_ENDED", 2)
    monkeypatch.setattr(sessions, "MAX_BLOCKS", 2)
    StoreMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
    StoreMachine.TestCase("runTest").runTest()


# Names


@pytest.mark.parametrize("row", [0, 1, 0xA5, 2**32 - 1])
def test_a_name_says_row_and_key(row: int) -> None:
    key = bytes(range(0xE0, 0xE0 + KEY_BYTES))
    name = session_name(row, key)
    assert name.startswith("sessions/")
    assert row_and_key(name) == (row, key)


def test_names_sort_as_rows_do() -> None:
    rows = [0, 9, 10, 15, 16, 255, 4096, 2**31, 2**32 - 1]
    for keys in ((b"\0", b"\xff"), (b"\xff", b"\0")):
        names = [session_name(row, keys[row % 2] * KEY_BYTES) for row in rows]
        assert sorted(names) == names


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda name: name + " ",
        lambda name: name + "\n",
        lambda name: name[:-1],
        lambda name: name + "0",
        lambda name: name.removeprefix("sessions/"),
        lambda name: name.replace("sessions/", "session/"),
        lambda name: name[:-3] + name[-3:].upper(),
        lambda name: name[:-1] + "g",
        lambda name: name[:-1] + "٣",
        lambda name: name[:9] + "+" + name[10:],
        lambda name: name[:9] + " " + name[10:],
        lambda name: name[:11] + "_" + name[12:],
        lambda name: "",
    ],
)
def test_a_session_has_one_name(change: Callable[[str], str], clock: Clock) -> None:
    store = Sessions(1, TTL, clock)
    # A key that has letters at its end.
    while not (name := store.create(MODELS[0]).name)[-3:].isalpha():
        store.delete(name)
    with pytest.raises(SessionNotFound):
        store.get(change(name))
    assert store.get(name).name == name


def test_neither_a_wrong_key_nor_a_wrong_row_finds_a_session(clock: Clock) -> None:
    store = Sessions(3, TTL, clock)
    one, other = store.create(MODELS[0]), store.create(MODELS[0])
    places = [row_and_key(session.name) for session in (one, other)]
    (row, key), (other_row, other_key) = (place for place in places if place is not None)
    flipped = bytes([key[0] ^ 1]) + key[1:]
    for wrong in (
        session_name(row, flipped),
        session_name(row, key[:-1] + bytes([key[-1] ^ 128])),
        session_name(row, other_key),
        session_name(other_row, key),
        session_name(other_row + 1, key),
        session_name(other_row + 1, bytes(KEY_BYTES)),
        session_name(2**32 - 1, key),
    ):
        with pytest.raises(SessionNotFound):
            store.get(wrong)


def test_a_session_that_is_not_at_home_has_one_name_too(clock: Clock) -> None:
    """Neither another row finds it nor that in which it lies."""
    store = CachedSessions(3, TTL, clock)
    store.create(MODELS[0])
    key = bytes(range(KEY_BYTES))
    name = session_name(0, key)
    now, fingerprint = clock(), "f" * 64
    facts = SessionFacts(name, tenant.get(), "a/1", fingerprint, 1, 1, 7, 3, SIZE, now, now, TTL)
    session = store.admit(SessionRecord(facts, Past(None, None, 3), b""), MODELS[0])
    store.hold(session, lambda: pytest.fail("its turn was ended"))
    for row in (session.row, 7, 0xDEADBEEF):
        assert row != 0
        wrong = session_name(row, key)
        with pytest.raises(SessionNotFound):
            store.get(wrong)
        id_ = session_id(wrong)
        assert id_ is not None
        assert not store.has(id_)
        store.drop(wrong)
    assert store.get(name) == session


def test_a_name_of_before_does_not_find_the_next_session_of_its_row(clock: Clock) -> None:
    store = Sessions(1, TTL, clock)
    names: list[str] = []
    for _ in range(20):
        session = store.create(MODELS[0])
        for name in names:
            with pytest.raises(SessionNotFound):
                store.get(name)
        names.append(session.name)
        store.delete(session.name)
        with pytest.raises(SessionNotFound):
            store.get(session.name)
    assert len(set(names)) == 20


def test_a_turn_of_a_deleted_session_leaves_the_next_one_in_its_row_alone(clock: Clock) -> None:
    store = Sessions(1, TTL, clock)
    old = store.create(MODELS[0])
    store.hold(old, lambda: None)
    store.delete(old.name)
    new = store.create(MODELS[0])
    store.hold(new, lambda: None)
    with pytest.raises(SessionNotFound):
        advance(store, old, Past(np.ones(SIZE, np.float32), 1, 1))
    store.release(old)
    with pytest.raises(SessionBusy):
        store.hold(new, lambda: None)
    assert (new.position, store.past(new).state) == (0, None)


# Pages


@pytest.mark.parametrize(
    "token", ["x", "-1", "0x1", " 1", "1 ", "100000000", "A", "sessions/0", "١"]
)
def test_a_page_token_that_no_page_came_with_is_refused(token: str, clock: Clock) -> None:
    with pytest.raises(InvalidField) as caught:
        Sessions(1, TTL, clock).page("", 1, token)
    assert caught.value.field == "page_token"


def test_a_page_may_begin_behind_all_sessions(clock: Clock) -> None:
    store = Sessions(2, TTL, clock)
    store.create(MODELS[0])
    assert store.page("", 1, "ffffffff") == ([], "")


# Expiry


def test_of_very_many_some_expire_at_a_time(clock: Clock) -> None:
    count = 2 * ROWS
    store = Sessions(count, TTL, clock)
    for _ in range(count):
        store.create(MODELS[0])
    assert store.expire() is False
    clock.now += TTL
    held = [count]
    while store.expire():
        held.append(store.count(MODELS[0]))
    assert store.count(MODELS[0]) == 0
    assert {before - after for before, after in pairwise(held)} == {sessions.MAX_ENDED}


def test_what_is_over_is_found_whatever_was_used_meanwhile(clock: Clock) -> None:
    """Of three blocks, one session that was not used."""
    count = 3 * ROWS
    store = Sessions(count, TTL, clock)
    made = [store.create(MODELS[0]) for _ in range(count)]
    idle = made.pop(ROWS + 7)
    clock.now += TTL - 1
    for session in made:
        store.touch(session)
    clock.now += 1
    assert store.expire() is False
    assert store.count(MODELS[0]) == count - 1
    with pytest.raises(SessionNotFound):
        store.get(idle.name)
    clock.now += TTL - 2
    store.expire()
    assert store.count(MODELS[0]) == count - 1


def test_a_busy_session_is_not_over_however_it_was_used(clock: Clock) -> None:
    """Scored, forked and committed while its turn is under way, and then left for long."""
    store = Sessions(4, TTL, clock)
    for use in (
        store.touch,
        lambda session: store.fork(session.name, None),
        lambda session: advance(store, session, Past(None, 0, 1)),
    ):
        session = store.create(MODELS[0])
        store.hold(session, lambda: None)
        use(session)
        clock.now += 2 * TTL
        store.expire()
        assert store.get(session.name) == session
        store.release(session)
        with pytest.raises(SessionNotFound):
            store.get(session.name)


# What it takes


def test_numbers_that_came_back_go_out_first() -> None:
    numbers = NumberPool()
    assert [numbers.take() for _ in range(4)] == [0, 1, 2, 3]
    numbers.give_back(1)
    numbers.give_back(3)
    assert [numbers.take() for _ in range(3)] == [3, 1, 4]
    assert numbers.end == 5


def test_rows_are_used_again_before_a_block_is_added() -> None:
    rows = Records()
    taken = [rows.take() for _ in range(ROWS)]
    assert sorted(taken) == list(range(ROWS))
    for row in taken:
        rows.free(row)
    assert sorted(rows.take() for _ in range(ROWS)) == taken
    assert rows.take() == ROWS


def traced(act: Callable[[], object]) -> int:
    """Bytes that are allocated by and after `act` and were not before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = act()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        del kept
        return after - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [256, 2048])
def test_an_idle_session_takes_its_state_and_a_hundred_bytes(size: int, clock: Clock) -> None:
    """Of full blocks and slabs; a session more would take a block and a slab more."""
    count, model = 2 * ROWS, served("large", 1, size)
    assert count % (SLAB_BYTES // (4 * size)) == 0
    store, state = Sessions(count, TTL, clock), np.ones(size, np.float32)

    def fill() -> Sessions:
        for _ in range(count):
            session = store.create(model)
            store.hold(session, lambda: None)
            advance(store, session, Past(state, 1, 8))
            store.release(session)
        return store

    assert traced(fill) / count <= 4 * size + 100


def test_sessions_that_come_and_go_take_no_more_than_those_there_are(clock: Clock) -> None:
    store, model, state = Sessions(100, TTL, clock), served("a", 1, 2048), np.ones(2048, np.float32)

    def generation() -> None:
        made = [store.create(model) for _ in range(100)]
        for session in made:
            advance(store, session, Past(state, 1, 8, b"\xc3"))
            store.delete(session.name)

    generation()

    def many() -> None:
        for _ in range(20):
            generation()

    assert traced(many) < 10_000


# Where a session stood


def test_a_session_has_nothing_of_the_one_before_it_in_its_row(clock: Clock) -> None:
    store = Sessions(1, TTL, clock)
    old = store.create(MODELS[0], undo=True)
    advance(store, old, Past(np.ones(SIZE, np.float32), 1, 1))
    store.move(old, store.standing(old).with_checkpoint("a"))
    assert [place.id for place in old.view.checkpoints] == ["", "a"]
    store.delete(old.name)
    new = store.create(MODELS[0])
    assert (new.view.undo, new.view.checkpoints) == (False, ())
    assert store.standing(new) == Standing(new.name, Past(None, None, 0))


def test_a_session_at_the_zero_state_holds_no_state(clock: Clock) -> None:
    """Going back there gives its slot to others: all that take turns need one."""
    size = 1 << 18
    model, count = served("m", 1, size), 20
    store = Sessions(count, TTL, clock)
    made = [store.create(model, undo=True) for _ in range(count)]

    def go_and_come_back() -> None:
        for session in made:
            advance(store, session, Past(np.ones(size, np.float32), 1, 1))
            store.move(session, store.standing(session).rewound(LAST_TURN))

    assert traced(go_and_come_back) < 2 * 4 * size

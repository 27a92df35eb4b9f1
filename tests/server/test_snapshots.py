"""Snapshots in one process: what they hold, and the one answer to all that is wrong with one."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.memory import advance
from support.sealed import SECRETS, Forged, mutations, opened_by_hand
from unrolled.v1 import model_pb2
from unrolled_server.errors import (
    InvalidField,
    ModelNotFound,
    SessionNotFound,
    SnapshotsDisabled,
    TooManySessions,
)
from unrolled_server.models import Entry, Models, ServedModel
from unrolled_server.sealing import Key, Sealer
from unrolled_server.session import Session
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.sessions import Sessions
from unrolled_server.snapshot_layout import LayoutError, Snapshot, decode, encode
from unrolled_server.snapshots import Export, Snapshots
from unrolled_server.types import Past
from unrolled_server.vocabulary import CharacterVocabulary

if TYPE_CHECKING:
    from unrolled_server.engine import Engine

FORM = b"unrolled snapshot 1\n"
TTL = 60.0
MUTATIONS = 100_000


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def served(name: str, version: int, fingerprint: str, size: int = 4) -> ServedModel:
    """A model without an engine."""
    vocabulary = CharacterVocabulary([b"a", b"b"], None, (), None)
    return ServedModel(name, version, fingerprint, size, vocabulary, cast("Engine", None), "cpu")


MODEL = served("m", 1, "0f" * 32)
WIDE = served("wide", 1, "1f" * 32, size=100)
FORGED = Forged(MODEL.label, MODEL.fingerprint, np.arange(4, dtype=np.float32))


T = TypeVar("T")


def at_once(act: Coroutine[None, None, T]) -> T:
    """What comes of something that waits for nothing."""
    try:
        act.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


class AtOnce:
    """Snapshots of sessions in memory, for which nothing has to be waited for."""

    def __init__(
        self, sessions: Sessions, models: Models, sealer: Sealer | None, clock: Clock
    ) -> None:
        self._snapshots = Snapshots(SessionKeeper(sessions), models, lambda: sealer, clock)

    def export(self, name: str, ttl: float | None) -> Export:
        return at_once(self._snapshots.export(name, ttl))

    def restore(self, sealed: bytes, idle_ttl: float | None) -> Session:
        return at_once(self._snapshots.restore(sealed, idle_ttl))


class House:
    """Sessions and snapshots of a server, with a clock of our own."""

    def __init__(self, models: tuple[ServedModel, ...] = (MODEL,)) -> None:
        self.clock = Clock()
        entries = [
            Entry(model_pb2.Model(name=model.name, version=model.version), model)
            for model in models
        ]
        self.models = Models(entries)
        self.sessions = Sessions(3, TTL, self.clock)
        sealer = Sealer([Key(b"a", SECRETS["a"])])
        self.snapshots = AtOnce(self.sessions, self.models, sealer, self.clock)

    def session(self, past: Past, seed: int = 7) -> Session:
        session = self.sessions.create(MODEL, seed)
        advance(self.sessions, session, past)
        return session

    def take(self, forged: Forged, key: str = "a") -> Session:
        return self.snapshots.restore(forged.sealed(key), None)

    def answer(self, sealed: bytes) -> tuple[Any, ...]:
        """How a snapshot is refused, in all that its holder gets to see."""
        with pytest.raises(InvalidField) as caught:
            self.snapshots.restore(sealed, None)
        return shown(caught.value)


def shown(error: InvalidField) -> tuple[Any, ...]:
    """All of an error that its caller gets to see."""
    facts = (error.code, error.reason, error.message, error.field, error.problem)
    return (*facts, tuple(error.metadata.items()), error.retry_after)


@pytest.fixture
def house() -> House:
    return House()


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
pasts = st.builds(
    Past,
    st.none() | arrays(np.float32, 4, elements=numbers),
    st.none() | st.integers(0, 1),
    st.integers(0, 2**63 - 1),
    st.sampled_from([b"", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"]),
    st.none() | st.integers(0, 1),
)


def same(one: Past, other: Past) -> bool:
    """Whether two places in a sequence are the same to the last bit."""
    states = [None if past.state is None else past.state.tobytes() for past in (one, other)]
    return states[0] == states[1] and replace(one, state=None) == replace(other, state=None)


# What a snapshot holds


@given(past=pasts, seed=st.integers(0, 2**64 - 1))
def test_an_imported_session_stands_where_the_exported_one_stood(past: Past, seed: int) -> None:
    there, here = House(), House()
    session = there.session(past, seed)
    imported = here.snapshots.restore(there.snapshots.export(session.name, None).sealed, None)
    assert (imported.seed, imported.model) == (seed, MODEL)
    assert same(here.sessions.past(imported), past)
    assert same(there.sessions.past(session), past)


@given(past=pasts, seed=st.integers(0, 2**64 - 1), ttl=st.none() | st.floats(0.1, 1e8))
def test_a_snapshot_is_laid_out_as_documented(past: Past, seed: int, ttl: float | None) -> None:
    house = House()
    export = house.snapshots.export(house.session(past, seed).name, ttl)
    expires = math.inf if ttl is None else house.clock.now + ttl
    assert export.expires == (None if ttl is None else expires)
    expected = Forged(
        "m/1",
        "0f" * 32,
        past.state,
        "default",
        expires,
        seed,
        past.position,
        -1 if past.pending is None else past.pending,
        -1 if past.previous is None else past.previous,
        past.partial,
    )
    assert opened_by_hand(FORM, export.sealed) == expected.body()


def test_a_snapshot_written_by_hand_is_taken(house: House) -> None:
    session = house.take(FORGED)
    assert (session.position, session.seed, session.model) == (3, 0, MODEL)
    past = house.sessions.past(session)
    assert past.state is not None
    assert past.state.tolist() == [0, 1, 2, 3]
    assert (past.pending, past.previous, past.partial) == (1, None, b"")


def test_an_export_is_a_use_and_leaves_the_session_where_it_is(house: House) -> None:
    session = house.session(Past(None, 1, 1))
    created = session.created
    house.clock.now += TTL - 1
    house.snapshots.export(session.name, None)
    assert (session.created, session.used, session.position) == (created, house.clock.now, 1)
    house.clock.now += TTL - 1
    assert house.sessions.get(session.name) == session
    house.clock.now += 1
    with pytest.raises(SessionNotFound):
        house.snapshots.export(session.name, None)


def test_a_busy_session_is_exported_as_of_its_last_turn(house: House) -> None:
    session = house.session(Past(None, 1, 1))
    house.sessions.hold(session, lambda: None)
    imported = house.snapshots.restore(house.snapshots.export(session.name, None).sealed, None)
    assert imported.position == 1
    house.sessions.hold(imported, lambda: None)


def test_an_imported_session_has_an_idle_time_of_its_own(house: House) -> None:
    sealed = FORGED.sealed()
    default, own = (house.snapshots.restore(sealed, ttl) for ttl in (None, 5.0))
    assert (default.expires, own.expires) == (house.clock.now + TTL, house.clock.now + 5)


def test_a_snapshot_can_be_imported_until_it_expires(house: House) -> None:
    session = house.session(Past(None, 1, 1))
    brief = house.snapshots.export(session.name, 10.0).sealed
    lasting = house.snapshots.export(session.name, None).sealed
    house.clock.now += 9.5
    house.snapshots.restore(brief, None)
    house.clock.now += 0.5
    expired = house.answer(brief)
    house.clock.now += 1e9
    assert house.answer(brief) == expired
    house.snapshots.restore(lasting, None)


def test_the_limit_of_sessions_holds_for_imports(house: House) -> None:
    for _ in range(3):
        house.take(FORGED)
    with pytest.raises(TooManySessions):
        house.take(FORGED)
    assert house.sessions.count(MODEL) == 3


def test_without_keys_there_are_no_snapshots() -> None:
    house = House()
    snapshots = AtOnce(house.sessions, house.models, None, house.clock)
    with pytest.raises(SnapshotsDisabled):
        snapshots.export("sessions/none", None)
    with pytest.raises(SnapshotsDisabled):
        snapshots.restore(b"", None)


# Which model goes on


def test_the_model_of_that_name_goes_on_else_its_latest_equal() -> None:
    fingerprint = MODEL.fingerprint
    models = [served(*label, fingerprint) for label in (("a", 2), ("b", 9), ("m", 1), ("m", 2))]
    other = served("z", 30, "aa" * 32)
    house = House((*models, other))
    assert house.take(FORGED).model.label == "m/1"
    assert house.take(replace(FORGED, model="m/7")).model.label == "b/9"


def test_a_model_that_is_not_served_is_named(house: House) -> None:
    for model in ("other/3", "m/1"):
        with pytest.raises(ModelNotFound) as caught:
            house.take(replace(FORGED, model=model, fingerprint="ab" * 32))
        assert caught.value.metadata == {"model": model}
        assert model in caught.value.message
        assert "ab" * 32 in caught.value.message


def test_a_model_that_failed_to_load_goes_on_with_nothing() -> None:
    manifest = model_pb2.Model(name="m", version=1, fingerprint=MODEL.fingerprint)
    house = House()
    snapshots = AtOnce(
        house.sessions,
        Models([Entry(manifest, None), Entry(model_pb2.Model(name="wide", version=1), WIDE)]),
        Sealer([Key(b"a", SECRETS["a"])]),
        house.clock,
    )
    with pytest.raises(ModelNotFound):
        snapshots.restore(FORGED.sealed(), None)


# What is wrong with one


def state(*numbers: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


WRONG = {
    "another tenant": replace(FORGED, tenant="somebody"),
    "no tenant": replace(FORGED, tenant=""),
    "expired": replace(FORGED, expires=1_000_000.0),
    "expires at no time": replace(FORGED, expires=math.nan),
    "too small": replace(FORGED, state=state(0, 0, 0)),
    "too large": replace(FORGED, state=state(0, 0, 0, 0, 0)),
    "not a number": replace(FORGED, state=state(0, 0, math.nan, 0)),
    "infinite": replace(FORGED, state=state(0, math.inf, 0, 0)),
    "minus infinity": replace(FORGED, state=state(-math.inf, 0, 0, 0)),
    "negative position": replace(FORGED, position=-1),
    "pending beyond the vocabulary": replace(FORGED, pending=2),
    "pending below it": replace(FORGED, pending=-2),
    "previous beyond the vocabulary": replace(FORGED, previous=2),
    "previous below it": replace(FORGED, previous=-2),
    "a whole character": replace(FORGED, partial=b"a"),
    "no beginning of a character": replace(FORGED, partial=b"\xff"),
    "more than a beginning": replace(FORGED, partial=b"\xe2\x82\xac\xc3"),
}


@pytest.mark.parametrize("forged", WRONG.values(), ids=WRONG)
def test_an_authentic_snapshot_that_is_wrong_is_refused(house: House, forged: Forged) -> None:
    house.take(FORGED)
    assert house.answer(forged.sealed()) == house.answer(b"")
    assert house.sessions.count(MODEL) == 1


def test_a_snapshot_sealed_with_another_key_is_refused(house: House) -> None:
    assert house.answer(FORGED.sealed("b")) == house.answer(b"")


def test_what_is_larger_than_any_state_is_refused_unopened() -> None:
    house = House((MODEL, WIDE))
    house.snapshots = AtOnce(house.sessions, house.models, cast("Sealer", Unopened()), house.clock)
    house.answer(bytes(2000))
    with pytest.raises(AssertionError, match="opened"):
        house.snapshots.restore(bytes(1000), None)


class Unopened:
    """A sealer that must not be asked."""

    def open(self, form: bytes, message: bytes) -> bytes:
        raise AssertionError("opened")


def test_the_longest_names_fit(house: House) -> None:
    """Those of a folder, of a version, and of a key."""
    long = served("n" * 255, 10**18 - 1, "2f" * 32)
    house = House((long,))
    name = "k" * 32
    sealer = Sealer([Key(name.encode(), SECRETS["a"])])
    house.snapshots = AtOnce(house.sessions, house.models, sealer, house.clock)
    session = house.sessions.create(long, 0)
    advance(house.sessions, session, Past(state(0, 0, 0, 0), 1, 1, b"\xf0\x9f\x98"))
    sealed = house.snapshots.export(session.name, None).sealed
    assert len(sealed) <= 4 * 4 + 1100
    assert house.snapshots.restore(sealed, None).model is long


def test_no_mutation_is_accepted_and_all_get_one_answer(house: House) -> None:
    originals = [
        house.snapshots.export(house.session(past).name, None).sealed
        for past in (
            Past(state(0.5, 1, -1, 0), 1, 3),
            Past(state(0.5, 1, -1, 0), 1, 4),
            Past(None, 0, 1, b"\xc3", 1),
        )
    ]
    house.sessions.limit = 4
    house.snapshots.restore(originals[0], None)
    answers = {house.answer(b"")}
    for _, mutant in zip(range(MUTATIONS), mutations(originals, seed=1), strict=False):
        try:
            house.snapshots.restore(mutant, None)
        except InvalidField as error:
            answers.add(shown(error))
        else:
            pytest.fail(f"accepted: {mutant.hex()}")
    assert len(answers) == 1


# The layout


@given(
    tenant=st.text(max_size=20),
    model=st.text(max_size=20),
    fingerprint=st.binary(min_size=32, max_size=32).map(bytes.hex),
    expires=st.floats(allow_nan=False),
    seed=st.integers(0, 2**64 - 1),
    past=pasts,
)
def test_what_is_written_is_read(
    tenant: str, model: str, fingerprint: str, expires: float, seed: int, past: Past
) -> None:
    snapshot = Snapshot(tenant, model, fingerprint, expires, seed, past)
    read = decode(encode(snapshot))
    assert same(read.past, past)
    assert replace(read, past=past) == snapshot


@given(st.binary(max_size=200))
def test_bytes_that_are_no_snapshot_are_refused(body: bytes) -> None:
    try:
        decode(body)
    except LayoutError:
        return
    # 64 bytes of facts and the lengths of three texts.
    assert len(body) >= 64 + 6


def test_a_snapshot_that_ends_early_is_refused() -> None:
    body = replace(FORGED, partial=b"\xc3").body()
    state_at = len(body) - 16
    cuts = [cut for cut in range(len(body)) if cut < state_at or (cut - state_at) % 4]
    assert len(cuts) == state_at + 12
    for cut in cuts:
        with pytest.raises(LayoutError):
            decode(body[:cut])

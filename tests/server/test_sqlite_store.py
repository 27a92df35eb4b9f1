"""The store in a file: records, what it does together, and what it does when it cannot."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import stat
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.stored import flip_a_bit
from unrolled_server import sqlite_store
from unrolled_server.errors import RecordCorrupt, SessionNotFound, StoreFull, StoreUnavailable
from unrolled_server.session_names import ID_BYTES, name_of, session_id
from unrolled_server.session_record import (
    RecordDamaged,
    SessionFacts,
    SessionRecord,
    decode,
    encode,
    with_use,
)
from unrolled_server.sqlite_rows import MAX_ROWS
from unrolled_server.sqlite_store import SqliteStore
from unrolled_server.store import StoreOpenError
from unrolled_server.types import CheckpointView, Durability, Past

FACTS = SessionFacts(
    name_of(bytes(ID_BYTES)), "default", "m/1", "ab" * 32, 1, 1, 7, 3, 4, 100.0, 200.0, 60.0
)
PAST = Past(np.arange(4, dtype=np.float32), 1, 3, b"\xc3", 2)


def numbered(number: int, size: int = 4) -> SessionRecord:
    """One session of many."""
    name = name_of(number.to_bytes(ID_BYTES))
    past = replace(PAST, state=np.full(size, number, np.float32))
    return SessionRecord(replace(FACTS, name=name, used=200.0 + number), past, b"answers")


def id_of(record: SessionRecord) -> bytes:
    id_ = session_id(record.facts.name)
    assert id_ is not None
    return id_


def same(one: SessionRecord | None, other: SessionRecord) -> bool:
    """Whether two records agree to the last bit."""
    if one is None or one.past.state is None or other.past.state is None:
        return one is not None and one == other
    is_same = replace(one.past, state=None) == replace(other.past, state=None)
    bits = one.past.state.tobytes() == other.past.state.tobytes()
    rest = [(record.facts, record.answers, record.checkpoints) for record in (one, other)]
    return is_same and bits and rest[0] == rest[1]


tokens = st.none() | st.integers(0, 2**31 - 1)
uint64 = st.integers(0, 2**64 - 1)
times = st.floats(0, 1e11)
positions = st.shared(st.integers(0, 2**63 - 1), key="position")
records = st.builds(
    SessionRecord,
    st.builds(
        SessionFacts,
        st.binary(min_size=ID_BYTES, max_size=ID_BYTES).map(name_of),
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.text(st.characters(codec="utf-8"), max_size=80),
        st.binary(min_size=32, max_size=32).map(bytes.hex),
        uint64,
        uint64,
        uint64,
        positions,
        st.integers(0, 2**32 - 1),
        times,
        times,
        times,
        st.booleans(),
        st.lists(st.builds(CheckpointView, st.text(max_size=63), positions), max_size=17).map(
            tuple
        ),
        times | st.just(math.inf),
    ),
    st.builds(
        Past,
        st.none() | arrays(np.float32, st.integers(1, 9), elements=st.floats(width=32)),
        tokens,
        positions,
        st.binary(max_size=3),
        tokens,
    ),
    st.binary(max_size=100),
    st.binary(max_size=100),
)


@given(records)
def test_a_record_is_read_as_it_was_written(record: SessionRecord) -> None:
    assert same(decode(*encode(record)), record)


def test_no_flipped_bit_goes_unseen() -> None:
    facts = replace(FACTS, undo=True, checkpoints=(CheckpointView("", 2), CheckpointView("a", 1)))
    parts = encode(SessionRecord(facts, PAST, b"answers", b"checkpoints"))
    for number, part in enumerate(parts):
        for place in range(8 * len(part)):
            damaged = bytearray(part)
            damaged[place // 8] ^= 1 << place % 8
            changed = [*parts]
            changed[number] = bytes(damaged)
            with pytest.raises(RecordDamaged):
                decode(*changed)


@pytest.mark.parametrize("part", [0, 1])
def test_no_cut_part_is_read(part: int) -> None:
    parts = encode(SessionRecord(FACTS, PAST, b"answers"))
    for size in range(len(parts[part])):
        cut = [*parts]
        cut[part] = cut[part][:size]
        with pytest.raises(RecordDamaged):
            decode(*cut)


def test_parts_of_two_turns_make_no_record() -> None:
    before, after = (SessionRecord(FACTS, replace(PAST, pending=token), b"") for token in (1, 2))
    with pytest.raises(RecordDamaged):
        decode(encode(after)[0], encode(before)[1])


def test_a_use_moves_the_end_and_never_back() -> None:
    record = SessionRecord(FACTS, PAST, b"")
    facts, body = encode(record)
    later, known = with_use(facts, 250.0)
    assert (known.used, known.ends) == (250.0, 310.0)
    assert decode(later, body).facts == replace(FACTS, used=250.0)
    assert with_use(later, 220.0)[0] == later


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    await store.close()


async def test_what_was_written_is_read_after_opening_again(path: Path) -> None:
    first = SqliteStore(path)
    for number in range(5):
        await first.insert(numbered(number))
    moved = replace(numbered(2), answers=b"other")
    await first.commit(moved)
    assert await first.delete(id_of(numbered(3)))
    await first.close()
    second = SqliteStore(path)
    assert second.count() == {"m/1": 4}
    assert same(await second.read(id_of(moved), "default"), moved)
    assert same(await second.read(id_of(numbered(4)), "default"), numbered(4))
    assert await second.read(id_of(numbered(3)), "default") is None
    await second.close()


async def test_only_its_owner_may_read_the_file(store: SqliteStore, path: Path) -> None:
    await store.insert(numbered(1))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_commit_does_not_bring_a_session_back(store: SqliteStore) -> None:
    await store.insert(numbered(1))
    deleting, committing = store.delete(id_of(numbered(1))), store.commit(numbered(1))
    outcomes = await asyncio.gather(deleting, committing, return_exceptions=True)
    assert outcomes[0] is True
    assert isinstance(outcomes[1], SessionNotFound)
    assert await store.read(id_of(numbered(1)), "default") is None
    assert not await store.delete(id_of(numbered(1)))


@pytest.mark.parametrize("count", [1, 3, MAX_ROWS, 2 * MAX_ROWS + 1])
@pytest.mark.parametrize("are_usual", [True, False])
async def test_turns_that_end_together_each_stand_for_themselves(
    store: SqliteStore, count: int, are_usual: bool
) -> None:
    """The first session has ended, or the last one's model has another name now."""
    before = [numbered(number) for number in range(count)]
    await asyncio.gather(*map(store.insert, before))
    after = [replace(record, answers=b"after") for record in before]
    ended = 0
    if not are_usual:
        ended += await store.delete(id_of(before[0]))
        after[-1] = replace(after[-1], facts=replace(after[-1].facts, model="n/2"))
    outcomes = await asyncio.gather(*map(store.commit, after), return_exceptions=True)
    assert [isinstance(one, SessionNotFound) for one in outcomes[:ended]] == [True] * ended
    assert not any(isinstance(one, Exception) for one in outcomes[ended:])
    for record in after[ended:]:
        assert same(await store.read(id_of(record), "default"), record)
    renamed = int(not are_usual and count > 1)
    expected = {"m/1": count - ended - renamed, "n/2": renamed}
    assert {model: store.count().get(model, 0) for model in expected} == expected


async def test_pages_are_in_the_order_of_ids(store: SqliteStore) -> None:
    await asyncio.gather(*(store.insert(numbered(number)) for number in (7, 1, 300, 2, 5)))
    found, after, pages = [], b"", 0
    while True:
        page = await store.page("default", after, 2)
        found += page.sessions
        pages += 1
        if page.after is None:
            break
        after = page.after
    assert [facts.name for facts in found] == [numbered(n).facts.name for n in (1, 2, 5, 7, 300)]
    assert pages == 3


async def test_what_is_over_ends_unless_it_was_used(store: SqliteStore) -> None:
    made = [numbered(number) for number in (1, 2, 3)]
    forever = numbered(4)
    forever = replace(forever, facts=replace(forever.facts, idle_ttl=0.0))
    for record in (*made, forever):
        await store.insert(record)
    await store.note_uses({id_of(made[0]): 1000.0, bytes(ID_BYTES): 1.0})
    now = 200.0 + 3 + 60.0
    assert await store.over(now, 10) == [id_of(made[1]), id_of(made[2])]
    assert await store.over(now, 1) == [id_of(made[1])]
    assert await store.expire([id_of(record) for record in (*made, forever)], now) == 2
    assert store.count() == {"m/1": 2}
    assert (await store.read(id_of(made[1]), "default")) is None
    assert (await store.read(id_of(made[0]), "default")) is not None


async def test_a_use_does_not_postpone_the_latest_end(store: SqliteStore) -> None:
    used, other = numbered(1), numbered(2)
    aged = replace(used, facts=replace(used.facts, latest=500.0))
    for record in (aged, other):
        await store.insert(record)
    await store.note_uses({id_of(record): 1000.0 for record in (aged, other)})
    assert await store.over(499.0, 10) == []
    assert await store.over(500.0, 10) == [id_of(aged)]
    await store.commit(replace(aged, facts=replace(aged.facts, used=1000.0)))
    assert await store.expire([id_of(aged), id_of(other)], 500.0) == 1
    assert await store.read(id_of(aged), "default") is None


async def test_a_damaged_index_ends_no_session(path: Path) -> None:
    first = SqliteStore(path)
    await first.insert(numbered(1))
    await first.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE sessions SET ends = 1.0")
    db.close()
    second = SqliteStore(path)
    over = await second.over(100.0, 10)
    assert len(over) == 1
    assert await second.expire(over, 100.0) == 0
    assert await second.over(100.0, 10) == []
    assert same(await second.read(id_of(numbered(1)), "default"), numbered(1))
    await second.close()


async def test_a_damaged_record_is_put_aside(path: Path) -> None:
    first = SqliteStore(path)
    for number in (1, 2):
        await first.insert(numbered(number))
    await first.close()
    flip_a_bit(path, numbered(1).facts.name, "body")
    for times in (1, 0):
        again = SqliteStore(path)
        with pytest.raises(RecordCorrupt):
            await again.read(id_of(numbered(1)), "default")
        assert again.stats.damaged == times
        assert again.count() == {"m/1": 1}
        await again.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM quarantine").fetchone() == (1,)
    db.close()


@pytest.mark.parametrize("column", ["ends", "model", "tenant"])
async def test_an_index_that_does_not_fit_costs_no_session_anything(
    path: Path, column: str
) -> None:
    """A bit flipped in a column beside the record: SQLite calls the file malformed at a write."""
    damaged, sound = (with_ending(numbered(number), 1234.5625 + number) for number in (1, 2))
    first = SqliteStore(path)
    for record in (damaged, sound):
        await first.insert(record)
    await first.close()
    stored = {
        "ends": struct.pack(">d", damaged.facts.ends or 0.0),
        # Two columns that lie side by side in the table, and nowhere else.
        "model": b"defaultm/1",
        "tenant": b"defaultm/1",
    }[column]
    flip_in_file(path, stored, at=0 if column == "tenant" else -1)

    second = SqliteStore(path)
    await asyncio.gather(second.commit(damaged), second.commit(sound))
    assert same(await second.read(id_of(damaged), "default"), damaged)
    assert same(await second.read(id_of(sound), "default"), sound)
    over = [id_of(damaged), id_of(sound)]
    assert await second.expire(over, 5000.0) == 2
    await second.close()


def with_ending(record: SessionRecord, end: float) -> SessionRecord:
    """The record of a session that is over at `end`."""
    return replace(record, facts=replace(record.facts, used=end - 60.0, idle_ttl=60.0))


def flip_in_file(path: Path, found: bytes, at: int) -> None:
    """Flip the lowest bit of byte `at` of the first place that holds these bytes."""
    content = bytearray(path.read_bytes())
    place = content.index(found) + at % len(found)
    content[place] ^= 1
    path.write_bytes(content)


async def test_a_record_in_the_place_of_another_is_none(path: Path) -> None:
    first = SqliteStore(path)
    for number in (1, 2):
        await first.insert(numbered(number))
    await first.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE sessions SET (facts, body) ="
                   " (SELECT facts, body FROM sessions WHERE number = 2)")  # fmt: skip
    db.close()
    second = SqliteStore(path)
    with pytest.raises(RecordCorrupt):
        await second.read(id_of(numbered(1)), "default")
    assert same(await second.read(id_of(numbered(2)), "default"), numbered(2))
    await second.close()


async def test_turns_that_wait_share_a_flush(path: Path) -> None:
    """The log of a file is flushed once for many; counted by a VFS of our own."""
    disk = Disk("counting")
    store = SqliteStore(path, vfs=disk.name)
    made = [numbered(number) for number in range(200)]
    await asyncio.gather(*(store.insert(record) for record in made))
    before = disk.flushes
    await asyncio.gather(*(store.commit(record) for record in made))
    # The first may go alone, with what has come until its thread wakes up.
    assert 1 <= disk.flushes - before <= 20
    before = disk.flushes
    for record in made[:10]:
        await store.commit(record)
    assert disk.flushes - before >= 10
    await store.close()


class Disk(apsw.VFS):
    """The usual files; counts their flushes, and knows what a power cut would leave of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.name = name
        self.flushes = 0
        self.flushed: dict[str, bytes] = {}

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return DiskFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.flushed.pop(Path(filename).name, None)

    def cut_power(self, folder: Path) -> None:
        """Leave what was flushed, and nothing else, in this folder."""
        folder.mkdir()
        for name, content in self.flushed.items():
            (folder / name).write_bytes(content)


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.flushes += 1
        self._disk.flushed[self._path.name] = self._path.read_bytes()


@pytest.mark.parametrize(
    ("level", "outlives"), [(Durability.FSYNC, True), (Durability.PROCESS_CRASH, False)]
)
async def test_what_says_fsync_outlives_a_power_cut(
    path: Path, level: Durability, outlives: bool
) -> None:
    """And what says less does not, or this could not fail."""
    disk = Disk(f"cut-{level.value}")
    store = SqliteStore(path, level, vfs=disk.name)
    assert store.durability is level
    for number in range(10):
        await store.insert(numbered(number))
        moved = replace(numbered(number), answers=b"moved")
        await store.commit(moved)
        left = path.parent / f"left {number}"
        disk.cut_power(left)
        after = SqliteStore(left / path.name)
        found = await after.read(id_of(moved), "default")
        assert same(found, moved) == outlives
        await after.close()
    await store.close()


async def test_a_full_disk_loses_nothing_and_is_got_over(path: Path) -> None:
    """Full as far as SQLite is concerned; a small disk is `test_stored_sessions`'s."""
    store = SqliteStore(path)
    made = [numbered(number, size=1000) for number in range(50)]
    for record in made[:10]:
        await store.insert(record)
    # In the store's thread, as everything is.
    pages = await store._submit(lambda db, _: db.pragma("page_count"))
    await store._submit(lambda db, _: db.pragma("max_page_count", pages))
    outcomes = await asyncio.gather(
        *(store.insert(record) for record in made[10:]), return_exceptions=True
    )
    assert any(isinstance(outcome, StoreFull) for outcome in outcomes)
    assert store.stats.errors["full"] >= 1
    refused = [r for r, o in zip(made[10:], outcomes, strict=True) if isinstance(o, StoreFull)]
    kept = [record for record in made if record not in refused]
    assert store.count() == {"m/1": len(kept)}
    for record in kept:
        assert same(await store.read(id_of(record), "default"), record)
    for record in refused:
        assert await store.read(id_of(record), "default") is None
    await store._submit(lambda db, _: db.pragma("max_page_count", 1_000_000))
    for record in refused:
        await store.insert(record)
    assert store.count() == {"m/1": 50}
    await store.close()


async def test_sessions_can_be_ended_where_no_more_can_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    kept, ended, over = (numbered(number) for number in range(3))
    for record in (kept, ended, over):
        await store.insert(record)
    volume = os.statvfs(path)
    monkeypatch.setattr(sqlite_store, "RESERVE_BYTES", volume.f_frsize * volume.f_blocks)

    with pytest.raises(StoreFull):
        await store.insert(numbered(3))
    with pytest.raises(StoreFull):
        await store.commit(numbered(0))
    assert await store.delete(id_of(ended))
    assert await store.expire([id_of(over)], math.inf) == 1
    assert same(await store.read(id_of(kept), "default"), kept)
    assert store.stats.errors == {"full": 2, "unavailable": 0, "corrupt": 0}

    monkeypatch.undo()
    await store.insert(numbered(3))
    await store.close()


def damage_first_table(path: Path) -> None:
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18])
    # Its root is the second page, of which the first byte is the type (SQLite file format, 1.6).
    content[page] = 0
    path.write_bytes(content)


async def test_damage_that_no_record_has_is_counted_as_such(path: Path) -> None:
    store = SqliteStore(path)
    await store.insert(numbered(0))
    await store.close()
    damage_first_table(path)

    store = SqliteStore(path)
    with pytest.raises(StoreUnavailable):
        await store.read(id_of(numbered(0)), "default")
    assert store.stats.errors["corrupt"] == 1
    await store.close()


async def test_a_store_of_another_version_is_refused(path: Path) -> None:
    await SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreOpenError, match="version 99"):
        SqliteStore(path)


def test_a_file_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE sessions (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreOpenError, match="no store of sessions"):
        SqliteStore(path)  # before it needs an event loop
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]

"""Sessions in an SQLite file, which one server has to itself.

One thread has the only connection. It takes everything that waits for it at once: reads, each
by itself, then all writes in one transaction, so that turns that end together share one flush
of the disk. The transaction is done or undone as a whole before anybody hears of it.

The thread lets go of Python's lock in every statement and may wait milliseconds to get it back
from a busy event loop; so the turns of a transaction are written by one statement.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, cast

import apsw

from unrolled_server.errors import (
    RecordCorrupt,
    ServerError,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from unrolled_server.failpoints import FailpointError, reach
from unrolled_server.logs import log_event
from unrolled_server.session_names import name_of, session_id
from unrolled_server.session_record import (
    RecordDamaged,
    SessionFacts,
    SessionRecord,
    decode,
    decode_facts,
    encode,
    with_use,
)
from unrolled_server.store import Receipt, StoreOpenError, StorePage, StoreSpace, StoreStats
from unrolled_server.types import Durability

logger = logging.getLogger(__name__)

NAME = "sqlite"
"""What errors call this store."""
APPLICATION_ID = 0x756E726C
"""Tells a store from other SQLite files: "unrl"."""
SCHEMA_VERSION = 2
SCHEMA = f"""
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    ends REAL,
    facts BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX sessions_by_end ON sessions (ends) WHERE ends IS NOT NULL;
CREATE INDEX sessions_by_model ON sessions (model);
CREATE INDEX sessions_by_tenant ON sessions (tenant, id);
CREATE TABLE quarantine (
    id BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    facts BLOB NOT NULL,
    body BLOB NOT NULL,
    found REAL NOT NULL
) STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
SYNCHRONOUS = {Durability.FSYNC: "FULL", Durability.PROCESS_CRASH: "NORMAL"}

UPDATE = """
WITH new (id, model, ends, facts, body) AS (VALUES {})
UPDATE sessions SET ends = new.ends, facts = new.facts, body = new.body
FROM new WHERE sessions.id = new.id AND sessions.model = new.model
"""
MAX_ROWS = 64
"""Of one such statement, which has copies of them."""

Changes: TypeAlias = "Counter[str]"
"""By how many sessions of each model a transaction changes their number."""
Act: TypeAlias = "Callable[[apsw.Connection, Changes], Any]"


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A session's row."""

    id: bytes
    tenant: str
    model: str
    """name/version"""
    ends: float | None
    """Seconds since the epoch."""
    facts: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """Something that the thread is to do."""

    act: Act
    future: asyncio.Future[Any]
    reads: bool = False
    turn: StoredRow | None = None
    """What the commit of a turn writes."""
    asked: float = field(default_factory=time.perf_counter)


Result: TypeAlias = "tuple[asyncio.Future[Any], Any, Exception | None]"
"""Whose it is, what came of it, or what went wrong."""


class SqliteStore:
    """A Store in one file. To be made in the event loop's thread, and used there."""

    def __init__(
        self, path: Path, durability: Durability = Durability.FSYNC, vfs: str | None = None
    ) -> None:
        """Open the file, or make it. Raises StoreOpenError."""
        self.durability = durability
        self.stats = StoreStats()
        self._path = path
        self._db = _opened(path, SYNCHRONOUS[durability], vfs)
        rows = self._db.execute("SELECT model, count(*) FROM sessions GROUP BY model")
        self._counts: Counter[str] = Counter(dict(rows))
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._is_closed = False
        self._thread = Thread(target=self._run, name="sqlite-store", daemon=True)
        self._thread.start()

    def count(self) -> Mapping[str, int]:
        """Sessions by model, name/version."""
        return self._counts

    def space(self) -> StoreSpace | None:
        """What it takes of its volume; None where that cannot be told. From any thread."""
        log = self._path.with_name(self._path.name + "-wal")
        try:
            used = sum(file.stat().st_size for file in (self._path, log))
            volume = os.statvfs(self._path)
        except OSError:
            return None
        block = volume.f_frsize
        return StoreSpace(used, volume.f_bavail * block, volume.f_blocks * block)

    async def insert(self, record: SessionRecord) -> Receipt:
        """Keep a new session."""
        row = _row(record)
        await self._submit(lambda db, changes: _insert(db, changes, row))
        return Receipt(self.durability)

    async def commit(self, record: SessionRecord) -> Receipt:
        """Replace a session's record by that after a turn. Raises SessionNotFound."""
        row = _row(record)
        await self._submit(lambda db, changes: _update(db, changes, row), turn=row)
        return Receipt(self.durability)

    async def read(self, id_: bytes, tenant: str) -> SessionRecord | None:
        """A session's record; None: there is none. Raises RecordCorrupt, and keeps raising it."""
        record: SessionRecord | None = await self._submit(
            lambda db, changes: self._read(db, changes, id_, tenant), reads=True
        )
        return record

    async def delete(self, id_: bytes) -> bool:
        """End a session, readable or not; whether there was one."""
        ended: bool = await self._submit(lambda db, changes: _delete(db, changes, id_))
        return ended

    async def note_uses(self, uses: Mapping[bytes, float]) -> None:
        """Sessions were used, in seconds since the epoch; those that have ended are ignored."""
        await self._submit(lambda db, _: _note_uses(db, uses))

    async def page(self, tenant: str, after: bytes, most: int) -> StorePage:
        """Up to `most` of a tenant's sessions behind an ID, without those that cannot be read."""
        page: StorePage = await self._submit(
            lambda db, changes: self._page(db, changes, tenant, after, most), reads=True
        )
        return page

    async def over(self, now: float, most: int) -> list[bytes]:
        """IDs of up to `most` sessions whose time is over, longest first."""
        ids: list[bytes] = await self._submit(lambda db, _: _over(db, now, most), reads=True)
        return ids

    async def expire(self, ids: list[bytes], now: float) -> int:
        """End those of these sessions whose time is over; how many that were."""
        ended: int = await self._submit(lambda db, changes: _expire(db, changes, ids, now))
        return ended

    async def close(self) -> None:
        """Finish what was asked for; nothing is to be asked for any more."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _submit(
        self, act: Act, *, reads: bool = False, turn: StoredRow | None = None
    ) -> asyncio.Future[Any]:
        if self._is_closed:
            raise StoreUnavailable(NAME)
        job = Job(act, self._loop.create_future(), reads, turn)
        self._jobs.put(job)
        return job.future

    # What follows runs in the store's thread.

    def _run(self) -> None:
        while True:
            jobs = self._waiting()
            wanted = [job for job in jobs if job is not None]
            results = [self._read_one(job) for job in wanted if job.reads]
            if writes := [job for job in wanted if not job.reads]:
                results += self._write(writes)
            if results:
                self._loop.call_soon_threadsafe(_deliver, results)
            if len(wanted) < len(jobs):
                self._db.close()
                return

    def _waiting(self) -> list[Job | None]:
        """What there is to do; waits until there is something. None: the end."""
        jobs = [self._jobs.get()]
        while True:
            try:
                jobs.append(self._jobs.get_nowait())
            except Empty:
                return jobs

    def _read_one(self, job: Job) -> Result:
        """Do a read, which may put a record aside."""
        changes: Changes = Counter()
        try:
            return job.future, job.act(self._db, changes), None
        except Exception as error:
            return job.future, None, self._failure(error)
        finally:
            self._counts.update(changes)

    def _write(self, jobs: list[Job], *, mended: bool = False) -> list[Result]:
        """Do all in one transaction; if that fails, none."""
        turns = [job for job in jobs if job.turn is not None]
        changes: Changes = Counter()
        try:
            _reach_with(turns, "store.before_write")
            self._db.execute("BEGIN IMMEDIATE")
            results = _attempt_all(jobs, self._db, changes)
            _reach_with(turns, "store.before_commit")
            self._db.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if len(jobs) > 1 and isinstance(error, apsw.CorruptError):
                # One of them has met what is damaged; the others are not to suffer.
                return [result for job in jobs for result in self._write([job])]
            if isinstance(error, apsw.CorruptError) and not mended and self._mend():
                return self._write(jobs, mended=True)
            failure = self._failure(error)
            return [(job.future, None, failure) for job in jobs]
        _reach_with(turns, "store.after_commit")
        self._counts.update(changes)
        now = time.perf_counter()
        for job in turns:
            self.stats.commit.observe(now - job.asked)
        return results

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except apsw.Error:
            logger.exception("store_rollback_failed")

    def _mend(self) -> bool:
        """Make the indexes anew, for what they hold follows from the records; whether that went."""
        log_event(logger, logging.ERROR, "store_index_corrupt", store=NAME)
        try:
            self._db.execute("REINDEX sessions")
        except apsw.Error:
            logger.exception("store_reindex_failed")
            return False
        return True

    def _failure(self, error: Exception) -> ServerError:
        """What the caller is told; what only the operator can use goes to the log."""
        if isinstance(error, ServerError):
            return error
        if isinstance(error, apsw.FullError):
            self.stats.errors["full"] += 1
            log_event(logger, logging.ERROR, "store_full", store=NAME)
            return StoreFull(NAME)
        self.stats.errors["unavailable"] += 1
        if isinstance(error, apsw.Error | FailpointError):
            log_event(logger, logging.ERROR, "store_failed", store=NAME, error=str(error))
        else:
            logger.error("store_failed", exc_info=error)
        return StoreUnavailable(NAME)

    def _read(
        self, db: apsw.Connection, changes: Changes, id_: bytes, tenant: str
    ) -> SessionRecord | None:
        row = db.execute("SELECT facts, body FROM sessions WHERE id = ?", (id_,)).fetchone()
        if row is not None:
            try:
                record = decode(*row)
                _check_owner(record.facts, id_)
            except RecordDamaged as error:
                self._quarantine(db, changes, id_, error)
            else:
                return record if record.facts.tenant == tenant else None
        query = "SELECT 1 FROM quarantine WHERE id = ? AND tenant = ?"
        if db.execute(query, (id_, tenant)).fetchone():
            raise RecordCorrupt(name_of(id_))
        return None

    def _page(
        self, db: apsw.Connection, changes: Changes, tenant: str, after: bytes, most: int
    ) -> StorePage:
        query = "SELECT id, facts FROM sessions WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
        found_rows = db.execute(query, (tenant, after, most)).fetchall()
        rows = cast("list[tuple[bytes, bytes]]", found_rows)
        found = []
        for id_, facts in rows:
            try:
                known = decode_facts(facts)
                _check_owner(known, id_)
            except RecordDamaged as error:
                self._quarantine(db, changes, id_, error)
            else:
                found.append(known)
        return StorePage(found, rows[-1][0] if len(rows) == most else None)

    def _quarantine(
        self, db: apsw.Connection, changes: Changes, id_: bytes, error: RecordDamaged
    ) -> None:
        """Put a record aside, for whoever wants to see what happened to it, and count it."""
        self.stats.damaged += 1
        log_event(logger, logging.ERROR, "record_corrupt", session=name_of(id_), problem=str(error))
        try:
            with db:
                db.execute(
                    "INSERT OR REPLACE INTO quarantine"
                    " SELECT id, tenant, model, facts, body, ? FROM sessions WHERE id = ?",
                    (time.time(), id_),
                )
                _remove(db, changes, id_)
        except apsw.Error:
            # It stays where it is, to be found again.
            changes.clear()
            logger.exception("quarantine_failed")


def _opened(path: Path, synchronous: str, vfs: str | None) -> apsw.Connection:
    """A connection to the file that no other process shares. Raises StoreOpenError."""
    try:
        _make(path)
        db = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE, vfs)
        # Before the file is first read: then the write-ahead log needs no shared memory.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_kind(db, path)
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        # NORMAL and FULL; on macOS a flush that reaches the disk is one more setting.
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("BEGIN EXCLUSIVE")
        if not db.pragma("user_version"):
            db.execute(SCHEMA)
        db.execute("COMMIT")
    except apsw.BusyError as error:
        raise StoreOpenError(f"{path}: another process has it open") from error
    except (apsw.Error, OSError) as error:
        raise StoreOpenError(f"{path}: {error}") from error
    return db


def _make(path: Path) -> None:
    """Make the file if it is not there, for its owner only. Raises OSError."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_kind(db: apsw.Connection, path: Path) -> None:
    """Refuse a file of something else. Raises StoreOpenError."""
    version = db.pragma("user_version")
    is_new = not db.execute("SELECT count(*) FROM sqlite_schema").get
    if not is_new and db.pragma("application_id") != APPLICATION_ID:
        raise StoreOpenError(f"{path}: an SQLite file, but no store of sessions")
    if not is_new and version != SCHEMA_VERSION:
        raise StoreOpenError(f"{path}: version {version}; this server knows {SCHEMA_VERSION}")


def _reach_with(turns: list[Job], place: str) -> None:
    if turns:
        reach(place)


def _attempt_all(jobs: list[Job], db: apsw.Connection, changes: Changes) -> list[Result]:
    """Do the jobs of a transaction in their order, turns that follow each other at once."""
    results: list[Result] = []
    for are_turns, some in groupby(jobs, lambda job: job.turn is not None):
        group = list(some)
        if are_turns and _update_all(db, [job.turn for job in group if job.turn is not None]):
            results += [(job.future, None, None) for job in group]
        else:
            results += [_attempt(job, db, changes) for job in group]
    return results


def _attempt(job: Job, db: apsw.Connection, changes: Changes) -> Result:
    """Do a job of a transaction; what it is refused is its own matter."""
    try:
        return job.future, job.act(db, changes), None
    except ServerError as error:
        return job.future, None, error


def _deliver(results: list[Result]) -> None:
    """In the event loop's thread."""
    for future, value, error in results:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _check_owner(facts: SessionFacts, id_: bytes) -> None:
    """Raises RecordDamaged where the facts are those of another session."""
    if session_id(facts.name) != id_:
        raise RecordDamaged("the record is that of another session")


def _row(record: SessionRecord) -> StoredRow:
    """The record as it is stored. Raises ValueError for a name that is none of a session."""
    facts, id_ = record.facts, session_id(record.facts.name)
    if id_ is None:
        raise ValueError(facts.name)
    return StoredRow(id_, facts.tenant, facts.model, facts.ends, *encode(record))


def _insert(db: apsw.Connection, changes: Changes, row: StoredRow) -> None:
    db.execute(
        "INSERT INTO sessions (id, tenant, model, ends, facts, body) VALUES (?, ?, ?, ?, ?, ?)",
        (row.id, row.tenant, row.model, row.ends, row.facts, row.body),
    )
    changes[row.model] += 1


def _update_all(db: apsw.Connection, rows: list[StoredRow]) -> bool:
    """Replace rows, each of which is there with the same model; else some, if any, and False."""
    return all(
        _update_some(db, rows[start : start + MAX_ROWS]) for start in range(0, len(rows), MAX_ROWS)
    )


def _update_some(db: apsw.Connection, rows: list[StoredRow]) -> bool:
    # Nobody has the ID NULL: it fills up, so that there are but few statements to prepare.
    size = 1 << (len(rows) - 1).bit_length()
    values = chain.from_iterable((row.id, row.model, row.ends, row.facts, row.body) for row in rows)
    nobody = (None,) * (5 * (size - len(rows)))
    db.execute(UPDATE.format(", ".join(["(?, ?, ?, ?, ?)"] * size)), (*values, *nobody))
    return db.changes() == len(rows)


def _update(db: apsw.Connection, changes: Changes, row: StoredRow) -> None:
    found = db.execute("SELECT model FROM sessions WHERE id = ?", (row.id,)).fetchone()
    if found is None:
        # A record that was put aside while the session went on in memory: here it is whole again.
        db.execute("DELETE FROM quarantine WHERE id = ?", (row.id,))
        if not db.changes():
            raise SessionNotFound(name_of(row.id))
        _insert(db, changes, row)
        return
    db.execute(
        "UPDATE sessions SET model = ?, ends = ?, facts = ?, body = ? WHERE id = ?",
        (row.model, row.ends, row.facts, row.body, row.id),
    )
    changes[found[0]] -= 1
    changes[row.model] += 1


def _remove(db: apsw.Connection, changes: Changes, id_: bytes) -> bool:
    row = db.execute("DELETE FROM sessions WHERE id = ? RETURNING model", (id_,)).fetchone()
    if row is None:
        return False
    changes[row[0]] -= 1
    return True


def _delete(db: apsw.Connection, changes: Changes, id_: bytes) -> bool:
    if _remove(db, changes, id_):
        return True
    db.execute("DELETE FROM quarantine WHERE id = ?", (id_,))
    return db.changes() > 0


def _note_uses(db: apsw.Connection, uses: Mapping[bytes, float]) -> None:
    for id_, used in uses.items():
        row = db.execute("SELECT facts FROM sessions WHERE id = ?", (id_,)).fetchone()
        if row is None:
            continue
        try:
            facts, known = with_use(row[0], used)
        except RecordDamaged:
            # It is dealt with when it is read.
            continue
        db.execute("UPDATE sessions SET ends = ?, facts = ? WHERE id = ?", (known.ends, facts, id_))


def _over(db: apsw.Connection, now: float, most: int) -> list[bytes]:
    query = "SELECT id FROM sessions WHERE ends <= ? ORDER BY ends LIMIT ?"
    return [id_ for (id_,) in db.execute(query, (now, most))]


def _expire(db: apsw.Connection, changes: Changes, ids: list[bytes], now: float) -> int:
    ended = 0
    for id_ in ids:
        row = db.execute("SELECT facts FROM sessions WHERE id = ?", (id_,)).fetchone()
        # The column is only an index; a damaged record stays, so that its owner is told.
        if row is not None and _is_over(db, row[0], id_, now):
            ended += _remove(db, changes, id_)
    return ended


def _is_over(db: apsw.Connection, facts: bytes, id_: bytes, now: float) -> bool:
    """Whether a session is over by its facts; an index that says otherwise is put right."""
    try:
        known = decode_facts(facts)
    except RecordDamaged:
        db.execute("UPDATE sessions SET ends = NULL WHERE id = ?", (id_,))
        return False
    if not known.is_over(now):
        db.execute("UPDATE sessions SET ends = ? WHERE id = ?", (known.ends, id_))
        return False
    return True

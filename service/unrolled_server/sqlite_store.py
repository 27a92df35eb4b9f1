"""Sessions in an SQLite file, which one server has to itself.

One thread has the only connection. It takes everything that waits for it at once: reads, each
by itself, then all writes in one transaction, so that turns that end together share one flush
of the disk. The transaction is done or undone as a whole before anybody hears of it.

The thread lets go of Python's lock in every statement and may wait milliseconds to get it back
from a busy event loop; so the turns of a transaction are written by one statement.

This module owns the thread, its jobs and its transactions; `sqlite_file` opens the file,
`sqlite_rows` has the statements.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

import apsw

from unrolled_server import sqlite_rows
from unrolled_server.errors import RecordCorrupt, ServerError, StoreFull, StoreUnavailable
from unrolled_server.failpoints import FailpointError, reach
from unrolled_server.logs import log_event
from unrolled_server.session_names import name_of
from unrolled_server.session_record import RecordDamaged, SessionRecord
from unrolled_server.sqlite_file import opened
from unrolled_server.sqlite_rows import Changes, StoredRow
from unrolled_server.store import Receipt, StorePage, StoreSpace, StoreStats
from unrolled_server.types import Durability

logger = logging.getLogger(__name__)

NAME = "sqlite"
"""What errors call this store."""

RESERVE_BYTES = 8 << 20
"""Left free on the volume by what adds to the file: to end sessions, too, takes room in the log."""

Act: TypeAlias = "Callable[[apsw.Connection, Changes], Any]"


@dataclass(frozen=True, slots=True)
class Job:
    """Something that the thread is to do."""

    act: Act
    future: asyncio.Future[Any]
    reads: bool = False
    turn: StoredRow | None = None
    """What the commit of a turn writes."""
    adds: bool = False
    """Whether the file may grow by it for good."""
    asked: float = field(default_factory=time.perf_counter)


Result: TypeAlias = "tuple[asyncio.Future[Any], Any, Exception | None]"
"""Whose it is, what came of it, or what went wrong."""


class SqliteStore:
    """A Store in one file. To be made in the event loop's thread, and used there."""

    lateness = 0.0

    def __init__(
        self, path: Path, durability: Durability = Durability.FSYNC, vfs: str | None = None
    ) -> None:
        """Open the file, or make it. Raises StoreOpenError."""
        self.durability = durability
        self.stats = StoreStats()
        self._path = path
        self._db = opened(path, durability, vfs)
        self._counts = sqlite_rows.counts(self._db)
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
        row = sqlite_rows.row_of(record)
        await self._submit(lambda db, changes: sqlite_rows.insert(db, changes, row), adds=True)
        return Receipt(self.durability)

    async def commit(self, record: SessionRecord) -> Receipt:
        """Replace a session's record by that after a turn. Raises SessionNotFound."""
        row = sqlite_rows.row_of(record)
        await self._submit(lambda db, changes: sqlite_rows.update(db, changes, row), turn=row)
        return Receipt(self.durability)

    async def read(self, id_: bytes, tenant: str) -> SessionRecord | None:
        """A session's record; None: there is none. Raises RecordCorrupt, and keeps raising it."""
        record: SessionRecord | None = await self._submit(
            lambda db, changes: self._read(db, changes, id_, tenant), reads=True
        )
        return record

    async def delete(self, id_: bytes) -> bool:
        """End a session, readable or not; whether there was one."""
        ended: bool = await self._submit(lambda db, changes: sqlite_rows.delete(db, changes, id_))
        return ended

    async def discard(self, id_: bytes, facts: bytes) -> bool:
        """End a session that is as it was inserted with these facts; whether there was one."""
        ended: bool = await self._submit(
            lambda db, changes: sqlite_rows.discard(db, changes, id_, facts)
        )
        return ended

    async def note_uses(self, uses: Mapping[bytes, float]) -> None:
        """Sessions were used, in seconds since the epoch; those that have ended are ignored."""
        await self._submit(lambda db, _: sqlite_rows.note_uses(db, uses))

    async def page(self, tenant: str, after: bytes, most: int) -> StorePage:
        """Up to `most` of a tenant's sessions behind an ID, without those that cannot be read."""
        page: StorePage = await self._submit(
            lambda db, changes: self._page(db, changes, tenant, after, most), reads=True
        )
        return page

    async def over(self, now: float, most: int) -> list[bytes]:
        """IDs of up to `most` sessions whose time is over, longest first."""
        ids: list[bytes] = await self._submit(
            lambda db, _: sqlite_rows.over(db, now, most), reads=True
        )
        return ids

    async def expire(self, ids: list[bytes], now: float) -> int:
        """End those of these sessions whose time is over; how many that were."""
        ended: int = await self._submit(
            lambda db, changes: sqlite_rows.expire(db, changes, ids, now)
        )
        return ended

    async def close(self) -> None:
        """Finish what was asked for; nothing is to be asked for any more."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _submit(
        self, act: Act, *, reads: bool = False, turn: StoredRow | None = None, adds: bool = False
    ) -> asyncio.Future[Any]:
        if self._is_closed:
            raise StoreUnavailable(NAME)
        job = Job(act, self._loop.create_future(), reads, turn, adds or turn is not None)
        self._jobs.put(job)
        return job.future

    # What follows runs in the store's thread.

    def _run(self) -> None:
        while True:
            jobs = self._waiting()
            wanted = [job for job in jobs if job is not None]
            results = [self._read_one(job) for job in wanted if job.reads]
            writes = [job for job in wanted if not job.reads]
            if any(job.adds for job in writes) and not self._has_room():
                results += [(job.future, None, self._full()) for job in writes if job.adds]
                writes = [job for job in writes if not job.adds]
            if writes:
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

    def _has_room(self) -> bool:
        """Whether the volume has more left than what is kept for ending sessions."""
        space = self.space()
        return space is None or space.free > RESERVE_BYTES

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
            return self._full()
        is_corrupt = isinstance(error, apsw.CorruptError | apsw.NotADBError)
        self.stats.errors["corrupt" if is_corrupt else "unavailable"] += 1
        if isinstance(error, apsw.Error | FailpointError):
            log_event(logger, logging.ERROR, "store_failed", store=NAME, error=str(error))
        else:
            logger.error("store_failed", exc_info=error)
        return StoreUnavailable(NAME)

    def _full(self) -> StoreFull:
        self.stats.errors["full"] += 1
        log_event(logger, logging.ERROR, "store_full", store=NAME)
        return StoreFull(NAME)

    def _read(
        self, db: apsw.Connection, changes: Changes, id_: bytes, tenant: str
    ) -> SessionRecord | None:
        record = None
        try:
            record = sqlite_rows.read(db, id_)
        except RecordDamaged as error:
            self._quarantine(db, changes, id_, error)
        if record is not None:
            return record if record.facts.tenant == tenant else None
        if sqlite_rows.is_put_aside(db, id_, tenant):
            raise RecordCorrupt(name_of(id_))
        return None

    def _page(
        self, db: apsw.Connection, changes: Changes, tenant: str, after: bytes, most: int
    ) -> StorePage:
        rows = sqlite_rows.page(db, tenant, after, most)
        found = []
        for id_, facts in rows:
            try:
                found.append(sqlite_rows.facts_of(id_, facts))
            except RecordDamaged as error:
                self._quarantine(db, changes, id_, error)
        return StorePage(found, rows[-1][0] if len(rows) == most else None)

    def _quarantine(
        self, db: apsw.Connection, changes: Changes, id_: bytes, error: RecordDamaged
    ) -> None:
        """Put a record aside, and count it."""
        self.stats.damaged += 1
        log_event(logger, logging.ERROR, "record_corrupt", session=name_of(id_), problem=str(error))
        try:
            with db:
                sqlite_rows.put_aside(db, changes, id_, time.time())
        except apsw.Error:
            # It stays where it is, to be found again.
            changes.clear()
            logger.exception("quarantine_failed")


def _reach_with(turns: list[Job], place: str) -> None:
    if turns:
        reach(place)


def _attempt_all(jobs: list[Job], db: apsw.Connection, changes: Changes) -> list[Result]:
    """Do the jobs of a transaction in their order, turns that follow each other at once."""
    results: list[Result] = []
    for are_turns, some in groupby(jobs, lambda job: job.turn is not None):
        group = list(some)
        rows = [job.turn for job in group if job.turn is not None]
        if are_turns and sqlite_rows.update_all(db, rows):
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

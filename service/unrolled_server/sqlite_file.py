"""The file that SqliteStore keeps sessions in: how it is made and opened, and its schema."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from unrolled_server.store import StoreOpenError
from unrolled_server.types import Durability

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


def opened(path: Path, durability: Durability, vfs: str | None) -> apsw.Connection:
    """A connection to the file that no other process shares. Raises StoreOpenError."""
    try:
        _make(path)
        db = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE, vfs)
        # Before the file is first read: then the write-ahead log needs no shared memory.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_kind(db, path)
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        # NORMAL and FULL; on macOS a flush that reaches the disk is one more setting.
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS[durability]}")
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

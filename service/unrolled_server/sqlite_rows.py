"""The rows of SqliteStore's tables: every statement that reads or writes them.

Callers see to transactions, and to records that turn out to be damaged when they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, cast

import apsw

from unrolled_server.errors import SessionNotFound
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

UPDATE = """
WITH new (id, model, ends, facts, body) AS (VALUES {})
UPDATE sessions SET ends = new.ends, facts = new.facts, body = new.body
FROM new WHERE sessions.id = new.id AND sessions.model = new.model
"""
MAX_ROWS = 64
"""Of one such statement, which has copies of them."""

Changes: TypeAlias = "Counter[str]"
"""By how many sessions of each model a transaction changes their number."""


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


def row_of(record: SessionRecord) -> StoredRow:
    """The record as it is stored. Raises ValueError for a name that is none of a session."""
    facts, id_ = record.facts, session_id(record.facts.name)
    if id_ is None:
        raise ValueError(facts.name)
    return StoredRow(id_, facts.tenant, facts.model, facts.ends, *encode(record))


def counts(db: apsw.Connection) -> Counter[str]:
    """Sessions by model."""
    return Counter(dict(db.execute("SELECT model, count(*) FROM sessions GROUP BY model")))


def read(db: apsw.Connection, id_: bytes) -> SessionRecord | None:
    """A session's record; None: there is no row. Raises RecordDamaged."""
    row = db.execute("SELECT facts, body FROM sessions WHERE id = ?", (id_,)).fetchone()
    if row is None:
        return None
    record = decode(*row)
    _check_owner(record.facts, id_)
    return record


def page(db: apsw.Connection, tenant: str, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """IDs and facts of up to `most` of a tenant's sessions behind an ID, in the order of IDs."""
    query = "SELECT id, facts FROM sessions WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
    rows = db.execute(query, (tenant, after, most)).fetchall()
    return cast("list[tuple[bytes, bytes]]", rows)


def facts_of(id_: bytes, facts: bytes) -> SessionFacts:
    """What the facts in this session's row say. Raises RecordDamaged."""
    known = decode_facts(facts)
    _check_owner(known, id_)
    return known


def is_put_aside(db: apsw.Connection, id_: bytes, tenant: str) -> bool:
    """Whether the record of this session of the tenant's lies in quarantine."""
    query = "SELECT 1 FROM quarantine WHERE id = ? AND tenant = ?"
    return db.execute(query, (id_, tenant)).fetchone() is not None


def put_aside(db: apsw.Connection, changes: Changes, id_: bytes, now: float) -> None:
    """Put a record in quarantine, for whoever wants to see what happened to it."""
    db.execute(
        "INSERT OR REPLACE INTO quarantine"
        " SELECT id, tenant, model, facts, body, ? FROM sessions WHERE id = ?",
        (now, id_),
    )
    _remove(db, changes, id_)


def insert(db: apsw.Connection, changes: Changes, row: StoredRow) -> None:
    """Add the row of a new session."""
    db.execute(
        "INSERT INTO sessions (id, tenant, model, ends, facts, body) VALUES (?, ?, ?, ?, ?, ?)",
        (row.id, row.tenant, row.model, row.ends, row.facts, row.body),
    )
    changes[row.model] += 1


def update_all(db: apsw.Connection, rows: list[StoredRow]) -> bool:
    """Replace rows, each of which is there with the same model; else some, if any, and False."""
    return all(
        _update_some(db, rows[start : start + MAX_ROWS]) for start in range(0, len(rows), MAX_ROWS)
    )


def update(db: apsw.Connection, changes: Changes, row: StoredRow) -> None:
    """Replace a row. Raises SessionNotFound."""
    found = db.execute("SELECT model FROM sessions WHERE id = ?", (row.id,)).fetchone()
    if found is None:
        # A record that was put aside while the session went on in memory: here it is whole again.
        db.execute("DELETE FROM quarantine WHERE id = ?", (row.id,))
        if not db.changes():
            raise SessionNotFound(name_of(row.id))
        insert(db, changes, row)
        return
    db.execute(
        "UPDATE sessions SET model = ?, ends = ?, facts = ?, body = ? WHERE id = ?",
        (row.model, row.ends, row.facts, row.body, row.id),
    )
    changes[found[0]] -= 1
    changes[row.model] += 1


def delete(db: apsw.Connection, changes: Changes, id_: bytes) -> bool:
    """End a session, also one whose record was put aside; whether there was one."""
    if _remove(db, changes, id_):
        return True
    db.execute("DELETE FROM quarantine WHERE id = ?", (id_,))
    return db.changes() > 0


def discard(db: apsw.Connection, changes: Changes, id_: bytes, facts: bytes) -> bool:
    """End a session whose facts are still these; whether there was one."""
    row = db.execute("SELECT facts FROM sessions WHERE id = ?", (id_,)).fetchone()
    return row is not None and row[0] == facts and _remove(db, changes, id_)


def note_uses(db: apsw.Connection, uses: Mapping[bytes, float]) -> None:
    """Sessions were used then; those that are not there are ignored."""
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


def over(db: apsw.Connection, now: float, most: int) -> list[bytes]:
    """IDs of up to `most` sessions whose time is over by the index, longest first."""
    query = "SELECT id FROM sessions WHERE ends <= ? ORDER BY ends LIMIT ?"
    return [id_ for (id_,) in db.execute(query, (now, most))]


def expire(db: apsw.Connection, changes: Changes, ids: list[bytes], now: float) -> int:
    """End those of these sessions whose time is over; how many that were."""
    ended = 0
    for id_ in ids:
        row = db.execute("SELECT facts FROM sessions WHERE id = ?", (id_,)).fetchone()
        # The column is only an index; a damaged record stays, so that its owner is told.
        if row is not None and _is_over(db, row[0], id_, now):
            ended += _remove(db, changes, id_)
    return ended


def _update_some(db: apsw.Connection, rows: list[StoredRow]) -> bool:
    # Nobody has the ID NULL: it fills up, so that there are but few statements to prepare.
    size = 1 << (len(rows) - 1).bit_length()
    values = chain.from_iterable((row.id, row.model, row.ends, row.facts, row.body) for row in rows)
    nobody = (None,) * (5 * (size - len(rows)))
    db.execute(UPDATE.format(", ".join(["(?, ?, ?, ?, ?)"] * size)), (*values, *nobody))
    return db.changes() == len(rows)


def _remove(db: apsw.Connection, changes: Changes, id_: bytes) -> bool:
    row = db.execute("DELETE FROM sessions WHERE id = ? RETURNING model", (id_,)).fetchone()
    if row is None:
        return False
    changes[row[0]] -= 1
    return True


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


def _check_owner(facts: SessionFacts, id_: bytes) -> None:
    """Raises RecordDamaged where the facts are those of another session."""
    if session_id(facts.name) != id_:
        raise RecordDamaged("the record is that of another session")

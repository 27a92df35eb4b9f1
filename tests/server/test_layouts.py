"""Bytes of sessions as earlier servers have left them: each layout's are read and written alike."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
from unrolled_server import checkpoints, session_record, snapshot_layout
from unrolled_server.checkpoints import LAST_TURN, Checkpoint, Checkpoints
from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.snapshot_layout import Snapshot
from unrolled_server.types import CheckpointView, Past

START = Past(None, None, 0)
PAST = Past(np.array([0.5, -2.0], np.float32), 7, 1000, b"\xc3", 3)
SEED = 2**63 + 1

CHECKPOINTS = bytes.fromhex(
    "0100000000000002000000000000000000000000000000ffffffffffffffff0401080000"
    "000300000000000000e803000000000000070000000300000068657265c30000003f0000"
    "00c0"
)
FACTS = bytes.fromhex(
    "020000002a0123456789abcdef0123456789abcdefababababababababababababababab"
    "ababababababababababababababababab05000000000000000400000000000000010000"
    "0000000080e8030000000000000200000000001040fc54d94100006040fc54d941000000"
    "0000004e40bca598fbcea696795ee3d44aeaca98730102000000bdfc54d941060074656e"
    "616e7403006d2f3100000000000000000000e803000000000000040068657265f95e09c2"
    "b2e9202b4648f0cf6b4af33a"
)
BODY = (
    bytes.fromhex("07000000030000000100070000004a000000c3")
    + b"answers"
    + CHECKPOINTS
    + bytes.fromhex("0000003f000000c0")
)
SNAPSHOT = bytes.fromhex(
    "abababababababababababababababababababababababababababababababab00000000"
    "0000f07f0100000000000080e8030000000000000700000003000000060074656e616e74"
    "03006d2f310100c30000003f000000c0"
)


def same(found: Past, expected: Past) -> bool:
    """Whether two agree to the last bit."""
    states = [None if past.state is None else past.state.tolist() for past in (found, expected)]
    return states[0] == states[1] and replace(found, state=None) == replace(expected, state=None)


def test_checkpoints() -> None:
    both = Checkpoint(LAST_TURN, 2, START), Checkpoint("here", 3, PAST)
    assert checkpoints.encode(Checkpoints(True, both)) == CHECKPOINTS
    kept = checkpoints.decode(CHECKPOINTS)
    assert kept.undo
    (last, here) = kept.all
    assert (last.id, last.era, here.id, here.era) == (LAST_TURN, 2, "here", 3)
    assert same(last.past, START)
    assert same(here.past, PAST)


def test_a_record() -> None:
    facts = SessionFacts(
        name="sessions/0000002a0123456789abcdef0123456789abcdef",
        tenant="tenant",
        model="m/1",
        fingerprint="ab" * 32,
        epoch=5,
        era=4,
        seed=SEED,
        position=1000,
        state_size=2,
        created=1700000000.25,
        used=1700000001.5,
        idle_ttl=60.0,
        undo=True,
        checkpoints=(CheckpointView(LAST_TURN, 0), CheckpointView("here", 1000)),
        latest=1700000500.0,
    )
    record = SessionRecord(facts, PAST, b"answers", CHECKPOINTS)
    assert session_record.encode(record) == (FACTS, BODY)
    found = session_record.decode(FACTS, BODY)
    assert same(found.past, PAST)
    assert replace(found, past=PAST) == record


def test_a_record_of_the_beginning() -> None:
    body = bytes.fromhex("ffffffffffffffff00000000000000000000")
    facts = replace(session_record.decode_facts(FACTS), position=0, undo=False, checkpoints=())
    known, encoded = session_record.encode(SessionRecord(facts, START, b""))
    assert encoded == body
    assert same(session_record.decode(known, body).past, START)


def test_a_snapshot() -> None:
    snapshot = Snapshot("tenant", "m/1", "ab" * 32, inf, SEED, PAST)
    assert snapshot_layout.encode(snapshot) == SNAPSHOT
    found = snapshot_layout.decode(SNAPSHOT)
    assert same(found.past, PAST)
    assert replace(found, past=PAST) == snapshot

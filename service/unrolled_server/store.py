"""What keeps sessions beyond the memory of one process: the interface of stores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from unrolled_server.session_record import SessionFacts, SessionRecord
from unrolled_server.stats import LATENCY, Tally
from unrolled_server.types import Durability


class StoreOpenError(Exception):
    """The store cannot be opened; the message says which and why."""


class StoreStats:
    """What a store counts; read by the metrics endpoint."""

    def __init__(self) -> None:
        self.commit = Tally(LATENCY)
        """Seconds that turns waited for their commit."""
        self.errors: Counter[str] = Counter({"full": 0, "unavailable": 0, "corrupt": 0})
        """Transactions and reads that failed, by what was the matter."""
        self.damaged = 0
        """Records that were not what had been written."""


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """What a store takes of the volume that it lies on, in bytes."""

    used: int
    """By the store, its log included."""
    free: int
    """Left to the server."""
    volume: int


@dataclass(frozen=True, slots=True)
class StorePage:
    """Sessions in the order of their IDs."""

    sessions: list[SessionFacts]
    after: bytes | None
    """The ID to go on behind; None: these were the last ones."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which state of a session it is, and whether a server may go on from it."""

    epoch: int
    """That of the server's own claim; 0: it has read the session and not claimed it."""
    digest: bytes
    """Of the session's facts, which hold the digest of everything else."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known of a record that was written."""

    durability: Durability
    version: Version | None = None
    """None: nobody else writes, so that nothing has to be told apart."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A server is about to advance a session, and everybody else's turn on it is refused."""

    expected_position: int | None = None
    """The claim is not made where the session stands elsewhere."""
    until: float = math.inf
    """When nobody waits for it any more, in seconds of time.monotonic: it is not made later on."""
    as_known: bool = False
    """It is made only where the session is what the asking server knows."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A session as a shared store has it now."""

    version: Version
    used: float
    """Seconds since the epoch."""
    record: SessionRecord | None
    """None: it is what the asking server knows."""


class Store(Protocol):
    """Keeps records of sessions by their IDs (`session_names.session_id`).

    A method returns once what it did is as durable as `durability` says. Every one of them
    raises StoreUnavailable or StoreFull where the store fails; nothing has changed then, unless the
    process dies before the store works again: a write whose flush failed may still be found.
    Cancelling a call does not undo it.
    """

    lateness: float
    """Seconds for which an insertion that failed may still be carried out."""

    @property
    def durability(self) -> Durability:
        """What records outlive at least once they are written; receipts may say more."""

    @property
    def stats(self) -> StoreStats:
        """What was counted."""

    def count(self) -> Mapping[str, int]:
        """Sessions by model, name/version."""

    def space(self) -> StoreSpace | None:
        """What it takes of its volume; None where that cannot be told. From any thread."""

    async def insert(self, record: SessionRecord) -> Receipt:
        """Keep a new session. After StoreUnavailable it may be kept, or be so yet: `lateness`."""

    async def commit(self, record: SessionRecord) -> Receipt:
        """Replace a session's record by that after a turn. Raises SessionNotFound."""

    async def read(self, id_: bytes, tenant: str) -> SessionRecord | None:
        """A tenant's session's record; None: there is none. Raises RecordCorrupt, ever again."""

    async def delete(self, id_: bytes) -> bool:
        """End a session, readable or not; whether there was one."""

    async def discard(self, id_: bytes, facts: bytes) -> bool:
        """End a session that is still as it was inserted; whether there was one.

        That is with these facts, of `session_record.encode`, and neither claimed nor used since.
        """

    async def note_uses(self, uses: Mapping[bytes, float]) -> None:
        """Sessions were used, in seconds since the epoch; those that have ended are ignored."""

    async def page(self, tenant: str, after: bytes, most: int) -> StorePage:
        """Up to `most` of a tenant's sessions behind an ID, without those that cannot be read."""

    async def over(self, now: float, most: int) -> list[bytes]:
        """IDs of up to `most` sessions whose time is over, longest first."""

    async def expire(self, ids: list[bytes], now: float) -> int:
        """End those of these sessions whose time is over; how many that were."""

    async def close(self) -> None:
        """Finish what was asked for; nothing is to be asked for any more."""


class SharedStore(Store, Protocol):
    """A store that several servers use, each with a memory that may be behind it.

    A server claims a session before each of its turns, which raises the session's epoch unless
    the last claim was its own; a commit by an older claim is refused. So two servers never both
    advance a session, whatever they believe, and however late their writes arrive.
    """

    name: str
    """What errors call this store."""
    timeout: float
    """Seconds that it may take to answer."""

    async def look(
        self, id_: bytes, tenant: str, known: Version | None, claim: Claim | None = None
    ) -> Sight | None:
        """A tenant's session as it is now, claimed or not; None: there is none.

        Raises RecordCorrupt, ever again. After StoreUnavailable the claim may have been made, or
        be yet, but not after `lateness`.
        """

    async def commit(self, record: SessionRecord, since: bytes = b"") -> Receipt:
        """Replace a session's record, whose digest is `since`, by that after a turn.

        The record's epoch is that of the claim. Raises SessionNotFound, Fenced. After
        StoreUnavailable the record may have been replaced, or be yet, but not after `lateness`.
        """

    async def hold(self, ids: list[bytes]) -> None:
        """Turns of these sessions are under way: they are used, and do not end meanwhile."""

    async def ping(self) -> bool:
        """Whether the store answers in time."""

"""What travels between the parts of the server: no behaviour, no generated messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Floats = NDArray[np.float32]
Places = NDArray[np.int64]
"""Of rows in a batch."""


DEFAULT_MAX_TOKENS = 256
MAX_STEPS = 16
"""Steps of a run at most."""
PROMPT_STEPS = 64
"""Steps at most of a run that only tells."""


class FinishReason(Enum):
    """Why a turn ended; names are those of the contract."""

    LENGTH = "LENGTH"
    STOP = "STOP"
    END = "END"
    STOPPED = "STOPPED"


class Durability(Enum):
    """What a committed turn outlives; names are those of the contract."""

    MEMORY = "MEMORY"
    PROCESS_CRASH = "PROCESS_CRASH"
    FSYNC = "FSYNC"
    REPLICATED = "REPLICATED"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; ranges and meaning as in CompleteRequest."""

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def filters(self) -> bool:
        """Whether tokens are dropped before the draw."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a turn that may be repeated is known by within its session."""

    request_id: str
    payload: bytes
    """SHA-256 of everything else that was asked, 32 bytes."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a caller asks of one turn, checked but for what only the model can tell."""

    model: str
    session: str
    tell: str | Sequence[int] | None
    """Text or tokens told before anything is drawn."""
    field: str
    """The request's field that `tell` came from, for errors."""
    max_tokens: int | None
    """None: DEFAULT_MAX_TOKENS, or the server's limit where that is less."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    expected_position: int | None = None
    key: RequestKey | None = None
    """None: the turn is not recorded."""
    scores: bool = False
    """Log-probabilities are of the told tokens rather than of the drawn ones."""
    reads_only: bool = False
    """The session is read and neither held nor advanced."""
    in_one_message: bool = False
    """All log-probabilities are, however many."""


@dataclass(frozen=True, slots=True)
class Past:
    """Where a sequence stands: everything that the next turn starts from."""

    state: Floats | None
    """All state tensors end to end, [S]; None is the zero state."""
    pending: int | None
    """The newest token, not fed yet; None where there is none."""
    position: int
    """Tokens so far, the pending one included, a start token not."""
    partial: bytes = b""
    """The beginning of a character whose remaining bytes are yet to come."""
    previous: int | None = None
    """The newest token that shows, where text depends on it; None where there is none."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt, and where it leads to."""

    tokens: int
    """How many of the prompt's, at least 1 less than it has."""
    state: Floats
    """[S]: after all of these tokens were fed, the empty state before. Not to be written to."""


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """A checkpoint as callers see it."""

    id: str
    """Empty: that before the last turn."""
    position: int


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of N tokens, in nats, and the M likeliest at each place."""

    chosen: Floats
    """[N]; undefined where `unset`."""
    unset: NDArray[np.bool_]
    """[N]: whether nothing precedes the token."""
    top_ids: Tokens
    """[N, M], likeliest first; -1 where `unset`."""
    top: Floats
    """[N, M]"""


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last one."""

    text: str
    token_ids: list[int]
    logprobs: Logprobs | None


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a turn as the engine sees it, before anything is committed."""

    reason: FinishReason
    matched_stop: str
    told: int
    drawn: int
    past: Past
    """Where the sequence stands now."""
    cached: int = 0
    """Of the told tokens, those that were not run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a turn as the caller hears of it, after the commit."""

    ending: Ending
    session: str
    model: str
    seed: int
    durability: Durability | None = None
    """None: nothing was committed."""


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as callers see it."""

    name: str
    """sessions/ID"""
    model: str
    """name/version"""
    fingerprint: str
    position: int
    seed: int
    state_bytes: int
    created: float
    """Seconds since the epoch."""
    used: float
    """Seconds since the epoch."""
    expires: float | None
    """Seconds since the epoch; None: never."""
    undo: bool = False
    """Whether it keeps where it stood before its last turn."""
    checkpoints: tuple[CheckpointView, ...] = ()
    latest: float | None = None
    """When it ends however it is used, in seconds since the epoch; None: use keeps it."""

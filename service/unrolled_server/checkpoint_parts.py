"""What all layouts of a checkpoint have in common: how they write tokens and states.

A token is a signed number of 32 bits, NONE where there is none; a state is its numbers as
little-endian float32, and no bytes where it is still what it is before any token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unrolled_server.types import Checkpoint

NONE = -1
"""Stands for a token that there is not."""


def tokens_of(past: Checkpoint) -> tuple[int, int]:
    """Pending and previous token, to be packed."""
    return (
        NONE if past.pending is None else past.pending,
        NONE if past.previous is None else past.previous,
    )


def state_of(past: Checkpoint) -> bytes:
    """The state's bytes."""
    return b"" if past.state is None else past.state.astype("<f4", copy=False).tobytes()


def checkpoint(state: bytes, tokens: Sequence[int], position: int, partial: bytes) -> Checkpoint:
    """What these parts are of; its state is a view of them. Raises ValueError.

    tokens: the pending and the previous one.
    """
    pending, previous = (None if token == NONE else token for token in tokens)
    numbers = np.frombuffer(state, "<f4") if state else None
    return Checkpoint(numbers, pending, position, partial, previous)

"""What all layouts of sessions have in common: how they write tokens, texts and states.

A token is a signed number of 32 bits, NO_TOKEN where there is none. A text is behind its length in
two bytes. A state is its numbers as float32, and no bytes where it is still what it is before any
token. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from unrolled_server.types import Past

NO_TOKEN = -1
"""Stands for a token that there is not."""
LENGTH = struct.Struct("<H")


def token_numbers(past: Past) -> tuple[int, int]:
    """Pending and previous token, to be packed."""
    return (
        NO_TOKEN if past.pending is None else past.pending,
        NO_TOKEN if past.previous is None else past.previous,
    )


def token_of(number: int) -> int | None:
    """The token that a number stands for."""
    return None if number == NO_TOKEN else number


def packed_text(text: bytes) -> bytes:
    """A text, behind its length."""
    return LENGTH.pack(len(text)) + text


def text_at(whole: bytes, at: int) -> tuple[bytes, int]:
    """The text that begins here, and where it ends. Raises struct.error, ValueError."""
    (length,) = LENGTH.unpack_from(whole, at)
    start = at + LENGTH.size
    end = start + length
    if end > len(whole):
        raise ValueError("ends within a text")
    return whole[start:end], end


def state_of(past: Past) -> bytes:
    """The state's bytes."""
    return b"" if past.state is None else past.state.astype("<f4", copy=False).tobytes()


def past_of(state: bytes, tokens: Sequence[int], position: int, partial: bytes) -> Past:
    """What these parts are of; its state is a view of them. Raises ValueError.

    tokens: the numbers of the pending and the previous one.
    """
    pending, previous = map(token_of, tokens)
    numbers = np.frombuffer(state, "<f4") if state else None
    return Past(numbers, pending, position, partial, previous)

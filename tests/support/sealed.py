"""Keys, and snapshots written by hand: authentic ones that no server would make."""

from __future__ import annotations

import base64
import math
import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

SECRETS = {name: name.encode() * 32 for name in ("a", "b", "c")}
"""Keys by their ids."""


def key_file(path: Path, *ids: str) -> Path:
    """Write a file of keys that nobody else may read."""
    lines = [f"{name} {base64.b64encode(SECRETS[name]).decode()}\n" for name in ids]
    path.write_text("".join(lines))
    path.chmod(0o600)
    return path


@dataclass(frozen=True)
class Forged:
    """What a snapshot says."""

    model: str
    fingerprint: str
    state: NDArray[np.float32] | None = None
    tenant: str = "default"
    expires: float = math.inf
    seed: int = 0
    position: int = 3
    pending: int = 1
    previous: int = -1
    partial: bytes = b""

    def body(self) -> bytes:
        """As the server's documentation says."""
        written = bytes.fromhex(self.fingerprint)
        written += struct.pack("<d", self.expires)
        written += struct.pack("<Qq", self.seed, self.position)
        written += struct.pack("<ii", self.pending, self.previous)
        for text in (self.tenant.encode(), self.model.encode(), self.partial):
            written += struct.pack("<H", len(text)) + text
        return written if self.state is None else written + self.state.astype("<f4").tobytes()

    def sealed(self, key: str = "a") -> bytes:
        """Sealed with one of SECRETS."""
        return sealed_by_hand(b"unrolled snapshot 1\n", key, self.body())


def sealed_by_hand(form: bytes, key: str, body: bytes) -> bytes:
    """A body, sealed with one of SECRETS."""
    header, nonce = form + bytes([len(key)]) + key.encode(), os.urandom(12)
    return header + nonce + AESGCM(SECRETS[key]).encrypt(nonce, body, header)


def opened_by_hand(form: bytes, message: bytes) -> bytes:
    """The body of what was sealed with one of SECRETS."""
    length = message[len(form)]
    header, rest = message[: len(form) + 1 + length], message[len(form) + 1 + length :]
    key = header[len(form) + 1 :].decode()
    return AESGCM(SECRETS[key]).decrypt(rest[:12], rest[12:], header)


def mutations(originals: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Every bit flipped and every end cut off, then damage at random, without end."""
    first = originals[0]
    for bit in range(8 * len(first)):
        yield flipped(first, bit)
    yield from (first[:length] for length in range(len(first)))
    dice = random.Random(seed)
    while True:
        one, other = dice.choice(originals), dice.choice(originals)
        start, end = sorted(dice.choices(range(len(one) + 1), k=2))
        noise = dice.randbytes(dice.randint(1, 9))
        damaged = (
            flipped(flipped(one, dice.randrange(8 * len(one))), dice.randrange(8 * len(one))),
            one[:start] + noise + one[start + len(noise) :],
            one[:start] + noise + one[start:],
            one[:start] + one[end:],
            one[:start] + other[start:],
            one[:start] + one[start:end][::-1] + one[end:],
            one + noise,
        )
        yield from (mutant for mutant in damaged if mutant not in originals)


def flipped(message: bytes, bit: int) -> bytes:
    number = int.from_bytes(message) ^ 1 << bit
    return number.to_bytes(len(message))

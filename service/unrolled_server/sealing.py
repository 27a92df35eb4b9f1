"""Bytes that only holders of a key can make or read: AES-256-GCM (NIST SP 800-38D).

A sealed message is, in this order:

| bytes | |
|---|---|
| any | its format, which says what the body is |
| 1 | length of the key's id |
| 1 to 32 | id of the key, ASCII |
| 12 | nonce, random |
| rest | the body, encrypted, and a tag of 16 bytes |

What comes before the nonce is in the clear, and authenticated together with the body. Random
nonces allow 2^32 messages a key.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from unrolled_server.files import NamedFile, Recipe

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_ID = re.compile(rb"[A-Za-z0-9._-]{1,32}")
OVERHEAD = 1 + 32 + NONCE_BYTES + 16
"""Bytes that sealing adds to format and body at most."""


class BrokenSeal(Exception):
    """The message was not sealed with one of the keys, or not like this."""


@dataclass(frozen=True)
class Key:
    """A key and the name it goes by."""

    id: bytes
    """As KEY_ID."""
    secret: bytes = field(repr=False)
    """[KEY_BYTES]"""


class Sealer:
    """Seals with the first of its keys, opens with all."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._id = keys[0].id
        self._ciphers = {key.id: AESGCM(key.secret) for key in keys}
        # Opens nothing: it makes an unknown key cost as much work as a known one.
        self._decoy = AESGCM(os.urandom(KEY_BYTES))

    def seal(self, form: bytes, body: bytes) -> bytes:
        """A sealed message of the format `form`."""
        header = form + bytes([len(self._id)]) + self._id
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + self._ciphers[self._id].encrypt(nonce, body, header)

    def open(self, form: bytes, message: bytes) -> bytes:
        """The body of a message of the format `form`. Raises BrokenSeal."""
        start = len(form) + 1
        nonce_at = start + int.from_bytes(message[len(form) : start])
        box_at = nonce_at + NONCE_BYTES
        header, nonce, box = message[:nonce_at], message[nonce_at:box_at], message[box_at:]
        if not header.startswith(form) or len(nonce) != NONCE_BYTES:
            raise BrokenSeal
        cipher = self._ciphers.get(header[start:], self._decoy)
        try:
            return cipher.decrypt(nonce, box, header)
        except InvalidTag:
            raise BrokenSeal from None


def sealer_recipe(path: Path) -> Recipe[Sealer]:
    """How a Sealer is made of the file of --seal-key-file.

    Lines of `KEYID BASE64`, 32 bytes each; `#` begins a comment. A file that users beyond owner and
    group may read or change is refused.
    """
    file = NamedFile("--seal-key-file", path, is_secret=True)

    def make(contents: Sequence[bytes]) -> Sealer:
        keys: dict[bytes, Key] = {}
        for number, line in enumerate(contents[0].splitlines(), 1):
            try:
                _add(line, keys)
            except ValueError as error:
                raise file.error(f"line {number}: {error}") from None
        if not keys:
            raise file.error("holds no key: KEYID BASE64 on a line")
        return Sealer(list(keys.values()))

    return Recipe("seal_keys", [file], make)


def _add(line: bytes, keys: dict[bytes, Key]) -> None:
    """Add the key of a line, if it has one. Raises ValueError, which never quotes a secret."""
    match line.partition(b"#")[0].split():
        case []:
            return
        case [key_id, encoded]:
            key = Key(key_id, _secret(encoded))
        case words:
            raise ValueError(f"KEYID BASE64 are two words, not {len(words)}")
    if not KEY_ID.fullmatch(key.id):
        raise ValueError("a key's id is 1 to 32 ASCII letters, digits, dots, hyphens, underscores")
    if key.id in keys:
        raise ValueError(f"a second key with the id {key.id.decode()}")
    if key.secret in (known.secret for known in keys.values()):
        raise ValueError(f"{key.id.decode()} is the same key as one before it")
    keys[key.id] = key


def _secret(encoded: bytes) -> bytes:
    try:
        secret = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError("the key is not base64") from None
    if len(secret) != KEY_BYTES:
        raise ValueError(f"the key has {len(secret)} bytes, not {KEY_BYTES}")
    return secret

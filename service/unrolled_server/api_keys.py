"""API keys: which tenant a key belongs to. Only hashes of keys are kept, in the file too."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from unrolled_server.errors import Unauthenticated
from unrolled_server.files import NamedFile, Recipe

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASH = re.compile(r"[0-9a-fA-F]{64}")
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)


@dataclass(frozen=True)
class KnownKey:
    """The hash of a key, and whose it is."""

    tenant: str
    digest: bytes
    """SHA-256, 32 bytes. Keys are random, so that salt would add nothing."""


class ApiKeys:
    """The keys that are good now."""

    def __init__(self, entries: Iterable[KnownKey]) -> None:
        self._entries = {entry.digest: entry for entry in entries}
        # Good for nothing: an unknown key is compared like a known one.
        self._decoy = KnownKey("", bytes(32))

    def tenant(self, authorization: str) -> str:
        """Who has the key in this header; it may be empty.

        Raises Unauthenticated, in the same words whatever is wrong.
        """
        match = _BEARER.fullmatch(authorization)
        digest = sha256(match[1].encode() if match else b"").digest()
        entry = self._entries.get(digest, self._decoy)
        if not hmac.compare_digest(entry.digest, digest) or match is None:
            raise Unauthenticated
        return entry.tenant


def keys_recipe(path: Path) -> Recipe[ApiKeys]:
    """How ApiKeys are made of the file of --api-key-file."""
    file = NamedFile("--api-key-file", path)

    def make(contents: Sequence[bytes]) -> ApiKeys:
        return ApiKeys(_entries(file, contents[0]))

    return Recipe("api_keys", [file], make)


def _entries(file: NamedFile, content: bytes) -> list[KnownKey]:
    """Lines of `TENANT SHA256`; `#` begins a comment. Raises FileError."""
    entries: dict[bytes, KnownKey] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            entry = _entry(line.decode())
            if entry is not None and entry.digest in entries:
                raise ValueError("the same key as in a line before it")
        except ValueError as error:
            # A decoding error quotes the line, which may be a key.
            problem = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise file.error(f"line {number}: {problem}") from None
        if entry is not None:
            entries[entry.digest] = entry
    if not entries:
        raise file.error("holds no key: TENANT SHA256 on a line")
    return list(entries.values())


def _entry(line: str) -> KnownKey | None:
    """What a line says; None for one without a key. Raises ValueError, which quotes nothing."""
    words = line.partition("#")[0].split()
    if not words:
        return None
    if len(words) != 2:
        raise ValueError(f"TENANT SHA256 are two words, not {len(words)}")
    tenant, digest = words
    if not TENANT.fullmatch(tenant):
        raise ValueError("a tenant is 1 to 64 ASCII letters, digits, dots, hyphens, underscores")
    if not HASH.fullmatch(digest):
        raise ValueError("the SHA-256 of a key is 64 hexadecimal digits")
    return KnownKey(tenant, bytes.fromhex(digest))

"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unrolled_server.types import Tokens

LONGEST_SHOWN = 40
"""Characters of unknown text that an error repeats."""


class UnknownSymbol(Exception):
    """A part of a text that the vocabulary lacks."""

    def __init__(self, offset: int, text: str) -> None:
        # It becomes part of a status, which has to be short; a word may be as long as a prompt.
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        super().__init__(f"{shown!r} at offset {offset}")
        self.offset = offset
        """In characters (code points)."""
        self.text = shown


class Vocabulary(Protocol):
    """The tokens of a model.

    What a token's text is may depend on what precedes it: a word is joined to the one before,
    and a text does not begin with the space that would join it.
    """

    size: int
    start_token: int | None
    end_tokens: frozenset[int]
    longest_token: int
    """Bytes of the longest token, as `token` gives it."""
    whole_characters: bool
    """Whether every token's text is always the same, and valid UTF-8 by itself."""

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        """Token ids of a text that follows `previous`, as in `piece`; raises UnknownSymbol."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens that are whole characters."""

    def token(self, index: int) -> bytes:
        """Bytes of one token by itself."""

    def piece(self, previous: int | None, token: int) -> bytes:
        """What `token` adds to a text; `previous` is the newest before it that shows."""

    def newest(self, previous: int | None, token: int) -> int | None:
        """What `previous` is after `token`: `token`, unless it leaves no trace in the text."""


class CharacterVocabulary:
    """A token per character; an unknown one becomes the unknown token, where there is one."""

    def __init__(
        self,
        characters: Sequence[bytes],
        start_token: int | None,
        end_tokens: Sequence[int],
        unknown_token: int | None,
    ) -> None:
        self.size = len(characters)
        self.start_token = start_token
        self.end_tokens = frozenset(end_tokens)
        self.longest_token = max(map(len, characters))
        self.whole_characters = True
        self._bytes = tuple(characters)
        self._characters = tuple(character.decode() for character in characters)
        self._unknown = unknown_token
        points = np.array([ord(character) for character in self._characters], np.uint32)
        self._ids = np.argsort(points).astype(np.int32)
        self._points = points[self._ids]

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(self._points, points)
        places[places == len(self._points)] = 0
        unknown = self._points[places] != points
        ids = self._ids[places]
        if unknown.any():
            self._replace(ids, unknown, text)
        return ids

    def _replace(self, ids: Tokens, unknown: NDArray[np.bool_], text: str) -> None:
        if self._unknown is None:
            offset = int(unknown.argmax())
            raise UnknownSymbol(offset, text[offset])
        ids[unknown] = self._unknown

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(self._characters.__getitem__, tokens))

    def token(self, index: int) -> bytes:
        return self._bytes[index]

    def piece(self, previous: int | None, token: int) -> bytes:
        return self._bytes[token]

    def newest(self, previous: int | None, token: int) -> int | None:
        return token

"""Vocabularies whose manifest lists every token, but for those of single characters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unrolled_server.types import Tokens
from unrolled_server.vocabulary import UnknownSymbol

LINE_END = "\n"


class _ListedVocabulary:
    """What vocabularies have in common whose tokens' bytes are listed."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        start_token: int | None,
        end_tokens: Sequence[int],
        unknown_token: int | None,
    ) -> None:
        self.size = len(tokens)
        self.start_token = start_token
        self.end_tokens = frozenset(end_tokens)
        self.longest_token = max(map(len, tokens))
        self._tokens = tuple(tokens)
        self._unknown = unknown_token

    def token(self, index: int) -> bytes:
        return self._tokens[index]

    def piece(self, previous: int | None, token: int) -> bytes:
        return self._tokens[token]

    def newest(self, previous: int | None, token: int) -> int | None:
        return token

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._tokens.__getitem__, tokens)).decode()

    def _known(self, token: int | None, offset: int, text: str) -> int:
        """`token`, or what replaces text that has none."""
        if token is None:
            token = self._unknown
        if token is None:
            raise UnknownSymbol(offset, text)
        return token


class GroupVocabulary(_ListedVocabulary):
    """A token per character or group of characters: the longest that the text goes on with.

    A character with which no token begins becomes the unknown token, where there is one.
    """

    whole_characters = True

    def __init__(
        self,
        groups: Sequence[bytes],
        start_token: int | None,
        end_tokens: Sequence[int],
        unknown_token: int | None,
    ) -> None:
        super().__init__(groups, start_token, end_tokens, unknown_token)
        self._ids = {group.decode(): index for index, group in enumerate(groups)}
        lengths: dict[str, set[int]] = defaultdict(set)
        for group in self._ids:
            if len(group) > 1:
                lengths[group[:2]].add(len(group))
        self._lengths = {pair: sorted(found, reverse=True) for pair, found in lengths.items()}
        """Of the groups that begin with two characters, the longest first."""

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        # One loop without calls, and most characters looked up twice: this takes Python's lock.
        ids, lengths = self._ids, self._lengths
        found, place = [], 0
        while place < len(text):
            for length in lengths.get(text[place : place + 2], ()):
                group = text[place : place + length]
                if group in ids:
                    break
            else:
                group = text[place]
            token = ids.get(group)
            found.append(self._known(None, place, group) if token is None else token)
            place += len(group)
        return np.array(found, np.int32)


class ByteVocabulary(_ListedVocabulary):
    """A token per byte of UTF-8; not every byte need have one.

    Tokens of several bytes are special ones, which no text becomes.
    """

    whole_characters = False

    def __init__(
        self,
        values: Sequence[bytes],
        start_token: int | None,
        end_tokens: Sequence[int],
        unknown_token: int | None,
    ) -> None:
        super().__init__(values, start_token, end_tokens, unknown_token)
        self._ids = np.full(256, -1 if unknown_token is None else unknown_token, np.int32)
        for index, value in enumerate(values):
            if len(value) == 1:
                self._ids[ord(value)] = index

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        data = utf8(text)
        ids: Tokens = self._ids[np.frombuffer(data, np.uint8)]
        if (ids < 0).any():
            # The bytes of one character precede an unknown one of the same character.
            offset = len(data[: int((ids < 0).argmax()) + 1].decode(errors="replace")) - 1
            raise UnknownSymbol(offset, text[offset])
        return ids


class WordVocabulary(_ListedVocabulary):
    """A token per word between white space, and perhaps one for the end of a line.

    A text of words has the joiner between two of them, and none around the end of a line.
    """

    whole_characters = False

    def __init__(
        self,
        words: Sequence[bytes],
        start_token: int | None,
        end_tokens: Sequence[int],
        unknown_token: int | None,
        joiner: str,
    ) -> None:
        super().__init__(words, start_token, end_tokens, unknown_token)
        self._ids = {word.decode(): index for index, word in enumerate(words)}
        self._joiner = joiner.encode()
        self._line_end = self._ids.get(LINE_END)
        self._parts = re.compile(r"\S+" if self._line_end is None else r"\n|\S+")

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        ids = [
            self._known(self._ids.get(part[0]), part.start(), part[0])
            for part in self._parts.finditer(text)
        ]
        return np.array(ids, np.int32)

    def piece(self, previous: int | None, token: int) -> bytes:
        joined = previous is not None and self._line_end not in (previous, token)
        return self._joiner + self._tokens[token] if joined else self._tokens[token]


def utf8(text: str) -> bytes:
    """The text's bytes. Raises UnknownSymbol at half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UnknownSymbol(error.start, text[error.start]) from error

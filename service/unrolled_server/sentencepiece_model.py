"""Vocabularies of a SentencePiece model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentencepiece import SentencePieceProcessor

from unrolled_server.listed_vocabularies import utf8
from unrolled_server.types import Tokens

_SPACE = "\u2581"
"""How a piece writes a space."""

_PREFIX = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}
"""ModelProtos of `normalizer_spec { add_dummy_prefix: ... }`: a message that follows another of
its type in the same bytes changes its fields."""


class SentencePieceVocabulary:
    """The pieces of a SentencePiece model, encoded without adding special tokens.

    Pieces, joined, are the library's own decoding of all tokens. Control tokens have no text.
    """

    whole_characters = False

    def __init__(self, content: bytes, start_token: int | None, end_tokens: Sequence[int]) -> None:
        """Raises ValueError where `content` is no SentencePiece model."""
        self._processor = _processor(content)
        self._continuing = _processor(content + _PREFIX[False])
        self._parted = _processor(content + _PREFIX[True])
        self.size = self._processor.get_piece_size()
        self.start_token = start_token
        self.end_tokens = frozenset(end_tokens)
        self._keeps_spaces = "a" + _SPACE * 2 + "b" in self._processor.normalize("a  b")
        self._pieces = [self._piece(index) for index in range(self.size)]
        lengths = (len(self.token(index)) for index in range(self.size))
        self.longest_token = max(lengths, default=0)

    def _piece(self, index: int) -> bytes:
        """Bytes of a piece that something precedes."""
        processor = self._processor
        if processor.is_control(index):
            return b""
        if processor.is_byte(index):
            return bytes([int(self._spelling(index)[1:-1], 16)])
        if processor.is_unknown(index):
            return self.decode([index]).encode()
        return self._spelling(index).replace(_SPACE, " ").encode()

    def _spelling(self, index: int) -> str:
        spelling: str = self._processor.id_to_piece(index)
        return spelling

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        utf8(text)
        return np.array(self._encoder(text, previous).encode(text), np.int32)

    def _encoder(self, text: str, previous: int | None) -> SentencePieceProcessor:
        if previous is None:
            return self._processor
        # Where leading spaces are removed, the prefix stands for the one that parts two texts.
        is_parted = text[:1].isspace() and not self._keeps_spaces
        return self._parted if is_parted else self._continuing

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._processor.decode(list(tokens))
        return text

    def token(self, index: int) -> bytes:
        return self._pieces[index] or self._spelling(index).encode()

    def piece(self, previous: int | None, token: int) -> bytes:
        if previous is None and not self._processor.is_byte(token):
            return self.decode([token]).encode()
        return self._pieces[token]

    def newest(self, previous: int | None, token: int) -> int | None:
        if self._processor.is_control(token):
            return previous
        # However many spaces a text begins with, none of them shows.
        unbegun = previous is None and not self._keeps_spaces and not self.piece(None, token)
        return None if unbegun else token


def _processor(content: bytes) -> SentencePieceProcessor:
    if not content:
        raise ValueError("the file is empty")
    try:
        return SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError(f"not a SentencePiece model ({error})") from error

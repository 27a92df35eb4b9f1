"""Texts of any length to tokens, a part at a time, for evaluation.

A part ends where the tokens of the text are surely those of its parts: in front of a character
or byte, of the beginning of a group, of a word. Tokenizers are given parts that end with a line,
and a line that is longer than a part is cut between words.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from unrolled.v1 import model_pb2

from unrolled_export.errors import TextError
from unrolled_export.reference import Tokens

PART = 1 << 13
"""Bytes read at a time."""

Encode = Callable[[str], list[int]]
"""Ids of a text. Raises _Unknown."""


class _Unknown(Exception):
    """Text that the vocabulary lacks, at an offset in characters."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


@dataclass(frozen=True)
class Part:
    """Some of a text."""

    ids: Tokens
    characters: int
    bytes: int
    """That were read for it; the last part has those of all white space behind it."""


def read_parts(
    path: Path, vocabulary: model_pb2.Vocabulary, files: Mapping[str, bytes]
) -> Iterator[Part]:
    """The tokens of a UTF-8 text; `files` are the model's own, by name.

    Raises TextError where the text is not UTF-8 or has a part that the vocabulary lacks.
    """
    encode, cut = _encoder(vocabulary, files)
    held, offset = "", 0
    for text, size, is_last in _texts(path):
        held += text
        end = len(held) if is_last else cut(held)
        try:
            ids = encode(held[:end])
        except _Unknown as error:
            raise TextError(
                f"{path}: {held[error.offset]!r} at character {offset + error.offset} is not in "
                f"the vocabulary of {vocabulary.size} tokens"
            ) from error
        yield Part(np.array(ids, np.int64), end, size)
        held, offset = held[end:], offset + end


def _texts(path: Path) -> Iterator[tuple[str, int, bool]]:
    """The file's text with the bytes that were read for it, and whether it is the last."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while True:
            content = file.read(PART)
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                place = file.tell() - len(content) - len(decoder.getstate()[0]) + error.start
                raise TextError(f"{path}: not UTF-8 at byte {max(0, place)}") from error
            yield text, len(content), not content
            if not content:
                return


def _encoder(
    vocabulary: model_pb2.Vocabulary, files: Mapping[str, bytes]
) -> tuple[Encode, Callable[[str], int]]:
    """How a vocabulary encodes, and where a text may be cut."""
    unknown = vocabulary.unknown_token if vocabulary.HasField("unknown_token") else None
    tokens = list(vocabulary.tokens)
    kinds = model_pb2.Vocabulary
    if vocabulary.kind == kinds.KIND_BYTE:
        return _bytes(tokens, unknown), len
    if vocabulary.kind == kinds.KIND_WORD:
        return _words(tokens, unknown), _between_words
    if vocabulary.kind == kinds.KIND_TOKENIZER:
        return _tokenizer(files["tokenizer.json"]), _between_lines
    if vocabulary.kind == kinds.KIND_SENTENCEPIECE:
        return _sentencepiece(files["tokenizer.model"]), _between_lines
    return _groups(tokens, unknown)


def _groups(tokens: list[bytes], unknown: int | None) -> tuple[Encode, Callable[[str], int]]:
    """The longest group of characters at every place."""
    ids = {token.decode(): index for index, token in enumerate(tokens)}
    longest = max(map(len, ids))
    # In an alternation the first that fits wins; a newline is a character like any other.
    groups = "|".join(re.escape(token) for token in sorted(ids, key=len, reverse=True))
    pattern = re.compile(f"{groups}|(?s:.)")

    def encode(text: str) -> list[int]:
        return [_known(ids.get(m[0], unknown), m.start()) for m in pattern.finditer(text)]

    def cut(text: str) -> int:
        """The end of the last group that more text could not make longer."""
        end = 0
        for match in pattern.finditer(text):
            if match.start() > len(text) - longest:
                break
            end = match.end()
        return end

    return encode, len if longest == 1 else cut


def _bytes(tokens: list[bytes], unknown: int | None) -> Encode:
    # Special tokens among the bytes are longer, and no text has them.
    ids = {token[0]: index for index, token in enumerate(tokens) if len(token) == 1}

    def encode(text: str) -> list[int]:
        data = text.encode()
        if unknown is None and not ids.keys() >= set(data):
            offset = next(k for k, c in enumerate(text) if not ids.keys() >= set(c.encode()))
            raise _Unknown(offset)
        return [ids.get(byte, unknown or 0) for byte in data]

    return encode


def _words(tokens: list[bytes], unknown: int | None) -> Encode:
    ids = {token.decode(): index for index, token in enumerate(tokens)}
    pattern = re.compile(r"\n|\S+" if "\n" in ids else r"\S+")

    def encode(text: str) -> list[int]:
        return [_known(ids.get(m[0], unknown), m.start()) for m in pattern.finditer(text)]

    return encode


def _known(token: int | None, offset: int) -> int:
    if token is None:
        raise _Unknown(offset)
    return token


def _tokenizer(content: bytes) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content.decode())
    # Settings of a training that saved them with its tokenizer.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _sentencepiece(content: bytes) -> Encode:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=content)
    return lambda text: list(processor.encode(text))


def _between_words(text: str) -> int:
    """In front of the last white space."""
    return max((text.rfind(space) for space in " \n\t"), default=0) if text.split() else 0


def _between_lines(text: str) -> int:
    """Behind the last line; in front of the last word of a line that has no end."""
    return text.rfind("\n") + 1 or max(0, text.rfind(" "))

"""Vocabularies: what the tokens of a model stand for, in id order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from unrolled_export.errors import VocabularyError

_ID = re.compile(r"[0-9]{1,9}")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}
"""How a command line or a line of text writes characters that it cannot hold."""

PADDING = "<pad>"
"""What id 0 stands for where ids are counted from 1."""
FILLER = "xxfake"
"""What fastai fills vocabularies with, up to a multiple of eight."""


class Kind(StrEnum):
    """What a token stands for."""

    CHARACTER = "character"
    """A character, or a group of them."""
    BYTE = "byte"
    WORD = "word"
    TOKENIZER = "tokenizer"
    """A piece, as a tokenizer.json defines it."""
    SENTENCEPIECE = "sentencepiece"
    """A piece, as a SentencePiece model defines it."""


_NOUNS = {
    Kind.CHARACTER: "characters",
    Kind.BYTE: "bytes",
    Kind.WORD: "words",
    Kind.TOKENIZER: "pieces of a tokenizer.json",
    Kind.SENTENCEPIECE: "pieces of a SentencePiece model",
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order, and those that mean something to the server."""

    kind: Kind
    spellings: tuple[str, ...]
    """As the training wrote them; bytes that are not UTF-8 are surrogate-escaped (PEP 383)."""
    tokens: tuple[bytes, ...] = ()
    """The text of every token; empty where a tokenizer defines it."""
    start: int | None = None
    end: tuple[int, ...] = ()
    """Ascending."""
    unknown: int | None = None
    joiner: str = ""
    """Between two words."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What has to lie beside the graphs, by name."""
    notes: tuple[str, ...] = ()
    """What was taken for granted, in short phrases."""

    @property
    def size(self) -> int:
        return len(self.spellings)

    def describe(self) -> str:
        """One line for the report."""
        start = "none" if self.start is None else self._shown(self.start)
        end = ", ".join(map(self._shown, self.end)) or "none"
        unknown = "" if self.unknown is None else f"; unknown token {self._shown(self.unknown)}"
        kind = _NOUNS[self.kind]
        return f"{self.size} tokens ({kind}); start token {start}; end tokens {end}{unknown}"

    def _shown(self, index: int) -> str:
        return repr(self.spellings[index])


def token_id(tokens: Sequence[str], role: str, text: str) -> int:
    """The id that `text` names: a token, one of the escapes \\n, \\t and \\r, or `#ID`."""
    token = ESCAPES.get(text, text)
    if token in tokens:
        return tokens.index(token)
    number = as_id(text[1:]) if text.startswith("#") else None
    if number is not None and number < len(tokens):
        return number
    raise VocabularyError(f"{role} {text!r}: not in the vocabulary of {len(tokens)} tokens")


def as_id(number: object) -> int | None:
    """The whole number that a value or key of a map is, None where it is none."""
    if isinstance(number, str):
        return int(number) if _ID.fullmatch(number) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def check_tokens(tokens: Sequence[str], origin: Path) -> None:
    """Refuse tokens of which two are the same, or one is nothing. Raises VocabularyError."""
    if not tokens:
        raise VocabularyError(f"{origin}: the vocabulary is empty")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token:
            raise VocabularyError(f"{origin}: token {index} is empty")
        if token in ids and token != FILLER:
            raise VocabularyError(f"{origin}: tokens {ids[token]} and {index} are both {token!r}")
        ids[token] = index

"""Vocabularies of a tokenizer.json or a SentencePiece model, which are copied as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unrolled_export.errors import VocabularyError
from unrolled_export.vocabulary import Kind, Vocabulary, token_id

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
"""Where the server looks for them."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that was read and found to be whole."""

    kind: Kind
    name: str
    """Of its copy beside the graphs."""
    content: bytes
    spellings: tuple[str, ...]
    """Of its pieces, in id order."""
    unknown: int | None


def tokenizer_vocabulary(
    tokenizer: TokenizerFile,
    origin: Path,
    start: str | None = None,
    end: Sequence[str] = (),
    *,
    kind: Kind | None = None,
    unknown: str | None = None,
) -> Vocabulary:
    """Look up the tokens that mean something, given as spelled by the tokenizer or `#ID`.

    Raises VocabularyError, also where a setting says what only the tokenizer decides.
    """
    for key, value in {"vocabulary": kind, "unknown_token": unknown}.items():
        if value is not None:
            raise VocabularyError(f"--set {key}={value}: {origin} is a tokenizer, which decides it")
    spellings = tokenizer.spellings
    return Vocabulary(
        tokenizer.kind,
        spellings,
        start=None if start is None else token_id(spellings, "start token", start),
        end=tuple(sorted({token_id(spellings, "end token", text) for text in end})),
        unknown=tokenizer.unknown,
        files={tokenizer.name: tokenizer.content},
    )


def is_tokenizer(value: object) -> bool:
    """Whether a JSON value is that of a tokenizer.json."""
    return isinstance(value, dict) and "version" in value and isinstance(value.get("model"), dict)


def read_tokenizer(content: bytes, path: Path) -> TokenizerFile:
    """Read the `content` of a tokenizer.json. Raises VocabularyError."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise _missing(path, error) from error
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except BaseException as error:
        # The library raises plain exceptions, and one of its own for an assertion that fails.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise VocabularyError(f"{path}: not a tokenizer.json ({error})") from error
        raise
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    spellings = []
    for index in range(size):
        spelling = tokenizer.id_to_token(index)
        if spelling is None:
            raise VocabularyError(f"{path}: no token of id {index}, though {size} tokens")
        spellings.append(spelling)
    unknown = _unknown_token(content, spellings)
    return TokenizerFile(Kind.TOKENIZER, TOKENIZER_FILE, content, tuple(spellings), unknown)


def _unknown_token(content: bytes, spellings: Sequence[str]) -> int | None:
    model = json.loads(content)["model"]
    if model.get("type") == "Unigram":
        unknown = model.get("unk_id")
        return unknown if unknown in range(len(spellings)) else None
    spelling = model.get("unk_token")
    return spellings.index(spelling) if spelling in spellings else None


def is_sentencepiece(content: bytes) -> bool:
    """Whether the file begins with a first piece as SentencePiece writes it: a message (field 1)
    of a short text (field 1) and a score (field 2, four bytes)."""
    if len(content) < 4 or content[0] != 0x0A or content[2] != 0x0A:
        return False
    end = 4 + content[3]
    return content[end : end + 1] == b"\x15"


def read_sentencepiece(content: bytes, path: Path) -> TokenizerFile:
    """Read the `content` of a SentencePiece model. Raises VocabularyError."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise _missing(path, error) from error
    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise VocabularyError(f"{path}: not a SentencePiece model ({error})") from error
    spellings = tuple(map(processor.id_to_piece, range(processor.get_piece_size())))
    unknown = processor.unk_id()
    return TokenizerFile(Kind.SENTENCEPIECE, SENTENCEPIECE_FILE, content, spellings, unknown)


def _missing(path: Path, error: ModuleNotFoundError) -> VocabularyError:
    return VocabularyError(f"{path}: needs {error.name}: pip install 'unrolled[tokenizers]'")

"""What a list of tokens is a list of: bytes, characters or words, told by the tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unrolled_export.errors import SettingNeeded, VocabularyError
from unrolled_export.vocabulary import Kind

UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "xxunk", "<oov>", "<OOV>")
"""How token lists write the token for what they lack."""

_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|xx[a-z]+|UNK|PAD|EOS|BOS|SOS")
_GROUP = re.compile(r"\[[^\[\]\s]+\]|%\d\d|.{1,2}", re.DOTALL)
"""What is one symbol in chemical notations, and any two characters."""
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’.-][^\W\d_]+)*\.?")
_PIECE = re.compile(r"(?:##|\u0120|\u2581).+|.{2,}(?:</w>|@@)", re.DOTALL)
"""How the subword pieces of tokenizers are written."""
_SPELLED_BYTE = re.compile(r"\[(?P<decimal>12[89]|1[3-9]\d|2\d\d)\]|<0x(?P<hex>[0-9A-Fa-f]{2})>")
"""Bytes as torch-rnn writes those of 128 and more, and as SentencePiece writes any."""
_SPACED = re.compile(r"\S[ \t]|[ \t]\S")
_MANY = 1000
"""Tokens that are words without doubt, where most look like words."""


def kind_of(tokens: Sequence[str], origin: Path) -> Kind:
    """Raises SettingNeeded where the tokens may be words or groups of characters, and
    VocabularyError where they are pieces that no list defines."""
    if is_bytes(tokens):
        return Kind.BYTE
    ordinary = [token for token in tokens if not _is_special(token)]
    has_special = len(ordinary) < len(tokens)
    longer = [token for token in ordinary if len(token) > 1]
    if not longer:
        return Kind.CHARACTER
    _refuse_pieces(longer, origin)
    if _are_words(ordinary) and (has_special or len(ordinary) >= _MANY):
        return Kind.WORD
    if all(_GROUP.fullmatch(token) for token in longer):
        return Kind.CHARACTER
    raise _needed(tokens, longer, origin)


def _needed(tokens: Sequence[str], longer: Sequence[str], origin: Path) -> SettingNeeded:
    """Words are no choice where they would have white space in them."""
    spaced = [token for token in longer if has_space(token)]
    example = (spaced or longer)[0]
    what = "has white space in it, as groups of characters may and words may not"
    problem = f"token {tokens.index(example)} is {example!r}, which {what}"
    if not spaced:
        problem = f"token {tokens.index(example)} is {example!r}, a word or a group of characters"
    choices = (Kind.CHARACTER,) if spaced else (Kind.CHARACTER, Kind.WORD)
    return SettingNeeded(origin, problem, "vocabulary", choices)


def has_space(token: str) -> bool:
    """Whether there is a space or tab in a token beside something else."""
    return _SPACED.search(token) is not None


def is_bytes(tokens: Sequence[str]) -> bool:
    """Whether the tokens are single bytes, all of them or some that are no characters, beside
    special ones."""
    ordinary = [token for token in tokens if not _is_special(token)]
    values = byte_texts(ordinary)
    return values is not None and (len(set(values)) == 256 or not _are_latin(ordinary))


def byte_texts(tokens: Sequence[str]) -> list[bytes] | None:
    """The bytes that the tokens are, special ones their spelling; None where one is neither.

    Where all are characters up to U+00FF, each is the byte of its number.
    """
    are_latin = _are_latin([token for token in tokens if not _is_special(token)])
    texts = [_byte_text(token, are_latin) for token in tokens]
    found = [text for text in texts if text is not None]
    return found if len(found) == len(tokens) else None


def _is_special(token: str) -> bool:
    return _SPECIAL.fullmatch(token) is not None and _SPELLED_BYTE.fullmatch(token) is None


def _are_latin(tokens: Sequence[str]) -> bool:
    return all(len(token) == 1 and ord(token) < 256 for token in tokens)


def _byte_text(token: str, are_latin: bool) -> bytes | None:
    if _is_special(token):
        return token.encode()
    if are_latin:
        return token.encode("latin-1")
    if match := _SPELLED_BYTE.fullmatch(token):
        value = int(match["decimal"] or match["hex"], 10 if match["decimal"] else 16)
        return bytes([value]) if value < 256 else None
    data = token.encode(errors="surrogateescape") if _is_text_or_bytes(token) else b""
    return data if len(data) == 1 else None


def _is_text_or_bytes(token: str) -> bool:
    """Whether the only surrogates in `token` are escaped bytes (PEP 383)."""
    return not any("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in token)


def _refuse_pieces(tokens: Sequence[str], origin: Path) -> None:
    pieces = [token for token in tokens if _PIECE.fullmatch(token)]
    if len(pieces) > max(1, len(tokens) // 100):
        raise VocabularyError(
            f"{origin}: tokens such as {pieces[0]!r} are pieces of a tokenizer, which a list does "
            "not define: give its tokenizer.json or SentencePiece model"
        )


def _are_words(ordinary: Sequence[str]) -> bool:
    """Whether most are words, and none has white space in it but for the end of a line."""
    if any(len(token.split()) != 1 or token != token.strip() for token in {*ordinary} - {"\n"}):
        return False
    return 2 * sum(bool(_WORD.fullmatch(token)) for token in ordinary) >= len(ordinary)

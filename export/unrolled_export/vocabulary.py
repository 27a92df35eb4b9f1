"""Vocabularies: tokens in id order, from a checkpoint or a file beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unrolled_export.errors import VocabularyError

_ID = re.compile(r"[0-9]{1,9}")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of one character each, and those that mean something to the server."""

    tokens: tuple[str, ...]
    """In id order."""
    start: int | None = None
    end: tuple[int, ...] = ()
    """Ascending."""


def make_vocabulary(
    tokens: Sequence[str], origin: Path, start: str | None = None, end: Sequence[str] = ()
) -> Vocabulary:
    """Check the tokens and look up start and end token, given as text or `#ID`.

    Raises VocabularyError, naming the file the tokens come from.
    """
    _check_tokens(tokens, origin)
    return Vocabulary(
        tuple(tokens),
        None if start is None else token_id(tokens, "start token", start),
        tuple(sorted({token_id(tokens, "end token", text) for text in end})),
    )


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Tokens in id order from a JSON list, a JSON map either way round, or lines of text.

    In lines of text, backslash and n, t or r stand for the character that they escape.
    Raises VocabularyError where the file is neither, or its ids are not 0, 1, 2 and so on.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: not UTF-8 at byte {error.start}") from error
    return _json_tokens(text, path) if path.suffix == ".json" else _lines(text)


def _lines(text: str) -> tuple[str, ...]:
    lines = text.removesuffix("\n").split("\n") if text else []
    if len(lines) > 1 and all(line.endswith("\r") for line in lines[:-1]):
        lines = [line.removesuffix("\r") for line in lines]
    return tuple(_ESCAPES.get(line, line) for line in lines)


def _json_tokens(text: str, path: Path) -> tuple[str, ...]:
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: not JSON ({error})") from error
    if isinstance(value, _Pairs):
        return _ordered(value, path)
    if not isinstance(value, list):
        raise VocabularyError(f"{path}: neither a list of tokens nor a map of tokens and ids")
    for index, token in enumerate(value):
        if not isinstance(token, str):
            raise VocabularyError(f"{path}: token {index} is not a string but {token!r}")
    return tuple(value)


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its repeated keys."""


def _ordered(pairs: _Pairs, path: Path) -> tuple[str, ...]:
    """The tokens of a map in id order, whichever of the two is the key."""
    tokens: dict[int, str] = {}
    for key, value in pairs:
        token, number = (value, key) if isinstance(value, str) else (key, value)
        index = _as_id(number)
        if index is None:
            raise VocabularyError(f"{path}: {key!r}: {value!r} is not a token and an id")
        if index in tokens:
            raise VocabularyError(f"{path}: two tokens of id {index}")
        tokens[index] = str(token)
    missing = next((index for index in range(len(tokens)) if index not in tokens), None)
    if missing is not None:
        raise VocabularyError(f"{path}: no token of id {missing}, though {len(tokens)} tokens")
    return tuple(tokens[index] for index in range(len(tokens)))


def _as_id(number: object) -> int | None:
    """The whole number that a JSON value or key is, None where it is none."""
    if isinstance(number, str):
        return int(number) if _ID.fullmatch(number) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _check_tokens(tokens: Sequence[str], origin: Path) -> None:
    if not tokens:
        raise VocabularyError(f"{origin}: the vocabulary is empty")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token:
            raise VocabularyError(f"{origin}: token {index} is empty")
        if len(token) > 1:
            raise VocabularyError(
                f"{origin}: token {index} is {token!r}: tokens of more than one character are "
                "not served by this release"
            )
        if "\ud800" <= token <= "\udfff":
            raise VocabularyError(f"{origin}: token {index} is half of a surrogate pair")
        if token in ids:
            raise VocabularyError(f"{origin}: tokens {ids[token]} and {index} are both {token!r}")
        ids[token] = index


def token_id(tokens: Sequence[str], role: str, text: str) -> int:
    """The id that `text` names: a token, one of the escapes \\n, \\t and \\r, or `#ID`."""
    token = _ESCAPES.get(text, text)
    if token in tokens:
        return tokens.index(token)
    number = _as_id(text[1:]) if text.startswith("#") else None
    if number is not None and number < len(tokens):
        return number
    raise VocabularyError(f"{role} {text!r}: not in the vocabulary of {len(tokens)} tokens")

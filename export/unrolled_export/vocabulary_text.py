"""Vocabularies in files of text: a token a line, with its id or without, or all in one text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unrolled_export.errors import VocabularyError
from unrolled_export.vocabulary import ESCAPES

FEWEST_CHARACTERS = 10
"""Of a vocabulary in one text: shorter texts are words."""
_TOKEN_AND_ID = re.compile(r"(.*)\t([0-9]{1,9})", re.DOTALL)
_COLUMNS = re.compile(r"\S+(?:[ \t]+|,)[0-9]+|[0-9]+(?:[ \t]+|,)\S+")
"""A token beside its count or id: of fairseq's dict.txt, of tables."""


def token_ids(text: str) -> list[tuple[str, int]] | None:
    """Tokens and ids where every line has one of each, a tab between them, and the ids are all of
    0, 1, 2 and so on, or of 1, 2, 3 and so on; None where this is another text."""
    matches = [_TOKEN_AND_ID.fullmatch(line) for line in _split(text)]
    pairs = [(_unescaped(match[1]), int(match[2])) for match in matches if match]
    ids = sorted(index for _, index in pairs)
    is_complete = bool(ids) and ids[0] < 2 and ids == list(range(ids[0], ids[0] + len(ids)))
    return pairs if is_complete and len(pairs) == len(matches) else None


def token_lines(text: str, path: Path, size: int | None) -> tuple[str, ...]:
    """The lines, in which backslash and n, t or r stand for the character that they escape; of a
    text of just `size` different characters these.

    Raises VocabularyError where most lines are tables' rows: nobody writes tokens like this.
    """
    if characters := _characters(text, size):
        return characters
    lines = _split(text)
    _check_is_no_table(lines, path)
    return tuple(map(_unescaped, lines))


def distinct_characters(text: str, size: int | None) -> tuple[str, ...]:
    """The characters of a text where they are `size` different ones, else none."""
    return tuple(text) if len(text) == size == len(set(text)) else ()


def _characters(text: str, size: int | None) -> tuple[str, ...]:
    """Without what ends a file: were it a token, it might as well have been the first one."""
    if size is None or size < FEWEST_CHARACTERS:
        return ()
    line = text.removesuffix("\n")
    return distinct_characters(line, size) or distinct_characters(line.removesuffix("\r"), size)


def _split(text: str) -> Sequence[str]:
    lines = text.removesuffix("\n").split("\n") if text else []
    if len(lines) > 1 and all(line.endswith("\r") for line in lines[:-1]):
        lines = [line.removesuffix("\r") for line in lines]
    return lines


def _unescaped(token: str) -> str:
    return ESCAPES.get(token, token)


def _check_is_no_table(lines: Sequence[str], path: Path) -> None:
    rows = [index for index, line in enumerate(lines) if _COLUMNS.fullmatch(line)]
    if 2 * len(rows) > len(lines) > 1:
        row = lines[rows[0]]
        what = "has white space in it" if len(row.split()) > 1 else "has two columns"
        raise VocabularyError(
            f"{path}: line {rows[0] + 1}: {row!r} {what}: a list is one token a line, without "
            "counts (or a token, a tab and its id, with no id missing)"
        )

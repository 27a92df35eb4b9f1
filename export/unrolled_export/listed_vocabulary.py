"""Vocabularies made of a list of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unrolled_export.errors import VocabularyError
from unrolled_export.vocabulary import ESCAPES, Kind, Vocabulary, check_tokens, token_id
from unrolled_export.vocabulary_kinds import UNKNOWN, byte_texts, has_space, kind_of

JOINER = " "
_LINE_END = "<eos>"
"""What ends a line in the corpora of PyTorch's word_language_model and its descendants."""
_UNKNOWN_WORDS = (*UNKNOWN, "UNK", "unk")


def listed_vocabulary(
    tokens: Sequence[str],
    origin: Path,
    start: str | None = None,
    end: Sequence[str] = (),
    *,
    kind: Kind | None = None,
    unknown: str | None = None,
) -> Vocabulary:
    """Check the tokens and look up those that mean something, given as text or `#ID`.

    Raises VocabularyError, or SettingNeeded where only `kind` can tell what the tokens are,
    naming the file they come from.
    """
    check_tokens(tokens, origin)
    found = kind or kind_of(tokens, origin)
    texts = _TEXTS[found](tokens, origin)
    joins = found is Kind.WORD
    replacement = _unknown(tokens, found) if unknown is None else unknown
    return Vocabulary(
        found,
        tuple(tokens),
        tuple(texts),
        None if start is None else _find(tokens, texts, "start token", start),
        tuple(sorted({_find(tokens, texts, "end token", text) for text in end})),
        None if replacement is None else _find(tokens, texts, "unknown token", replacement),
        joiner=JOINER if joins else "",
        notes=tuple(_notes(tokens, texts, found, told=kind is not None)),
    )


def _bytes(tokens: Sequence[str], origin: Path) -> list[bytes]:
    texts = byte_texts(tokens)
    if texts is None:
        raise VocabularyError(f"{origin}: not every token is a single byte")
    if len(set(texts)) < len(texts):
        raise VocabularyError(f"{origin}: two tokens are the same byte")
    return texts


def _characters(tokens: Sequence[str], origin: Path) -> list[bytes]:
    return [_encoded(index, token, origin) for index, token in enumerate(tokens)]


def _words(tokens: Sequence[str], origin: Path) -> list[bytes]:
    spaced = next((index for index, token in enumerate(tokens) if has_space(token)), None)
    if spaced is not None:
        raise VocabularyError(
            f"{origin}: token {spaced} is {tokens[spaced]!r}, but words have no white space in them"
        )
    texts = _characters(tokens, origin)
    if _LINE_END in tokens and "\n" not in tokens:
        texts[tokens.index(_LINE_END)] = b"\n"
    return texts


def _encoded(index: int, token: str, origin: Path) -> bytes:
    try:
        return token.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= token[error.start] <= "\udcff":
            problem = "has bytes that are not UTF-8, though not every token is a single byte"
        else:
            problem = "is half of a surrogate pair" if len(token) == 1 else "has half of one"
        raise VocabularyError(f"{origin}: token {index} {problem}") from error


_TEXTS: dict[Kind, Callable[[Sequence[str], Path], list[bytes]]] = {
    Kind.BYTE: _bytes,
    Kind.CHARACTER: _characters,
    Kind.WORD: _words,
}


def _find(tokens: Sequence[str], texts: Sequence[bytes], role: str, text: str) -> int:
    """The id of what is spelled `text`, or else stands for it in a text."""
    wanted = ESCAPES.get(text, text)
    content = wanted.encode(errors="surrogateescape")
    if wanted not in tokens and content in texts:
        return texts.index(content)
    return token_id(tokens, role, text)


def _unknown(tokens: Sequence[str], kind: Kind) -> str | None:
    """How the token is spelled that replaces what the others lack, where there is one."""
    spellings = {Kind.WORD: _UNKNOWN_WORDS, Kind.CHARACTER: UNKNOWN}.get(kind, ())
    return next((spelling for spelling in spellings if spelling in tokens), None)


def _notes(tokens: Sequence[str], texts: Sequence[bytes], kind: Kind, *, told: bool) -> list[str]:
    notes = []
    if not told and kind is Kind.WORD:
        notes.append("the tokens are words, between white space")
    if not told and kind is Kind.BYTE:
        notes.append("the tokens are bytes of UTF-8")
    if not told and kind is Kind.CHARACTER and any(len(token) > 1 for token in tokens):
        notes.append("the tokens are groups of characters: the longest that fits is taken")
    if kind is Kind.WORD and b"\n" in texts and "\n" not in tokens:
        notes.append(f"{_LINE_END} stands for the end of a line")
    return notes

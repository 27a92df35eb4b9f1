"""Files that hold a vocabulary, recognised by what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unrolled_export.errors import VocabularyError
from unrolled_export.numpy_vocabulary import is_numpy, read_texts
from unrolled_export.pickled_vocabulary import is_pickle, read_pickled
from unrolled_export.tokenizer_files import (
    TokenizerFile,
    is_sentencepiece,
    is_tokenizer,
    read_sentencepiece,
    read_tokenizer,
)
from unrolled_export.vocabulary import PADDING, as_id
from unrolled_export.vocabulary_text import distinct_characters, token_ids, token_lines

_NAMES = (
    *("itos", "idx_to_token", "id_to_token", "idx2word", "idx2char", "index_word", "idx_to_char"),
    *("stoi", "token_to_idx", "token_to_id", "word2idx", "char2idx", "word_index", "char_to_idx"),
    *("vocab", "vocabulary", "tokens", "chars", "dictionary"),
)
"""What lists and maps of tokens are called where they lie within another map."""
_DEEPEST = 4


class _Pairs(list[tuple[object, object]]):
    """A map with its repeated keys."""


def read_vocabulary(
    path: Path, size: int | None = None, *, allow_pickle: bool = False
) -> tuple[str, ...] | TokenizerFile:
    """Tokens in id order, or a tokenizer.

    Takes JSON, a pickle or a file of torch.save of a list, a map either way round, or a map that
    holds one of these under its usual name; an .npy file of texts; lines of text, of a token or of
    a token, a tab and its id; a text of `size` different characters, as such or in JSON; a
    tokenizer.json; a SentencePiece model. Ids go up from 0, or from 1 in a map for a model of
    `size` tokens: as many as the map has, or one more, which is padding.

    Raises VocabularyError where the file holds none of these, and PickleNeeded where only an
    object of a class holds it.
    """
    _check_is_file(path)
    content = path.read_bytes()
    if is_sentencepiece(content):
        return read_sentencepiece(content, path)
    if is_pickle(content):
        return _tokens(_paired(read_pickled(path, size, allow_pickle=allow_pickle)), path, size)
    if is_numpy(content):
        return read_texts(content, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: not UTF-8 at byte {error.start}") from error
    if path.suffix != ".json" and not _is_json(text):
        pairs = token_ids(text)
        return token_lines(text, path, size) if pairs is None else _ordered(pairs, path, size)
    value = _json(text, path)
    if isinstance(value, _Pairs) and is_tokenizer(_mapped(value)):
        return read_tokenizer(text.encode(), path)
    return _tokens(value, path, size)


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise VocabularyError(f"{path}: a folder, but a vocabulary is a file")
    if not path.is_file():
        raise VocabularyError(f"{path}: no such file")


def _is_json(text: str) -> bool:
    """Whether a text is a JSON list, map or string, rather than lines that begin like one."""
    if not text.lstrip().startswith(("[", "{", '"')):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(text: str, path: Path) -> object:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: not JSON ({error})") from error


def _mapped(pairs: _Pairs) -> dict[object, object]:
    """A map, and those directly in it."""
    return {key: dict(value) if isinstance(value, _Pairs) else value for key, value in pairs}


def _paired(value: object) -> object:
    """A map as its pairs, so that all maps are alike."""
    return _Pairs(value.items()) if isinstance(value, dict) else value


def _tokens(value: object, path: Path, size: int | None, depth: int = 0) -> tuple[str, ...]:
    if depth < _DEEPEST and (inner := _inner(value)) is not None:
        return _tokens(_paired(inner), path, size, depth + 1)
    if isinstance(value, _Pairs):
        return _ordered(value, path, size)
    if isinstance(value, str):
        return _characters(value, path, size)
    if not isinstance(value, list | tuple):
        raise VocabularyError(f"{path}: neither a list of tokens nor a map of tokens and ids")
    return _listed(value, path)


def _characters(text: str, path: Path, size: int | None) -> tuple[str, ...]:
    if found := distinct_characters(text, size):
        return found
    raise VocabularyError(
        f"{path}: a text of {len(text)} characters, {len(set(text))} of them different, where a "
        f"vocabulary in one text has each of its {size} once"
    )


def _inner(value: object) -> object | None:
    """The list or map in which a map, or a tuple of several, has its tokens."""
    if isinstance(value, _Pairs):
        found = dict(value)
        candidates = [found.get(name) for name in _NAMES]
    else:
        candidates = list(value) if isinstance(value, tuple) else []
    return next((item for item in candidates if isinstance(item, list | tuple | dict)), None)


def _listed(tokens: Sequence[object], path: Path) -> tuple[str, ...]:
    found = tuple(token for token in tokens if isinstance(token, str))
    if len(found) < len(tokens):
        index = next(i for i, token in enumerate(tokens) if not isinstance(token, str))
        raise VocabularyError(f"{path}: token {index} is not a string but {_short(tokens[index])}")
    return found


def _ordered(
    pairs: Sequence[tuple[object, object]], path: Path, size: int | None
) -> tuple[str, ...]:
    """The tokens of a map in id order, whichever of the two is the key."""
    tokens: dict[int, str] = {}
    for key, value in pairs:
        token, number = (value, key) if isinstance(value, str) else (key, value)
        index = as_id(number)
        if index is None or not isinstance(token, str):
            raise VocabularyError(
                f"{path}: {_short(key)}: {_short(value)} is not a token and an id"
            )
        if index in tokens:
            raise VocabularyError(f"{path}: two tokens of id {index}")
        tokens[index] = token
    if 0 not in tokens and size == len(tokens) + 1:
        # Keras counts from 1, and keeps 0 for padding.
        tokens[0] = PADDING
    elif 0 not in tokens and size == len(tokens):
        # Lua counts from 1.
        tokens = {index - 1: token for index, token in tokens.items()}
    missing = next((index for index in range(len(tokens)) if index not in tokens), None)
    if missing is not None:
        raise VocabularyError(f"{path}: no token of id {missing}, though {len(tokens)} tokens")
    return tuple(tokens[index] for index in range(len(tokens)))


def _short(value: object) -> str:
    """A value in an error's one line."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."

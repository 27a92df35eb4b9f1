"""Texts of any length to tokens, a part at a time, for evaluation.

A part ends where the tokens of the text are surely those of its parts: in front of a character
or byte, of the beginning of a group, of a word. What a tokenizer makes of a word may depend on
what is around it, and on whether it begins the text: it is given every part behind some of the
text before it, and the part ends where more text leaves its tokens as they are.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from unrolled.v1 import model_pb2

from unrolled_export.errors import TextError, VocabularyError
from unrolled_export.reference import Tokens
from unrolled_export.tokenizer_files import SENTENCEPIECE_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PART = 1 << 13
"""Bytes read at a time."""

CONTEXT = 1 << 8
"""Characters in front of a part that a tokenizer sees with it, at most."""
TRIES = 32

_SPACES = re.compile(r"(?<=\S)\s")

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

    Raises TextError where the text is not UTF-8 or has a part that the vocabulary lacks, and
    VocabularyError where the model's own file is no tokenizer.
    """
    encode, cut, context = _encoder(vocabulary, files)
    # `held` begins at character `offset` of the text, and with `known` characters of context.
    held, offset, known = "", 0, 0
    for text, size, is_last in _texts(path):
        held += text
        try:
            end = len(held) if is_last else max(known, cut(held))
            ids = encode(held[:end])[len(encode(held[:known])) :]
        except _Unknown as error:
            raise TextError(
                f"{path}: {held[error.offset]!r} at character {offset + error.offset} is not in "
                f"the vocabulary of {vocabulary.size} tokens"
            ) from error
        yield Part(np.array(ids, np.int64), end - known, size)
        begin = _beginning(held, end, context)
        held, offset, known = held[begin:], offset + begin, end - begin


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
) -> tuple[Encode, Callable[[str], int], int]:
    """How a vocabulary encodes, where a text may be cut, and how many characters a tokenizer has
    to see in front of a part."""
    unknown = vocabulary.unknown_token if vocabulary.HasField("unknown_token") else None
    tokens = list(vocabulary.tokens)
    kinds = model_pb2.Vocabulary
    if vocabulary.kind == kinds.KIND_BYTE:
        return _bytes(tokens, unknown), len, 0
    if vocabulary.kind == kinds.KIND_WORD:
        return _words(tokens, unknown), _between_words, 0
    if vocabulary.kind in _TOKENIZERS:
        name, make = _TOKENIZERS[vocabulary.kind]
        encode = make(files[name])
        return encode, lambda text: _between_pieces(encode, text), CONTEXT
    return *_groups(tokens, unknown), 0


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

    try:
        tokenizer = Tokenizer.from_str(content.decode())
    # The library raises nothing more precise.
    except Exception as error:
        raise VocabularyError(f"{TOKENIZER_FILE}: not a tokenizer ({error})") from error
    # Settings of a training that saved them with its tokenizer.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = _added(tokenizer)
    is_dropped = cache(lambda character: _is_dropped(tokenizer, character))

    def encode(text: str) -> list[int]:
        if any(map(is_dropped, set(text))):
            # An added token stands for its text as a whole.
            within = {place for match in added.finditer(text) for place in range(*match.span())}
            lost = (k for k, c in enumerate(text) if k not in within and is_dropped(c))
            if (offset := next(lost, None)) is not None:
                raise _Unknown(offset)
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        # As above, where no token stands for a word.
        except Exception as error:
            raise _Unknown(_first_refused(tokenizer, text)) from error

    return encode


def _added(tokenizer: Tokenizer) -> re.Pattern[str]:
    """What matches the text of any added token, the longest where several begin alike."""
    tokens = tokenizer.get_added_tokens_decoder().values()
    texts = {token.content for token in tokens if token.content and not token.single_word}
    alternatives = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, alternatives)) or r"(?!)")


def _is_dropped(tokenizer: Tokenizer, character: str) -> bool:
    """Whether an encoding leaves the character out, as a BPE without an unknown token does."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if getattr(model, "unk_token", "") is not None or not hasattr(model, "byte_fallback"):
        return False
    normal = character if normalizer is None else normalizer.normalize_str(character)
    words = [normal]
    if tokenizer.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
    made = sum(len(token.value) for word in words if word for token in model.tokenize(word))
    return bool(normal.strip()) and made < sum(map(len, words))


def _first_refused(tokenizer: Tokenizer, text: str) -> int:
    """Where the first word that cannot be encoded begins."""
    for word in re.finditer(r"\S+", text):
        try:
            tokenizer.encode(word[0], add_special_tokens=False)
        # As above.
        except Exception:
            return word.start()
    return 0


def _sentencepiece(content: bytes) -> Encode:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise VocabularyError(f"{SENTENCEPIECE_FILE}: not a model ({error})") from error
    return lambda text: list(processor.encode(text))


_TOKENIZERS: dict[int, tuple[str, Callable[[bytes], Encode]]] = {
    model_pb2.Vocabulary.KIND_TOKENIZER: (TOKENIZER_FILE, _tokenizer),
    model_pb2.Vocabulary.KIND_SENTENCEPIECE: (SENTENCEPIECE_FILE, _sentencepiece),
}


def _between_words(text: str) -> int:
    """In front of the last white space."""
    return max((text.rfind(space) for space in " \n\t"), default=0) if text.split() else 0


def _between_pieces(encode: Encode, text: str) -> int:
    """The last place in front of which the tokens are those of more text as well; 0 where a few
    tries find none. Behind the context, between words, or in one long word anywhere."""
    # The last word may be half of one, which some tokenizers refuse.
    *places, end = [0, *(match.start() for match in _SPACES.finditer(text, CONTEXT + 1))]
    if len(places) < 2 and len(text) > 2 * CONTEXT:
        places, end = list(range(CONTEXT + 1, len(text) - CONTEXT)), len(text)
    whole = encode(text[:end])
    for place in reversed(places[-TRIES:]):
        before = encode(text[:place])
        if whole[: len(before)] == before:
            return place
    return 0


def _beginning(text: str, end: int, context: int) -> int:
    """Of the context in front of `end`: that of a word, where there is one."""
    begin = max(0, end - context)
    word = _SPACES.search(text, begin, end) if begin else None
    return word.start() if word else begin

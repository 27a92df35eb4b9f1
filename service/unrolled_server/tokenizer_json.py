"""Vocabularies of a tokenizer.json, in the format of Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from unrolled_server.listed_vocabularies import utf8
from unrolled_server.types import Tokens
from unrolled_server.vocabulary import UnknownSymbol

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
"""How a Metaspace tokenizer writes a space."""
CACHED = 1 << 16


class TokenizerVocabulary:
    """The pieces of a tokenizer, encoded without adding special tokens.

    Pieces, joined, are the tokenizer's own decoding of all tokens. Special tokens have no text.
    """

    whole_characters = False

    def __init__(self, content: str, start_token: int | None, end_tokens: Sequence[int]) -> None:
        """Raises ValueError where `content` is no tokenizer."""
        specification = _parse(content)
        self._tokenizer = _tokenizer(content)
        self._continuing = self._tokenizer
        if (continuing := _without_prefix(specification)) != specification:
            self._continuing = _tokenizer(json.dumps(continuing))
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.start_token = start_token
        self.end_tokens = frozenset(end_tokens)
        self._spellings = _spellings(self._tokenizer, self.size)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self._added = _any_of(token.content for token in added.values() if not token.single_word)
        bytes_of = _byte_reading(specification)
        self._fixed = [bytes_of(spelling) for spelling in self._spellings]
        lengths = (len(self.token(index)) for index in range(self.size))
        self.longest_token = max(lengths, default=0)
        self._drops_unknown = _drops_unknown(specification)
        self._difference = lru_cache(CACHED)(self._uncached_difference)
        self._is_known = lru_cache(CACHED)(self._uncached_is_known)

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        utf8(text)
        tokenizer = self._tokenizer if previous is None else self._continuing
        if self._drops_unknown:
            self._check_known(text)
        try:
            # Unlike `encode`, it leaves Python's lock to others, and counts no offsets.
            (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return np.array(encoding.ids, np.int32)
        # The library raises nothing more precise, for text that no token stands for.
        except Exception as error:
            raise _first_refused(tokenizer, text) from error

    def _check_known(self, text: str) -> None:
        """Refuse a text with a character that no token has. Raises UnknownSymbol."""
        unknown = {character for character in set(text) if not self._is_known(character)}
        if not unknown:
            return
        # An added token stands for its text as a whole.
        within = {place for match in self._added.finditer(text) for place in range(*match.span())}
        for place, character in enumerate(text):
            if character in unknown and place not in within:
                raise UnknownSymbol(place, character)

    def _uncached_is_known(self, character: str) -> bool:
        """Whether a character gives a token, or nothing that a text would lack."""
        encoding = self._continuing.encode(character, add_special_tokens=False)
        return bool(encoding.ids) or not self._normalized(character).strip()

    def _normalized(self, text: str) -> str:
        normalizer = self._continuing.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens))

    def token(self, index: int) -> bytes:
        fixed = self._fixed[index]
        return self._spellings[index].replace(_SPACE, " ").encode() if fixed is None else fixed

    def piece(self, previous: int | None, token: int) -> bytes:
        if token in self._special:
            return b""
        fixed = self._fixed[token]
        return self._difference(previous, token) if fixed is None else fixed

    def newest(self, previous: int | None, token: int) -> int | None:
        return previous if token in self._special else token

    def _uncached_difference(self, previous: int | None, token: int) -> bytes:
        """What `token` adds to the decoding of `previous`."""
        if previous is None:
            return self._tokenizer.decode([token]).encode()
        before = self._tokenizer.decode([previous])
        return self._tokenizer.decode([previous, token]).removeprefix(before).encode()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """What matches any of these, the longest where several begin alike; of none, nothing."""
    alternatives = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, alternatives)) or r"(?!)")


def _parse(content: str) -> dict[str, Any]:
    specification = json.loads(content)
    if not isinstance(specification, dict):
        raise ValueError("not a JSON object")
    return specification


def _tokenizer(content: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
    except BaseException as error:
        # The library raises plain exceptions, and one of its own for an assertion that fails.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"not a tokenizer ({error})") from error
        raise
    # What a text is cut or filled up to belongs to training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _spellings(tokenizer: Tokenizer, size: int) -> list[str]:
    spellings = []
    for index in range(size):
        spelling = tokenizer.id_to_token(index)
        if spelling is None:
            raise ValueError(f"no token of id {index}, though {size} tokens")
        spellings.append(spelling)
    return spellings


def _without_prefix(value: Any) -> Any:
    """A specification that begins no text with a space: one for text that something precedes."""
    if isinstance(value, list):
        return [_without_prefix(item) for item in value if not _is_prefix(item)]
    if not isinstance(value, dict):
        return value
    changed = {key: None if _is_prefix(item) else item for key, item in value.items()}
    for key in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
        if key in changed:
            changed[key] = _without_prefix(changed[key])
    if changed.get("type") == "Metaspace":
        changed |= {"prepend_scheme": "never"}
        changed.pop("add_prefix_space", None)
    elif changed.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed


def _is_prefix(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Prepend"


def _steps(decoder: Any) -> Iterator[str]:
    """The types of a decoder's steps."""
    if isinstance(decoder, dict):
        yield decoder.get("type", "")
        for step in decoder.get("decoders") or ():
            yield from _steps(step)


def _byte_reading(specification: dict[str, Any]) -> Callable[[str], bytes | None]:
    """What gives the bytes of a token that has the same ones anywhere, and else None."""
    steps = set(_steps(specification.get("decoder")))
    if "ByteLevel" in steps:
        return _byte_level
    return _byte_fallback if "ByteFallback" in steps else lambda spelling: None


def _byte_fallback(spelling: str) -> bytes | None:
    match = _BYTE.fullmatch(spelling)
    return bytes.fromhex(match[1]) if match else None


def _byte_level(spelling: str) -> bytes:
    try:
        return bytes(map(_BYTE_LEVEL.__getitem__, spelling))
    except KeyError:
        # Only an added token is spelled otherwise: as its text.
        return spelling.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary: those of Latin-1 that show, for
    themselves; the others in order, from U+0100."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [value for value in range(256) if value not in shown]
    return {chr(value): value for value in shown} | {
        chr(0x100 + place): value for place, value in enumerate(hidden)
    }


_BYTE_LEVEL = _byte_level_alphabet()


def _drops_unknown(specification: dict[str, Any]) -> bool:
    """Whether text that no token stands for would be left out of an encoding in silence."""
    model = specification.get("model") or {}
    return model.get("type") == "BPE" and model.get("unk_token") is None


def _first_refused(tokenizer: Tokenizer, text: str) -> UnknownSymbol:
    """The first word of `text` that cannot be encoded."""
    for word in re.finditer(r"\S+", text):
        try:
            tokenizer.encode(word[0], add_special_tokens=False)
        # As above.
        except Exception:
            return UnknownSymbol(word.start(), word[0])
    return UnknownSymbol(0, text)

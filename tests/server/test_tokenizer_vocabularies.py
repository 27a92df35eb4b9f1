"""Vocabularies of tokenizers, against the libraries' own encoding and decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers_ import (
    LINES,
    SENTENCEPIECE,
    TOKENIZERS,
    processor,
    sentencepiece_model,
    tokenizer,
)
from support.turns import text_in_turns
from tokenizers import AddedToken, Tokenizer, models
from unrolled_server.sentencepiece_model import SentencePieceVocabulary
from unrolled_server.text import newest_shown, partial_after, text_stream
from unrolled_server.tokenizer_json import TokenizerVocabulary
from unrolled_server.vocabulary import UnknownSymbol, Vocabulary

some = settings(max_examples=60)
texts = st.text(st.sampled_from("thecatdogö中—,.'! \n"), max_size=30) | st.sampled_from(LINES)
choices = st.lists(st.integers(0, 2**16), max_size=8)
cuts = st.lists(st.integers(0, 40), max_size=4)
LOSSLESS = ("byte-level", "metaspace-never", "byte-fallback", "sp-spaces", "sp-no-prefix-spaces")
"""Tokenizers that keep every space."""
NAMES = (*TOKENIZERS, *(f"sp-{name}" for name in SENTENCEPIECE))


class Case:
    """A vocabulary, and what its library makes of ids and texts."""

    def __init__(self, name: str) -> None:
        self.vocabulary: Vocabulary
        self.decode: Callable[[list[int]], str]
        self.encode: Callable[[str], list[int]]
        if name.startswith("sp-"):
            model = sentencepiece_model(name.removeprefix("sp-"))
            pieces = processor(model)
            self.vocabulary = SentencePieceVocabulary(model, None, ())
            self.decode = lambda ids: str(pieces.decode(ids))
            self.encode = lambda text: list(pieces.encode(text))
            self.unstable = set(filter(pieces.is_byte, range(self.vocabulary.size)))
        else:
            whole = tokenizer(name)
            self.vocabulary = TokenizerVocabulary(whole.to_str(), None, ())
            self.decode = lambda ids: whole.decode(ids)
            self.encode = lambda text: whole.encode(text, add_special_tokens=False).ids
            spelled = map(whole.id_to_token, range(self.vocabulary.size))
            fallback = {i for i, token in enumerate(spelled) if str(token).startswith("<0x")}
            partial = set(range(2, self.vocabulary.size)) if "byte-level" in name else set()
            self.unstable = fallback | partial

    def ids(self, numbers: Sequence[int]) -> list[int]:
        """Any ids, but for those that may be parts of a character."""
        stable = sorted(set(range(self.vocabulary.size)) - self.unstable)
        return [stable[number % len(stable)] for number in numbers]


CASES = {name: Case(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@given(numbers=choices, edges=cuts)
@some
def test_pieces_are_the_library_s_decoding_of_any_tokens(
    name: str, numbers: list[int], edges: list[int]
) -> None:
    case = CASES[name]
    ids = case.ids(numbers)
    assert text_in_turns(case.vocabulary, ids, edges) == case.decode(ids)


@pytest.mark.parametrize("name", NAMES)
@given(text=texts, edges=cuts)
@some
def test_a_text_is_encoded_and_decoded_as_the_library_does(
    name: str, text: str, edges: list[int]
) -> None:
    """Also the characters that several tokens make up together, however turns part them."""
    case = CASES[name]
    ids = case.vocabulary.encode(text).tolist()
    assert ids == case.encode(text)
    assert text_in_turns(case.vocabulary, ids, edges) == case.decode(ids)


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text(st.sampled_from("the catson"), max_size=30), cut=st.integers(0, 30))
@some
def test_a_text_told_in_two_turns_is_the_text(name: str, text: str, cut: int) -> None:
    """The second one has no space in front of it but its own."""
    vocabulary = CASES[name].vocabulary
    first = vocabulary.encode(text[:cut])
    previous = newest_shown(vocabulary, None, first)
    ids = [*first.tolist(), *vocabulary.encode(text[cut:], previous).tolist()]
    assert text_in_turns(vocabulary, ids, ()) == text


@pytest.mark.parametrize(
    "name", ["metaspace", "metaspace-first", "unigram", "sp-bpe", "sp-unigram"]
)
@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("the cat", " sat", "the cat sat"),
        ("the c", "at sat", "the cat sat"),
        ("the", " cat sat", "the cat sat"),
    ],
)
def test_a_space_stands_where_it_was_told(name: str, first: str, second: str, text: str) -> None:
    vocabulary = CASES[name].vocabulary
    told = vocabulary.encode(first)
    more = vocabulary.encode(second, newest_shown(vocabulary, None, told))
    assert text_in_turns(vocabulary, [*told.tolist(), *more.tolist()], ()) == text


@cache
def kinds(name: str) -> tuple[Sequence[int], ...]:
    """Ids: any, those that may be part of a character, and those that may be no text at all."""
    vocabulary = CASES[name].vocabulary
    every = range(vocabulary.size)
    blank = [id_ for id_ in every if not vocabulary.piece(None, id_).strip()]
    return every, sorted(CASES[name].unstable) or every, blank or every


def telling(name: str, number: int) -> int:
    """An id of one of the kinds."""
    number, kind = divmod(number, 3)
    ids = kinds(name)[kind]
    return ids[number % len(ids)]


@pytest.mark.parametrize("name", NAMES)
@given(numbers=st.lists(st.integers(0, 2**10), max_size=4), cut=st.integers(0, 2))
@settings(max_examples=300)
def test_what_told_tokens_leave_unfinished(name: str, numbers: list[int], cut: int) -> None:
    """As if they had been drawn one by one; bytes of characters and special tokens as well."""
    vocabulary = CASES[name].vocabulary
    ids = [id_ for number in numbers if (id_ := telling(name, number)) not in vocabulary.end_tokens]
    partial: bytes = b""
    previous: int | None = None
    for part in (ids[:cut], ids[cut:]):
        stream = text_stream(vocabulary, (), partial, previous)
        stream.push(part)
        found = partial_after(vocabulary, partial, previous, np.array(part, np.int32))
        partial, previous = stream.partial, stream.previous
        assert found == partial


@pytest.mark.parametrize("name", NAMES)
def test_facts(name: str) -> None:
    vocabulary = CASES[name].vocabulary
    lengths = [len(vocabulary.token(index)) for index in range(vocabulary.size)]
    assert vocabulary.longest_token == max(lengths)
    assert min(lengths) > 0
    assert not vocabulary.whole_characters


def specification(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer(name).to_str())
    return content


def test_what_training_cut_or_filled_up_is_not() -> None:
    content = specification("metaspace")
    content["truncation"] = {
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    vocabulary = TokenizerVocabulary(json.dumps(content), None, ())
    expected = tokenizer("metaspace").encode(LINES[0], add_special_tokens=False).ids
    assert vocabulary.encode(LINES[0]).tolist() == expected


@pytest.mark.parametrize(
    ("text", "offset", "symbol"), [("aab ab€a", 6, "€"), ("€", 0, "€"), ("ab \ud800", 3, "\ud800")]
)
def test_text_that_a_tokenizer_would_drop(text: str, offset: int, symbol: str) -> None:
    model = models.BPE(vocab={"a": 0, "b": 1, " ": 2, "ab": 3}, merges=[("a", "b")])
    vocabulary = TokenizerVocabulary(Tokenizer(model).to_str(), None, ())
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary.encode(text)
    assert (caught.value.offset, caught.value.text) == (offset, symbol)
    assert vocabulary.encode("aab ").tolist() == [0, 3, 2]


def with_added_tokens() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("[X]"), AddedToken("[X]+")])
    return tokenizer


@pytest.mark.parametrize("text", ["ab", "a<|end|>b", "[X]a", "a[X]+[X]"])
def test_added_tokens_have_characters_that_no_other_has(text: str) -> None:
    tokenizer = with_added_tokens()
    vocabulary = TokenizerVocabulary(tokenizer.to_str(), None, ())
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary.encode(text).tolist() == expected


@pytest.mark.parametrize(("text", "offset"), [("a<|end|>b<", 9), ("X[X]", 0)])
def test_nor_has_any_other_outside_of_them(text: str, offset: int) -> None:
    vocabulary = TokenizerVocabulary(with_added_tokens().to_str(), None, ())
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary.encode(text)
    assert caught.value.offset == offset


def test_a_word_that_a_tokenizer_refuses() -> None:
    content = specification("word-level")
    content["model"]["unk_token"] = "none"
    vocabulary = TokenizerVocabulary(json.dumps(content), None, ())
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary.encode("the cat  yawns on")
    assert (caught.value.offset, caught.value.text) == (9, "yawns")


@pytest.mark.parametrize("name", ["sp-bpe", "metaspace"])
def test_half_of_a_surrogate_pair(name: str) -> None:
    with pytest.raises(UnknownSymbol) as caught:
        CASES[name].vocabulary.encode("the \udc00cat")
    assert (caught.value.offset, caught.value.text) == (4, "\udc00")


@pytest.mark.parametrize("content", ["", "{}", "[]", "3", '{"version": "1.0", "model": {}}'])
def test_what_is_no_tokenizer(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TokenizerVocabulary(content, None, ())


@pytest.mark.parametrize("content", [b"", b"\n", b"junk"])
def test_what_is_no_sentencepiece_model(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty|not a SentencePiece model"):
        SentencePieceVocabulary(content, None, ())

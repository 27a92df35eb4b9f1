"""Text to tokens and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from unrolled_server.vocabulary import CharacterVocabulary, UnknownSymbol

alphabets = st.lists(st.characters(exclude_categories=["Cs"]), unique=True, min_size=1, max_size=50)


def vocabulary_of(characters: list[str] | str, unknown: int | None = None) -> CharacterVocabulary:
    return CharacterVocabulary([c.encode() for c in characters], None, (), unknown)


@st.composite
def told(draw: st.DrawFn) -> tuple[list[str], str]:
    """An alphabet in any order, and a text in it."""
    characters = draw(alphabets)
    return characters, draw(st.text(st.sampled_from(characters), max_size=60))


@given(told())
@example((["𝄞", "a", "é", "\0", "\U0010ffff"], "a\0𝄞é\U0010ffff"))
@example((["a"], ""))
def test_text_becomes_its_characters_places_and_comes_back(case: tuple[list[str], str]) -> None:
    characters, text = case
    vocabulary = vocabulary_of(characters)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [characters.index(character) for character in text]
    assert vocabulary.decode(tokens.tolist()) == text
    assert b"".join(map(vocabulary.token, tokens.tolist())) == text.encode()


@given(told())
def test_facts(case: tuple[list[str], str]) -> None:
    characters, _ = case
    vocabulary = CharacterVocabulary([c.encode() for c in characters], 0, (0,), None)
    assert vocabulary.size == len(characters)
    assert vocabulary.longest_token == max(len(character.encode()) for character in characters)
    assert vocabulary.whole_characters
    assert vocabulary.start_token == 0
    assert vocabulary.end_tokens == {0}


@given(case=told(), outsider=st.characters(), rest=st.text(max_size=10))
@example(case=(["b", "𝄞"], "𝄞𝄞b"), outsider="a", rest="\ud800")
@example(case=(["b"], ""), outsider="\U0010ffff", rest="b")
def test_an_unknown_character_is_named_with_its_place_in_characters(
    case: tuple[list[str], str], outsider: str, rest: str
) -> None:
    characters, text = case
    assume(outsider not in characters)
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary_of(characters).encode(text + outsider + rest)
    assert caught.value.offset == len(text)
    assert caught.value.text == outsider


@given(case=told(), text=st.text(max_size=40))
def test_unknown_characters_become_the_unknown_token(
    case: tuple[list[str], str], text: str
) -> None:
    characters, known = case
    text += known
    unknown = len(characters) - 1
    tokens = vocabulary_of(characters, unknown).encode(text).tolist()
    assert tokens == [
        characters.index(character) if character in characters else unknown for character in text
    ]


def test_characters_beyond_the_basic_plane_count_once() -> None:
    with pytest.raises(UnknownSymbol, match="'é' at offset 3") as caught:
        vocabulary_of("a𝄞😀").encode("𝄞a😀éa")
    assert caught.value.offset == 3


@pytest.mark.parametrize("point", [0xD800, 0xDBFF, 0xDC00, 0xDFFF])
def test_a_lone_surrogate_is_unknown(point: int) -> None:
    surrogate = chr(point)
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary_of("ab𝄞?\ufffd").encode("𝄞b" + surrogate)
    assert (caught.value.offset, caught.value.text) == (2, surrogate)
    assert vocabulary_of("ab𝄞", 1).encode("a" + surrogate + "a").tolist() == [0, 1, 0]


def test_a_pair_of_surrogates_is_not_the_character_it_would_encode() -> None:
    with pytest.raises(UnknownSymbol) as caught:
        vocabulary_of("𝄞").encode("𝄞\ud834\udd1e")
    assert (caught.value.offset, caught.value.text) == (1, "\ud834")


def test_equal_looking_characters_are_different() -> None:
    """Text is not normalized: e with a combining accent is two characters."""
    vocabulary = vocabulary_of(["é", "e", "\u0301"])
    assert vocabulary.encode("é").tolist() == [0]
    assert vocabulary.encode("e\u0301").tolist() == [1, 2]

"""Groups of characters, bytes and words: text to tokens and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.turns import text_in_turns
from unrolled_server.listed_vocabularies import ByteVocabulary, GroupVocabulary, WordVocabulary
from unrolled_server.text import newest_shown, text_stream
from unrolled_server.types import FinishReason
from unrolled_server.vocabulary import CharacterVocabulary, UnknownSymbol

SELFIES = ("[C]", "[=C]", "[Branch1]", "[nop]", ".")
WORDS = ("\n", "<unk>", "the", "cat", "sat", "naïve", ",", "don't")
ALL_BYTES = tuple(bytes([value]) for value in range(256))
cuts = st.lists(st.integers(0, 60), max_size=5)


def groups(tokens: Sequence[str], unknown: int | None = None) -> GroupVocabulary:
    return GroupVocabulary([token.encode() for token in tokens], None, (), unknown)


def words(tokens: Sequence[str] = WORDS, unknown: int | None = None) -> WordVocabulary:
    return WordVocabulary([token.encode() for token in tokens], None, (), unknown, " ")


# Groups of characters


@given(st.lists(st.sampled_from(SELFIES), max_size=20))
def test_groups_become_their_places(symbols: list[str]) -> None:
    vocabulary = groups(SELFIES)
    ids = vocabulary.encode("".join(symbols))
    assert ids.dtype == np.int32
    assert ids.tolist() == [SELFIES.index(symbol) for symbol in symbols]
    assert vocabulary.decode(ids.tolist()) == "".join(symbols)


@given(
    tokens=st.lists(st.text("abé𝄞", min_size=1, max_size=4), unique=True, min_size=1, max_size=8),
    text=st.text("abé𝄞\ud800", max_size=20),
)
@example(tokens=["a", "ab", "abéb"], text="abéa")
@example(tokens=["ab", "abé", "é"], text="abéab")
def test_the_longest_group_is_taken(tokens: list[str], text: str) -> None:
    """As a regular expression takes the first of its alternatives that matches."""
    alternatives = sorted(tokens, key=len, reverse=True)
    known = "|".join(map(re.escape, alternatives))
    matches = list(re.finditer(f"{known}|.", text))
    expected = [tokens.index(match[0]) if match[0] in tokens else 0 for match in matches]
    assert groups(tokens, 0).encode(text).tolist() == expected
    unknown = next((match for match in matches if match[0] not in tokens), None)
    if unknown is None:
        assert groups(tokens).encode(text).tolist() == expected
        return
    with pytest.raises(UnknownSymbol) as caught:
        groups(tokens).encode(text)
    assert (caught.value.offset, caught.value.text) == (unknown.start(), unknown[0])


def test_what_no_group_begins_with() -> None:
    with pytest.raises(UnknownSymbol) as caught:
        groups(SELFIES).encode("[C].𝄞[C]")
    assert (caught.value.offset, caught.value.text) == (4, "𝄞")
    with pytest.raises(UnknownSymbol) as caught:
        groups(SELFIES).encode("[C][N]")
    assert (caught.value.offset, caught.value.text) == (3, "[")
    assert groups(["<unk>", "a", "bc"], 0).encode("axbcb").tolist() == [1, 0, 2, 0]


# Bytes


@given(text=st.text(max_size=30), order=st.permutations(range(256)), edges=cuts)
def test_bytes(text: str, order: list[int], edges: list[int]) -> None:
    vocabulary = ByteVocabulary([ALL_BYTES[value] for value in order], None, (), None)
    ids = vocabulary.encode(text).tolist()
    assert [order[index] for index in ids] == list(text.encode())
    assert text_in_turns(vocabulary, ids, edges) == text
    assert not vocabulary.whole_characters
    assert vocabulary.longest_token == 1


@pytest.mark.parametrize(("text", "offset"), [("aé€a", 2), ("€", 0), ("aaa\ud800", 3)])
def test_a_character_with_an_unknown_byte(text: str, offset: int) -> None:
    known = [b"a", b"\xc3", b"\xa9", b"\xe2", b"\x82"]
    with pytest.raises(UnknownSymbol) as caught:
        ByteVocabulary(known, None, (), None).encode(text)
    assert (caught.value.offset, caught.value.text) == (offset, text[offset])


def test_unknown_bytes_become_the_unknown_token() -> None:
    vocabulary = ByteVocabulary([b"?", b"a", b"\xc3"], None, (), 0)
    assert vocabulary.encode("aé").tolist() == [1, 2, 0]


def test_special_tokens_beside_bytes() -> None:
    vocabulary = ByteVocabulary([b"<s>", *ALL_BYTES], 0, (), None)
    assert vocabulary.encode("<s>é").tolist() == [1 + value for value in "<s>é".encode()]
    assert text_in_turns(vocabulary, [1 + 0xC3, 1 + 0xA9, 0], [1]) == "é<s>"


# Words


def lines(text: str) -> list[str]:
    """The words and line ends of a text, found line by line."""
    found: list[str] = []
    for number, line in enumerate(text.split("\n")):
        found += ["\n"] * (number > 0) + line.split()
    return found


def written(tokens: Sequence[str]) -> str:
    """Words as they are written: a space between two, none at the ends of a line."""
    return "".join(
        token if "\n" in (token, before) or before is None else f" {token}"
        for before, token in pairwise([None, *tokens])
        if token is not None
    )


word_texts = st.lists(st.sampled_from([*WORDS, "  ", " ", "\t", "\u2003", "\n "]), max_size=20).map(
    lambda parts: "".join(f"{part} " if part.strip() else part for part in parts)
)


@given(text=word_texts, edges=cuts)
@example(text="the  cat\n\n sat ", edges=[1, 2, 3])
def test_words(text: str, edges: list[int]) -> None:
    vocabulary = words()
    ids = vocabulary.encode(text).tolist()
    assert ids == [WORDS.index(word) for word in lines(text)]
    assert text_in_turns(vocabulary, ids, edges) == written(lines(text))
    assert vocabulary.encode(written(lines(text))).tolist() == ids


@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=20), told=st.integers(0, 20))
def test_a_word_is_joined_to_what_was_told(ids: list[int], told: int) -> None:
    """Prompt and completion make up the text of both."""
    vocabulary = words()
    prompt, drawn = ids[:told], ids[told:]
    previous = newest_shown(vocabulary, None, np.array(prompt, np.int32))
    stream = text_stream(vocabulary, (), b"", previous)
    stream.push(drawn)
    shown = stream.finish(keeps_partial=True)[0]
    assert written([WORDS[i] for i in prompt]) + shown == written([WORDS[i] for i in ids])


def test_a_line_end_is_white_space_where_it_is_no_token() -> None:
    vocabulary = words(["the", "cat"])
    assert vocabulary.encode("the\ncat\n").tolist() == [0, 1]
    assert text_in_turns(vocabulary, [0, 1], ()) == "the cat"


def test_unknown_words() -> None:
    with pytest.raises(UnknownSymbol) as caught:
        words().encode("the  cat\nyawns, the")
    assert (caught.value.offset, caught.value.text) == (9, "yawns,")
    assert words(unknown=1).encode("the yawns, cat").tolist() == [2, 1, 3]


def test_of_a_long_unknown_word_the_beginning_is_named() -> None:
    with pytest.raises(UnknownSymbol) as caught:
        words().encode("the " + "y" * 1_000_000)
    assert (caught.value.offset, caught.value.text) == (4, "y" * 40 + "...")


def test_a_word_by_itself_has_no_joiner() -> None:
    assert [words().token(index).decode() for index in range(len(WORDS))] == list(WORDS)


def test_a_stop_string_between_words() -> None:
    vocabulary = words()
    stream = text_stream(vocabulary, ("t s",), b"", WORDS.index("the"))
    assert stream.push([3, 4, 2]) == 2
    assert (stream.reason, stream.matched_stop) == (FinishReason.STOP, "t s")
    assert stream.finish(keeps_partial=True) == (" ca", 2)
    assert stream.previous == WORDS.index("sat")


def test_an_end_token_s_line_ends_and_does_not_show() -> None:
    vocabulary = WordVocabulary([word.encode() for word in WORDS], 0, [0], None, " ")
    stream = text_stream(vocabulary, (), b"", None)
    assert stream.push([2, 3, 0]) == 3
    assert stream.reason is FinishReason.END
    assert stream.finish(keeps_partial=True) == ("the cat", 3)
    following = text_stream(vocabulary, (), b"", stream.previous)
    following.push([2])
    assert following.finish(keeps_partial=True) == ("the", 1)


def test_whole_characters_are_shown_without_looking_back() -> None:
    for vocabulary in (groups(SELFIES), CharacterVocabulary([b"a"], None, (), None)):
        assert vocabulary.whole_characters
        assert vocabulary.piece(None, 0) == vocabulary.piece(0, 0) == vocabulary.token(0)

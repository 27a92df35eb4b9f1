"""Tokens to text, against an oracle that looks at the whole turn again after every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unrolled_server.text import HeldText, PlainText, TextStream, partial_after, text_stream
from unrolled_server.types import FinishReason, Tokens
from unrolled_server.vocabulary import CharacterVocabulary

UNFINISHED = frozenset(
    chr(point).encode("utf-8", "surrogatepass")[:length]
    for point in range(0x80, 0x110000, 0x40)
    for length in (1, 2, 3)
    if length < len(chr(point).encode("utf-8", "surrogatepass"))
)
"""All beginnings of encoded characters. Python waits for the rest of a surrogate as well."""


class ByteVocabulary:
    """Tokens of any bytes at all, pieces of characters and nothing included."""

    start_token: int | None = None
    whole_characters = False

    def __init__(self, tokens: Sequence[bytes], end_tokens: Sequence[int] = ()) -> None:
        self._tokens = tuple(tokens)
        self.size = len(tokens)
        self.end_tokens = frozenset(end_tokens)
        self.longest_token = max(map(len, tokens), default=0)

    def encode(self, text: str, previous: int | None = None) -> Tokens:
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        raise NotImplementedError

    def token(self, index: int) -> bytes:
        return self._tokens[index]

    def piece(self, previous: int | None, token: int) -> bytes:
        return self._tokens[token]

    def newest(self, previous: int | None, token: int) -> int | None:
        return token


def tail(data: bytes) -> bytes:
    """The unfinished character that `data` ends in."""
    found = [data[-length:] for length in (1, 2, 3) if data[-length:] in UNFINISHED]
    return found[0] if found else b""


def whole(data: bytes) -> str:
    """The characters of `data` whose bytes are all there."""
    return data[: len(data) - len(tail(data))].decode(errors="replace")


def held(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string begins with, short of all of it."""
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    return max((len(start) for start in beginnings if text.endswith(start)), default=0)


@dataclass(frozen=True)
class Case:
    """One turn's drawn tokens and what ends it."""

    tokens: tuple[bytes, ...]
    drawn: tuple[int, ...]
    stops: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    partial: bytes = b""

    def data(self, count: int) -> bytes:
        """The bytes of the first `count` drawn tokens, behind what an earlier turn left."""
        return self.partial + b"".join(self.tokens[token] for token in self.drawn[:count])

    def ending(self) -> tuple[FinishReason | None, int, str, tuple[str, ...]]:
        """Why the text ends, after how many tokens, its whole characters, and by which stops."""
        for count, token in enumerate(self.drawn, 1):
            if token in self.end_tokens:
                return FinishReason.END, count, whole(self.data(count - 1)), ("",)
            text = whole(self.data(count))
            places = [text.index(stop) for stop in self.stops if stop in text]
            if places:
                first = min(places)
                found = tuple(stop for stop in self.stops if text.startswith(stop, first))
                return FinishReason.STOP, count, text[:first], found
        return None, len(self.drawn), whole(self.data(len(self.drawn))), ("",)

    def stream(self) -> TextStream:
        """What is to be tested."""
        return text_stream(ByteVocabulary(self.tokens, self.end_tokens), self.stops, self.partial)


@st.composite
def cases(draw: st.DrawFn, tokens: st.SearchStrategy[bytes], partials: bool = False) -> Case:
    vocabulary = draw(st.lists(tokens, min_size=1, max_size=6))
    ids = st.integers(0, len(vocabulary) - 1)
    return Case(
        tuple(vocabulary),
        tuple(draw(st.lists(ids, max_size=40))),
        tuple(draw(st.lists(st.text("abé𝄞", min_size=1, max_size=5), max_size=3))),
        tuple(draw(st.lists(ids, max_size=1))),
        draw(st.sampled_from([b"", *sorted(UNFINISHED)])) if partials else b"",
    )


@st.composite
def turns(draw: st.DrawFn, tokens: st.SearchStrategy[bytes], partials: bool = False) -> Case:
    """Turns, most of which no end token ends at once."""
    case = draw(cases(tokens, partials))
    if draw(st.booleans()):
        return case
    return Case(case.tokens, case.drawn, case.stops, (), case.partial)


characters = st.text("abé𝄞", min_size=1, max_size=3).map(str.encode)
fragments = st.one_of(
    characters,
    st.sampled_from([b"", b"a", b"\xc3", b"\xa9", b"\xf0", b"\x9d\x84", b"\x9e", b"\xa9\xc3"]),
    st.binary(max_size=3),
)
batches = st.lists(st.integers(0, 9), min_size=1, max_size=10)


def split(drawn: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """`drawn` cut into parts of these sizes; the last one holds what is left."""
    parts, start = [], 0
    for size in sizes:
        parts.append(list(drawn[start : start + size]))
        start += size
    return [*parts, list(drawn[start:])]


@dataclass
class Shown:
    """What came out of a stream, all told."""

    text: str = ""
    tokens: int = 0

    def add(self, released: tuple[str, int]) -> None:
        self.text += released[0]
        self.tokens += released[1]


def check(case: Case, sizes: Sequence[int], keeps_partial: bool) -> TextStream:
    """Push a turn's tokens in parts of these sizes; everything that comes out is compared."""
    reason, count, text, stops = case.ending()
    stream, shown, pushed = case.stream(), Shown(), 0
    for part in split(case.drawn, sizes):
        taken = stream.push(part)
        pushed += taken
        shown.add(stream.take())
        if stream.reason is not None:
            break
        assert taken == len(part)
        certain = whole(case.data(pushed))
        assert shown.text == certain[: len(certain) - held(certain, case.stops)]
        assert stream.partial == tail(case.data(pushed))
        # No token comes out before its text, and none stays once all text is out.
        if shown.tokens:
            assert len(case.data(shown.tokens).decode(errors="replace")) <= len(shown.text)
        if shown.text == certain and not stream.partial:
            assert shown.tokens == pushed
    assert (stream.reason, pushed) == (reason, count)
    assert stream.matched_stop in stops
    shown.add(stream.finish(keeps_partial))
    if reason is not FinishReason.STOP and not keeps_partial:
        text = case.data(count - (reason is FinishReason.END)).decode(errors="replace")
    assert (shown.text, shown.tokens) == (text, count)
    assert stream.take() == ("", 0)
    return stream


@given(case=turns(characters), sizes=batches, keeps_partial=st.booleans())
@example(case=Case((b"a", b"b"), (0, 0, 0, 1), ("aab",)), sizes=[1] * 4, keeps_partial=False)
@example(case=Case((b"abab",), (0, 0), ("ba", "abab")), sizes=[2], keeps_partial=False)
@example(case=Case((b"aaab",), (0,), ("ab", "aab")), sizes=[1], keeps_partial=False)
def test_text_of_whole_characters(case: Case, sizes: list[int], keeps_partial: bool) -> None:
    check(case, sizes, keeps_partial)


@given(case=turns(fragments, True), sizes=batches, keeps_partial=st.booleans())
def test_text_of_any_bytes(case: Case, sizes: list[int], keeps_partial: bool) -> None:
    check(case, sizes, keeps_partial)


@given(case=turns(characters))
def test_a_token_comes_out_as_soon_as_all_of_its_text_does(case: Case) -> None:
    stream, shown = case.stream(), Shown()
    for pushed, token in enumerate(case.drawn, 1):
        stream.push([token])
        shown.add(stream.take())
        if stream.reason is FinishReason.END:
            break
        ends = [len(case.data(count).decode()) for count in range(1, pushed + 1)]
        assert shown.tokens == sum(end <= len(shown.text) for end in ends)
        if stream.reason is not None:
            break


@given(case=turns(characters), sizes=batches)
def test_how_tokens_are_parted_changes_nothing(case: Case, sizes: list[int]) -> None:
    at_once, one_by_one = case.stream(), case.stream()
    taken = at_once.push(case.drawn)
    for token in case.drawn[:taken]:
        assert one_by_one.push([token]) == 1
    assert at_once.reason is one_by_one.reason
    assert at_once.matched_stop == one_by_one.matched_stop
    assert at_once.finish(False) == one_by_one.finish(False)


@given(data=st.binary(max_size=24), cuts=st.lists(st.integers(0, 24), max_size=6))
@example(data="é€𝄞".encode(), cuts=[1, 3, 4, 6, 7, 8])
def test_a_session_s_turns_together_are_the_text_of_all_bytes(data: bytes, cuts: list[int]) -> None:
    """However bytes fall on turns: each carries on with what the one before left unfinished."""
    vocabulary = ByteVocabulary([bytes([value]) for value in range(256)])
    edges = [0, *sorted(cuts), len(data)]
    text, partial = "", b""
    for start, end in pairwise(edges):
        stream = text_stream(vocabulary, (), partial)
        stream.push(list(data[start:end]))
        text += stream.finish(keeps_partial=True)[0]
        partial = stream.partial
        assert text == whole(data[:end])
        assert partial == tail(data[:end])


@given(
    partial=st.sampled_from([b"", *sorted(UNFINISHED)]),
    tokens=st.lists(fragments | st.just(b""), max_size=9),
)
def test_what_told_tokens_leave_unfinished(partial: bytes, tokens: list[bytes]) -> None:
    vocabulary, told = ByteVocabulary(tokens), np.arange(len(tokens), dtype=np.int32)
    assert partial_after(vocabulary, partial, None, told) == tail(partial + b"".join(tokens))


@pytest.mark.parametrize("character", ["é", "€", "𝄞"])
def test_a_character_comes_with_its_last_byte(character: str) -> None:
    *first, last = character.encode()
    stream = text_stream(ByteVocabulary([bytes([value]) for value in range(256)]), (), b"")
    for value in first:
        assert stream.push([value]) == 1
        assert stream.take() == ("", 0)
    assert stream.partial == bytes(first)
    stream.push([last])
    assert stream.take() == (character, len(first) + 1)
    assert stream.partial == b""
    assert stream.finish(keeps_partial=False) == ("", 0)


@pytest.mark.parametrize("character", ["é", "€", "𝄞"])
def test_an_unfinished_character_at_the_end(character: str) -> None:
    """Without a session it is one U+FFFD; within one nothing, and the next turn brings it."""
    *first, last = character.encode()
    vocabulary = ByteVocabulary([bytes([value]) for value in range(256)])
    alone = text_stream(vocabulary, (), b"")
    alone.push([ord("x"), *first])
    assert alone.finish(keeps_partial=False) == ("x\ufffd", 1 + len(first))
    turn = text_stream(vocabulary, (), b"")
    turn.push([ord("x"), *first])
    assert turn.finish(keeps_partial=True) == ("x", 1 + len(first))
    following = text_stream(vocabulary, (), turn.partial)
    following.push([last])
    assert following.finish(keeps_partial=False) == (character, 1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\x80\x80", "\ufffd\ufffd"),
        (b"\xc3a", "\ufffda"),
        (b"\xe2\x82a", "\ufffda"),
        (b"\xc0\xaf", "\ufffd\ufffd"),
        (b"\xf5", "\ufffd"),
    ],
)
def test_invalid_bytes(data: bytes, text: str) -> None:
    """One U+FFFD for each longest beginning of a character, as the Unicode standard advises."""
    stream = text_stream(ByteVocabulary([bytes([value]) for value in range(256)]), (), b"")
    shown = Shown()
    for value in data:
        stream.push([value])
        shown.add(stream.take())
    assert (shown.text, shown.tokens) == (text, len(data))


def test_a_stop_string_split_within_its_characters() -> None:
    stream = text_stream(ByteVocabulary([bytes([value]) for value in range(256)]), ("é€",), b"")
    data = "xé€y".encode()
    assert stream.push(list(data)) == len(data) - 1
    assert (stream.reason, stream.matched_stop) == (FinishReason.STOP, "é€")
    assert stream.take() == ("x", 1)
    assert stream.finish(keeps_partial=True) == ("", 5)


@pytest.mark.parametrize("stops", [(), ("no",)])
def test_an_end_token_is_counted_and_not_shown(stops: tuple[str, ...]) -> None:
    vocabulary = CharacterVocabulary([b"n", b"x", b"\n", b"o"], None, [2, 3], None)
    stream = text_stream(vocabulary, stops, b"")
    assert stream.push([1, 0]) == 2
    assert stream.push([1, 0, 3, 2, 1]) == 3
    assert stream.reason is FinishReason.END
    assert stream.matched_stop == ""
    first, second = stream.take(), stream.finish(keeps_partial=False)
    assert first[0] + second[0] == "xnxn"
    assert first[1] + second[1] == 5


@given(
    ends=st.lists(st.integers(0, 4), max_size=2),
    drawn=st.lists(st.integers(0, 4), max_size=30),
    sizes=batches,
    keeps_partial=st.booleans(),
)
def test_plain_and_held_text_agree_where_both_apply(
    ends: list[int], drawn: list[int], sizes: list[int], keeps_partial: bool
) -> None:
    letters = [letter.encode() for letter in "aé€𝄞\n"]
    vocabulary = CharacterVocabulary(letters, None, ends, None)
    plain, careful = PlainText(vocabulary), HeldText(vocabulary, (), b"")
    streams: tuple[TextStream, ...] = (plain, careful)
    shown = [Shown(), Shown()]
    for part in split(drawn, sizes):
        assert plain.push(part) == careful.push(part)
        assert plain.reason is careful.reason
        for total, stream in zip(shown, streams, strict=True):
            total.add(stream.take())
        assert shown[0].text == shown[1].text
        if plain.reason is not None:
            break
        assert shown[0] == shown[1]
    for total, stream in zip(shown, streams, strict=True):
        total.add(stream.finish(keeps_partial))
    assert shown[0] == shown[1]
    assert plain.matched_stop == careful.matched_stop == ""
    assert plain.partial == careful.partial == b""

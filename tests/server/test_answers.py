"""The record of a session's answers, against a list; and what is joined for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unrolled.v1.completion_pb2 import Delta
from unrolled_server.answers import Answer, find, with_answer
from unrolled_server.errors import RequestIdReused
from unrolled_server.recording import Recording
from unrolled_server.types import Ending, FinishReason, Outcome, Past, RequestKey

LIMIT = 65536
"""Bytes that the contract lets a session's answers have together."""

OUTCOME = Outcome(Ending(FinishReason.LENGTH, "", 0, 1, Past(None, 0, 1)), "s", "m/1", 0)


@dataclass(frozen=True)
class Wanted:
    """An answer as the contract wants it."""

    key: RequestKey
    said: int
    outcome: int

    @property
    def size(self) -> int:
        return self.said + self.outcome


keys = st.builds(RequestKey, st.text(min_size=1, max_size=128), st.binary(min_size=32, max_size=32))
sizes = st.one_of(
    st.integers(0, 200),
    st.integers(0, LIMIT),
    st.sampled_from([LIMIT // 2, LIMIT - 100, LIMIT - 10, LIMIT - 9, LIMIT, LIMIT + 1]),
)
answers = st.builds(Wanted, keys, sizes, st.just(10))


def kept(given_: list[Wanted]) -> list[Wanted]:
    """Of answers with different ids, those on record; without a size where only the key is."""
    record, room = [], LIMIT
    for one in reversed(given_[-4:]):
        fits = one.size <= room
        record.append(one if fits else Wanted(one.key, 0, 0))
        if one.size <= LIMIT:
            # Older ones do not stay where a newer one had to go.
            room = room - one.size if fits else 0
    return record


@given(st.lists(answers, max_size=9, unique_by=lambda one: one.key.request_id))
def test_a_record_keeps_four_keys_and_the_newest_answers_that_fit(many: list[Wanted]) -> None:
    record = b""
    for one in many:
        record = with_answer(record, Answer(one.key, b"s" * one.said, b"o" * one.outcome))
    expected = {one.key.request_id: one for one in kept(many)}
    for one in many:
        found = find(record, one.key)
        there = expected.get(one.key.request_id)
        if there is None:
            assert found is None
            continue
        assert found == Answer(one.key, b"s" * there.said, b"o" * there.outcome)
        assert found.is_kept == (there.size > 0)
        with pytest.raises(RequestIdReused):
            find(record, RequestKey(one.key.request_id, bytes(32)[:-1] + b"!"))


def test_no_record_is_made_without_answers() -> None:
    assert find(b"", RequestKey("a", bytes(32))) is None


@pytest.mark.parametrize("tokens_a_part", [1, 16, 100_000])
@pytest.mark.parametrize("over", [0, 1])
def test_what_fits_is_kept_however_it_was_cut(tokens_a_part: int, over: int) -> None:
    key = RequestKey("a", bytes(32))
    empty = Recording(key).answer(OUTCOME)
    assert empty is not None
    # Two bytes a token, its character and its id; two headers of four.
    tokens = (LIMIT - empty.size - 8) // 2 + over
    recording = Recording(key)
    for start in range(0, tokens, tokens_a_part):
        count = min(tokens_a_part, tokens - start)
        recording.add(Delta(text="a" * count, token_ids=[1] * count))
    answer = recording.answer(OUTCOME)
    assert answer is not None
    found = find(with_answer(b"", answer), key)
    assert found is not None
    assert found.is_kept == (not over)
    if not over:
        assert Delta.FromString(found.said) == Delta(text="a" * tokens, token_ids=[1] * tokens)


def test_without_a_key_nothing_is_recorded() -> None:
    recording = Recording(None)
    recording.add(Delta(text="a", token_ids=[1]))
    assert recording.answer(OUTCOME) is None

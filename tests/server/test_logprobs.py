"""The likeliest tokens, against a sort of all."""

from __future__ import annotations

from typing import NoReturn

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from unrolled_server.logprobs import LogprobTape


@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 2000),
    top=st.integers(0, 20),
    count=st.integers(0, 5),
    values=st.integers(1, 50),
)
def test_the_likeliest_come_first_and_of_equals_the_lower_id(
    seed: int, size: int, top: int, count: int, values: int
) -> None:
    generator = np.random.default_rng(seed)
    distinct = np.log(generator.random(values)).astype(np.float32)
    distinct[0] = -np.inf
    logprobs = generator.choice(distinct, (count, size))
    tokens = generator.integers(size, size=count).tolist()
    tape = LogprobTape(min(top, size))
    tape.record(tokens, logprobs)
    taken = tape.take(count)
    for place, row in enumerate(logprobs):
        expected = sorted(range(size), key=lambda token: (-row[token], token))[:top]
        assert taken.top_ids[place].tolist() == expected
        assert taken.top[place].tolist() == row[expected].tolist()
        assert taken.chosen[place] == row[tokens[place]]


@pytest.mark.parametrize("size", [10, 5000])
def test_what_is_not_a_number_is_taken_as_well(size: int) -> None:
    """Its row is about to fail, which the others are not to notice."""
    logprobs = np.zeros((2, size), np.float32)
    logprobs[0] = np.nan
    tape = LogprobTape(3)
    tape.record([1, 2], logprobs)
    assert tape.take(2).top_ids[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [10, 5000])
def test_without_alternatives_nothing_is_sorted(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Every token of every score comes this way, whatever the vocabulary."""

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("sorted")

    for name in ("sort", "argsort", "partition", "argpartition"):
        monkeypatch.setattr(np, name, refuse)
    tape = LogprobTape(0)
    tape.record([3], np.zeros((1, size), np.float32))
    assert tape.take(1).top_ids.shape == (1, 0)

"""The prefix cache alone: what it finds, what goes first, and how much one prompt leaves."""

from __future__ import annotations

import math
import tracemalloc
from typing import cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from unrolled_server.batch import Batch
from unrolled_server.engine import Engine
from unrolled_server.models import ServedModel
from unrolled_server.prefix_cache import BLOCK, ENTRY_BYTES, SHARE, PrefixCache, lengths
from unrolled_server.row import Row
from unrolled_server.tenants import tenant
from unrolled_server.turn import Recall, Task, Turn
from unrolled_server.types import Past, Prefix, Sampling, Tokens
from unrolled_server.vocabulary import CharacterVocabulary

STATE = 30
ENTRY = 4 * STATE + ENTRY_BYTES
LARGE = 1 << 30


def model(name: str = "m", fingerprint: str = "f", device: str = "cpu") -> ServedModel:
    vocabulary = CharacterVocabulary([b"a", b"b"], None, (), None)
    engine = cast(Engine, None)
    return ServedModel(name, 1, fingerprint, STATE, vocabulary, engine, device)


MODEL = model()


def prompt(length: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(0, 1 << 30, length).astype(np.int32)


def tell(cache: PrefixCache, told: Tokens, of: ServedModel = MODEL) -> Recall:
    """Run a prompt, and hand in the states that the cache wants; each holds its length."""
    recall = cache.recall(of, told)
    for mark in recall.marks:
        recall.remember(Prefix(mark, np.full(STATE, mark, np.float32)))
    return recall


def known(cache: PrefixCache, told: Tokens, of: ServedModel = MODEL) -> int:
    """Tokens of a prompt that are known; looking uses them."""
    found = cache.recall(of, told).known
    if found is None:
        return 0
    assert (found.state == found.tokens).all()
    return found.tokens


@given(shorter=st.integers(0, 3_000_000), longer=st.integers(0, 3_000_000))
def test_all_prompts_are_remembered_at_the_same_lengths(shorter: int, longer: int) -> None:
    shorter, longer = sorted((shorter, longer))
    few, many = lengths(shorter), lengths(longer)
    assert few == [length for length in many if length < shorter]
    # Wherever two prompts part behind the first block, not much before that is remembered.
    last = few[-1] if few else 0
    assert 0 <= shorter - last <= max(256, shorter / 32)
    assert len(many) <= 32 * max(1, 1 + (longer.bit_length() - 13))


def test_the_longest_prefix_is_found_whatever_went_before_it() -> None:
    cache, told = PrefixCache(SHARE * 12 * ENTRY), prompt(12 * BLOCK)
    assert tell(cache, told).known is None
    assert known(cache, told) == 11 * BLOCK
    # Others take the place of all but the one that was used.
    for seed in range(1, 100):
        tell(cache, prompt(BLOCK + 1, seed))
        assert known(cache, told) == 11 * BLOCK
    assert known(cache, told[: 11 * BLOCK]) == 0


@pytest.mark.parametrize("shared", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 6 * BLOCK + 9])
def test_prompts_that_part_share_whole_blocks(shared: int) -> None:
    cache, one, other = PrefixCache(LARGE), prompt(3000, 1), prompt(3000, 2)
    other[:shared] = one[:shared]
    assert one[shared] != other[shared]
    tell(cache, one)
    recall = tell(cache, other)
    assert (recall.known.tokens if recall.known else 0) == shared // BLOCK * BLOCK
    # What they share is not asked for again.
    assert set(recall.marks) == {n for n in range(BLOCK, 3000, BLOCK) if n > shared}
    assert known(cache, one) == known(cache, other) == 11 * BLOCK


@pytest.mark.parametrize(
    "other",
    [model(fingerprint="g"), model(device="cuda")],
    ids=["another model", "another device"],
)
def test_states_of_others_are_not_found(other: ServedModel) -> None:
    cache, told = PrefixCache(LARGE), prompt(1000)
    tell(cache, told)
    assert known(cache, told, other) == 0
    assert known(cache, told, model("renamed")) == 768


def test_tenants_do_not_see_what_others_have_sent() -> None:
    cache, told = PrefixCache(LARGE), prompt(1000)
    tell(cache, told)
    token = tenant.set("somebody")
    try:
        assert known(cache, told) == 0
        tell(cache, told)
        assert known(cache, told) == 768
    finally:
        tenant.reset(token)
    assert len(cache) == 6


@given(
    room=st.integers(0, 9),
    asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4 * BLOCK)), max_size=60),
)
def test_what_is_used_least_recently_goes_first(room: int, asked: list[tuple[int, int]]) -> None:
    """Against a list in the order of use."""
    limit = (room + SHARE * 4) * ENTRY
    cache, used = PrefixCache(limit), list[tuple[int, int]]()
    evicted = 0
    for seed, length in asked:
        ends = list(range(BLOCK, length, BLOCK))
        found = max((n for n in ends if (seed, n) in used), default=0)
        told = prompt(5 * BLOCK, seed)[:length]
        recall = tell(cache, told)
        assert (recall.known.tokens if recall.known else 0) == found
        if found:
            used.remove((seed, found))
            used.append((seed, found))
        used += [(seed, n) for n in ends if n > found]
        evicted += max(0, len(used) - (room + SHARE * 4))
        used = used[-(room + SHARE * 4) :]
        assert cache.bytes == len(used) * ENTRY <= limit
        assert len(cache) == len(used)
        assert cache.evicted == evicted


@pytest.mark.parametrize("entries", [8, 9, 16, 80, 4000])
def test_one_prompt_leaves_no_more_than_its_share(entries: int) -> None:
    cache = PrefixCache(entries * ENTRY)
    tell(cache, prompt(1000, 1))
    recall = tell(cache, prompt(1_000_000))
    assert 0 < len(recall.marks) <= entries // SHARE
    assert known(cache, prompt(1_000_000)) == recall.marks[-1] > 1_000_000 * 31 / 32
    # Evenly spread over where it could be remembered.
    places = [-1, *map(lengths(1_000_000).index, recall.marks)]
    assert set(np.diff(places)[1:].tolist()) <= {math.ceil(253 / (entries // SHARE))}
    assert known(cache, prompt(1000, 1)) > 0


def test_a_state_too_large_for_a_share_is_not_asked_for() -> None:
    cache = PrefixCache(SHARE * ENTRY - 1)
    assert tell(cache, prompt(5000)).marks == ()
    assert (len(cache), cache.bytes) == (0, 0)


def test_nothing_is_kept_where_there_is_no_room() -> None:
    cache = PrefixCache(0)
    recall = tell(cache, prompt(5000))
    assert (recall.known, recall.marks) == (None, ())
    assert not cache.queried


def test_what_two_turns_remember_at_once_is_kept_once() -> None:
    cache, told = PrefixCache(LARGE), prompt(1000)
    recalls = [cache.recall(MODEL, told) for _ in range(2)]
    for recall in recalls:
        for mark in recall.marks:
            recall.remember(Prefix(mark, np.full(STATE, mark, np.float32)))
    assert (len(cache), cache.bytes) == (3, 3 * ENTRY)


def test_bytes_are_those_that_are_used() -> None:
    cache = PrefixCache(LARGE)
    prompts = [prompt(BLOCK * 4 + 1, seed) for seed in range(1000)]
    tracemalloc.start()
    try:
        for told in prompts:
            tell(cache, told)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(cache) == 4000
    assert 0.8 * cache.bytes <= used <= cache.bytes


def test_few_rows_at_a_time_end_runs_for_all_others() -> None:
    vocabulary = CharacterVocabulary([b"a", b"b"], None, (), None)
    batch = Batch(20, vocabulary.size, vocabulary.end_tokens)

    def row(marks: tuple[int, ...]) -> Row:
        told, start = np.zeros(100, np.int32), Past(None, None, 0)
        task = Task(start, told, 0, Sampling(0), (), None, False, False, Recall(marks=marks))
        return Row(Turn(task), vocabulary)

    rows = [row(()), *(row((5, 50)) for _ in range(10)), row((3,))]
    for each in rows:
        batch.join(each)
    assert batch.most_steps() == 5
    batch.advance(np.zeros((5, len(rows)), np.int32))
    assert batch.at_marks() == [1, 2, 3, 4, 5, 6, 7, 8]
    for place in batch.at_marks():
        batch.mark(place, rows[place])
    assert batch.most_steps() == 45
    # The next that joins may be remembered once one of them has left.
    batch.join(row((7,)))
    assert batch.most_steps() == 45
    batch.leave(3)
    place = batch.join(row((7,)))
    assert batch.most_steps() == 7
    batch.advance(np.zeros((7, batch.size), np.int32))
    assert batch.at_marks() == [place]

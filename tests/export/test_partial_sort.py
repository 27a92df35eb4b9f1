"""What top_k, top_p and min_p keep of a large vocabulary, of which only a part is sorted."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from support.networks import of_size, session
from support.oracle import Draw
from unrolled_export.filtering import filtered_chances
from unrolled_export.graph_builder import GraphBuilder, tensor
from unrolled_export.partial_sort import FEW, LARGE, leading_chances
from unrolled_export.step_graph import CumulativeSums, step_graph

some = settings(max_examples=60)

SIZES = LARGE, 5001


@cache
def filters(vocabulary: int) -> onnxruntime.InferenceSession:
    """The nodes alone; over a small vocabulary, those that sort it all."""
    graph = GraphBuilder("filters")
    if vocabulary < LARGE:
        filtered_chances(graph, "logprobs", vocabulary, CumulativeSums(), "kept")
        graph.node("Identity", ["ignored"], ["unread"])
    else:
        leading_chances(graph, "logprobs", vocabulary, "ignored", "kept")
    wide: list[str | int] = ["B", vocabulary]
    inputs = [
        tensor("logprobs", TensorProto.FLOAT, wide),
        tensor("chances", TensorProto.FLOAT, wide),
        tensor("min_p_column", TensorProto.FLOAT, ["B", 1]),
        tensor("top_k_column", TensorProto.INT32, ["B", 1]),
        tensor("top_p_column", TensorProto.FLOAT, ["B", 1]),
        tensor("ignored", TensorProto.BOOL, ["B", 1]),
    ]
    model = graph.model(inputs, [tensor("kept", TensorProto.FLOAT, wide)])
    return session(model.SerializeToString())


def feeds_of(logprobs: NDArray[np.float32], rows: list[Draw]) -> dict[str, NDArray[Any]]:
    temperatures = np.array([[how.temperature] for how in rows], np.float32)
    weights = np.exp((logprobs - logprobs.max(1, keepdims=True)) / temperatures)
    return {
        "logprobs": logprobs,
        "chances": (weights / weights.sum(1, keepdims=True)).astype(np.float32),
        "min_p_column": np.array([[how.min_p] for how in rows], np.float32),
        "top_k_column": np.array([[how.top_k] for how in rows], np.int32),
        "top_p_column": np.array([[how.top_p] for how in rows], np.float32),
        "ignored": np.zeros((len(rows), 1), np.bool_),
    }


def kept(vocabulary: int, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    (result,) = filters(vocabulary).run(["kept"], feeds)
    chances: NDArray[np.float32] = result
    return chances


def assert_kept(
    how: Draw, logprobs: NDArray[Any], chances: NDArray[Any], result: NDArray[Any]
) -> None:
    """The contract: min_p, then top_k, then top_p, a share of what those left."""
    order = np.argsort(-logprobs, kind="stable")
    ranked = chances[order].astype(np.float64)
    stays = chances[order] >= chances.max() * np.float32(how.min_p)
    if how.top_k:
        stays[how.top_k :] = False
    left = np.where(stays, ranked, 0.0)
    over = (np.cumsum(left) - left) - float(np.float32(how.top_p)) * left.sum()
    doubtful = np.abs(over) < 1e-12
    if how.top_p < 1:
        stays &= over < 0
    else:
        doubtful[:] = False
    expected = np.where(stays, chances[order], np.float32(0))
    assert np.array_equal(result[order][~doubtful], expected[~doubtful])


ROWS = st.builds(
    Draw,
    temperature=st.sampled_from([0.5, 1.0, 40.0]),
    top_k=st.sampled_from([0, 1, 40, FEW - 1, FEW, FEW + 1, 511, 512, 513, 2000, 9999]),
    top_p=st.sampled_from([1.0, 1.0, 1e-6, 0.3, 0.5, 0.95, 1 - 2**-24]),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.3, 1.0]),
)


@given(
    vocabulary=st.sampled_from(SIZES),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 0.01, 1.0, 3.0, 20.0]),
    ties=st.booleans(),
    rows=st.lists(ROWS, min_size=1, max_size=5),
    ignored=st.sets(st.integers(0, 4)),
)
@example(LARGE, 0, 1.0, False, [Draw(top_p=0.95), Draw(top_k=3)], set())
@example(LARGE, 0, 0.0, True, [Draw(top_k=2000, top_p=0.5, min_p=1.0), Draw(top_k=40)], {0})
@some
def test_rows_keep_what_they_keep_alone(
    vocabulary: int, seed: int, scale: float, ties: bool, rows: list[Draw], ignored: set[int]
) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (len(rows), vocabulary))
    if ties:
        logits = np.rint(logits)
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    feeds = feeds_of(logprobs, rows)
    feeds["ignored"][sorted(place for place in ignored if place < len(rows))] = True
    together = kept(vocabulary, feeds)
    for place, how in enumerate(rows):
        if place in ignored:
            continue
        alone = {name: value[place : place + 1] for name, value in feeds.items()}
        assert np.array_equal(kept(vocabulary, alone)[0], together[place])
        assert_kept(how, logprobs[place], feeds["chances"][place], together[place])


def plain(chances: NDArray[Any], rows: list[Draw]) -> dict[str, NDArray[Any]]:
    """The same chances for each of the rows, likelier ones first."""
    count = len(rows)
    return feeds_of(np.tile(-np.arange(chances.size, dtype=np.float32), (count, 1)), rows) | {
        "chances": np.tile(chances, (count, 1))
    }


def at_an_end(vocabulary: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Chances of which the first three are half, but for the last bit of a sum; and an order."""
    random = np.random.default_rng(seed)
    rest = np.exp(random.normal(0, 3, vocabulary - 3))
    rest = np.sort((rest / rest.sum() * 0.5).astype(np.float32))[::-1]
    half = float(rest.astype(np.float64).sum())
    first = np.float32(half * 0.75)
    second = np.float32(half - float(first))
    if float(second) > half - float(first):
        second = np.nextafter(second, np.float32(0))
    third = np.float32(half - float(first) - float(second))
    chances = np.concatenate([[first, second, third], rest]).astype(np.float32)
    return chances, random.permutation(vocabulary)


@pytest.mark.parametrize(
    ("vocabulary", "seed"),
    [(5001, 242), (5001, 427), (5001, 709), (5001, 865), (65, 7795), (65, 9932), (65, 16499)],
)
def test_rows_that_are_alike_keep_the_same_wherever_they_lie(vocabulary: int, seed: int) -> None:
    """Of an odd vocabulary, where every other row begins at an odd multiple of eight bytes."""
    chances, order = at_an_end(vocabulary, seed)
    feeds = plain(chances, [Draw(top_p=0.5)] * 3)
    for name in ("logprobs", "chances"):
        feeds[name] = np.ascontiguousarray(feeds[name][:, order])
    first, *others = kept(vocabulary, feeds)
    assert all(np.array_equal(first, other) for other in others)


def test_a_chance_that_was_rounded_below_that_of_a_less_likely_token() -> None:
    """It is dropped and the other one kept, however many others make sort."""
    chances = np.geomspace(1e-2, 1e-6, LARGE).astype(np.float32)
    chances[FEW - 1 : FEW + 1] = chances[FEW - 1 : FEW + 1][::-1].copy()
    least = chances[FEW] / chances[0]
    rows = [Draw(top_k=2 * FEW, min_p=float(least)), Draw(top_k=LARGE // 2)]
    together = kept(LARGE, plain(chances, rows))[0]
    alone = kept(LARGE, plain(chances, rows[:1]))[0]
    assert np.flatnonzero(alone).tolist() == [*range(FEW - 1), FEW]
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("vocabulary", [65, LARGE])
@pytest.mark.parametrize("own", [Draw(), Draw(top_k=5), Draw(top_p=0.5), Draw(min_p=0.5)])
def test_a_row_that_is_no_number_harms_no_other(vocabulary: int, own: Draw) -> None:
    model = of_size(vocabulary)
    ways = [Draw(top_k=3, top_p=0.9), own, Draw(min_p=0.01)]
    states = {state.input: np.zeros((len(ways), state.size), np.float32) for state in model.states}
    engine = session(step_graph(model).SerializeToString())

    def drawn() -> NDArray[np.int32]:
        tokens: NDArray[np.int32] = engine.run(["tokens"], engine_feeds(ways, 3) | states)[0]
        return tokens

    sound = drawn()
    for state in states.values():
        state[1] = np.nan
    beside = drawn()
    assert np.array_equal(beside[:, [0, 2]], sound[:, [0, 2]])
    assert ((beside >= 0) & (beside < vocabulary)).all()


def engine_feeds(ways: list[Draw], steps: int) -> dict[str, NDArray[Any]]:
    """All but the states; every row draws."""
    rows, random = len(ways), np.random.default_rng(5)
    return {
        "pending": np.zeros(rows, np.int32),
        "told": np.full((steps, rows), -1, np.int32),
        "uniforms": random.random((steps, rows)),
        "temperature": np.array([how.temperature for how in ways], np.float32),
        "top_k": np.array([how.top_k for how in ways], np.int32),
        "top_p": np.array([how.top_p for how in ways], np.float32),
        "min_p": np.array([how.min_p for how in ways], np.float32),
        "filtered": np.array(True),
    }


@pytest.mark.parametrize("vocabulary", SIZES)
def test_the_engine_draws_from_what_is_kept(vocabulary: int) -> None:
    model, random = of_size(vocabulary), np.random.default_rng(3)
    ways = [
        *(Draw(top_k=40), Draw(top_p=0.9), Draw(min_p=0.3), Draw(), Draw(temperature=0, top_p=0.9)),
        *(Draw(1.5, top_k=900, top_p=0.7), Draw(0.5, top_k=200, min_p=0.01), Draw(top_p=0.999)),
    ] * 8
    rows = len(ways)
    feeds = engine_feeds(ways, 1) | {
        state.input: np.zeros((rows, state.size), np.float32) for state in model.states
    }
    feeds["pending"] = random.integers(0, vocabulary, rows).astype(np.int32)
    told = feeds["told"] = np.where(random.random((1, rows)) < 0.2, 7, -1).astype(np.int32)
    numbers = feeds["uniforms"]
    engine = session(step_graph(model).SerializeToString())
    tokens, logprobs = engine.run(["tokens", "logprobs"], feeds)
    for place, how in enumerate(ways):
        expected, margin = how.token(logprobs[0, place], float(numbers[0, place]))
        if told[0, place] >= 0:
            assert tokens[0, place] == 7
        else:
            assert tokens[0, place] == expected or margin < 1e-6

"""Random numbers against the published generator, and draws against their distribution."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.calls import SECONDS, Stubs
from support.models import CHARACTERS, Repository
from support.oracle import MASK, uniform
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled_server.batch import Batch
from unrolled_server.row import Row
from unrolled_server.sampler import stream, uniforms
from unrolled_server.turn import Task, Turn
from unrolled_server.types import MAX_STEPS, Past, Sampling
from unrolled_server.vocabulary import CharacterVocabulary

seeds = st.integers(0, MASK)
places = st.integers(0, 2**63 - 300)

Chances = NDArray[np.float64]


def numbers_of(seed: int, first: int, count: int) -> NDArray[np.float64]:
    """The numbers of `count` tokens of one sequence."""
    starts = np.array([stream(seed)], np.uint64)
    return uniforms(starts, np.array([first], np.int64), count)[:, 0]


@given(seed=seeds, first=places, count=st.integers(0, 40))
@example(seed=0, first=0, count=3)
@example(seed=MASK, first=0, count=3)
@example(seed=MASK, first=2**63 - 300, count=300)
@example(seed=2**63, first=2**32 - 2, count=4)
@example(seed=1, first=2**53 - 2, count=4)
def test_numbers_are_those_of_the_oracle(seed: int, first: int, count: int) -> None:
    numbers = numbers_of(seed, first, count)
    assert numbers.dtype == np.float64
    assert numbers.tolist() == [uniform(seed, place) for place in range(first, first + count)]


def unmixed(word: int) -> int:
    """The word that the mixing function of SplitMix64 makes `word` of."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        mixed, word = word, 0
        # Each step settles `shift` more bits from the top, where nothing was folded in.
        for _ in range(64 // shift + 1):
            word = mixed ^ word >> shift
        word = word * pow(factor, -1, 1 << 64) & MASK
    return word


@pytest.mark.parametrize(
    ("state", "outputs"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_the_published_numbers(state: int, outputs: list[int]) -> None:
    """SplitMix64's own test values: a stream begins at the mixed seed, so undo the mixing."""
    expected = [(word >> 12) / 2**52 for word in outputs]
    assert numbers_of(unmixed(state), 0, len(outputs)).tolist() == expected


@pytest.mark.parametrize(
    ("word", "number"),
    [
        (0, 0.0),
        (2**12 - 1, 0.0),
        (2**12, 2.0**-52),
        (2**63 - 1, 0.5 - 2.0**-52),
        (2**63, 0.5),
        (MASK - 2**12, 1 - 2 * 2.0**-52),
        (MASK, 1 - 2.0**-52),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 1000])
def test_the_edges_of_the_range(word: int, number: float, place: int) -> None:
    state = unmixed(word) - (place + 1) * 0x9E3779B97F4A7C15 & MASK
    assert numbers_of(unmixed(state), place, 1).tolist() == [number]


@given(seed=seeds, first=places)
def test_numbers_are_multiples_of_two_to_the_minus_52_below_one(seed: int, first: int) -> None:
    for number in numbers_of(seed, first, 256).tolist():
        assert 0 <= number <= 1 - 2.0**-52
        assert (number * 2**52).is_integer()


@given(seed=seeds, first=places, sizes=st.lists(st.integers(0, 80), max_size=5))
def test_blocks_join_without_a_seam(seed: int, first: int, sizes: list[int]) -> None:
    parts, start = [], first
    for size in sizes:
        parts.extend(numbers_of(seed, start, size).tolist())
        start += size
    assert numbers_of(seed, first, start - first).tolist() == parts


def test_neighbouring_seeds_and_places_share_no_numbers() -> None:
    numbers = np.concatenate([numbers_of(seed, 0, 500) for seed in [*range(100), MASK]])
    assert len(np.unique(numbers)) == len(numbers)


LETTERS = CharacterVocabulary([b"a", b"b"], 0, (), None)

sequences = st.tuples(seeds, st.sampled_from([0, 1, 255, 2**40]), st.integers(0, 600))
"""Seed, position, and tokens told before any is drawn."""


def joined(batch: Batch, seed: int, position: int, told: int) -> int:
    """Let a sequence join; returns the number of the first token that its steps end in."""
    pending = 0 if position else None
    task = Task(
        start=Past(None, pending, position),
        told=np.zeros(told, np.int32),
        max_tokens=10_000,
        sampling=Sampling(seed),
        stop=(),
        logprobs=None,
        scores=False,
        keeps_partial=False,
    )
    batch.join(Row(Turn(task), LETTERS))
    # A sequence's first token of all is not the outcome of a step, unless it is drawn.
    return position + (1 if pending is None and told else 0)


@given(
    each=st.lists(sequences, min_size=1, max_size=4),
    steps=st.lists(st.integers(1, MAX_STEPS), max_size=12),
)
@example(each=[(0, 0, 0), (MASK, 255, 3)], steps=[1, 2, MAX_STEPS, 1])
def test_rows_draw_with_the_numbers_of_their_tokens_positions(
    each: list[tuple[int, int, int]], steps: list[int]
) -> None:
    """Whatever runs their steps fall into."""
    batch = Batch(len(each), LETTERS.size, LETTERS.end_tokens)
    places = [joined(batch, *sequence) for sequence in each]
    for count in steps:
        expected = [
            [uniform(seed, place + step) for (seed, _, _), place in zip(each, places, strict=True)]
            for step in range(count)
        ]
        assert batch.uniforms(count).tolist() == expected
        batch.advance(np.ones((count, len(each)), np.int32))
        for watched in batch.watched(np.ones((count, len(each)), np.int32)):
            batch.take(watched)
        places = [place + count for place in places]


NEWLINE = CHARACTERS.index("\n")
DRAWS = 20_000


@dataclass(frozen=True)
class Shape:
    """What shapes a distribution before the draw."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def chances(self, logprobs: Chances) -> Chances:
        """By the contract: temperature, min_p, top_k, top_p, each over what is left."""
        powers = [math.exp(value / self.temperature) for value in logprobs - logprobs.max()]
        chance = {token: power / sum(powers) for token, power in enumerate(powers)}
        ranked = sorted(chance, key=lambda token: -chance[token])
        ranked = [token for token in ranked if chance[token] >= self.min_p * chance[ranked[0]]]
        ranked = ranked[: self.top_k or None]
        left = sum(chance[token] for token in ranked)
        kept: list[int] = []
        for token in ranked:
            kept.append(token)
            if self.top_p < 1 and sum(chance[token] for token in kept) >= self.top_p * left:
                break
        result = np.zeros(len(logprobs))
        for token in kept:
            result[token] = chance[token] / sum(chance[token] for token in kept)
        return result


Drawn = NDArray[np.int64]
Graph = Callable[[Shape, NDArray[np.float64]], Drawn]


@pytest.fixture(scope="module")
def graph(repository: Repository) -> Graph:
    """Draws of the exported graph after a newline, one row for each random number."""
    folder = repository.path / "lstm" / "1"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "engine.onnx", options, providers=["CPUExecutionProvider"]
    )
    states = json.loads((folder / "manifest.json").read_text())["states"]

    def draw(shape: Shape, numbers: NDArray[np.float64]) -> Drawn:
        rows = len(numbers)
        inputs = {
            "pending": np.full(rows, NEWLINE, np.int32),
            "told": np.full((1, rows), -1, np.int32),
            "uniforms": numbers[None],
            "temperature": np.full(rows, shape.temperature, np.float32),
            "top_k": np.full(rows, shape.top_k, np.int32),
            "top_p": np.full(rows, shape.top_p, np.float32),
            "min_p": np.full(rows, shape.min_p, np.float32),
            "filtered": np.array(shape != Shape(shape.temperature)),
            **{s["input"]: np.zeros((rows, int(s["shape"][0])), np.float32) for s in states},
        }
        (tokens,) = session.run(["tokens"], inputs)
        drawn: Drawn = np.bincount(tokens[0], minlength=len(CHARACTERS))
        return drawn

    return draw


@pytest.fixture(scope="module")
def logprobs(repository: Repository) -> Chances:
    """What follows a newline, by the PyTorch model."""
    with torch.no_grad():
        result: Chances = repository.models["lstm"](torch.tensor([[NEWLINE]]))[0, 0].numpy()
    return result.astype(np.float64)


def assert_drawn_from(chances: Chances, drawn: Drawn) -> None:
    """Pearson's chi-square test, tokens of fewer than 5 expected draws taken together."""
    expected = chances * drawn.sum()
    assert not drawn[expected == 0].any()
    rare = expected < 5
    groups = [*zip(expected[~rare], drawn[~rare], strict=True)]
    if expected[rare].sum() >= 5:
        groups.append((expected[rare].sum(), drawn[rare].sum()))
    statistic = sum((seen - due) ** 2 / due for due, seen in groups)
    degrees = len(groups) - 1
    assert degrees > 0
    # Wilson and Hilferty's approximation of the quantile 4 standard deviations out.
    ratio = 2 / (9 * degrees)
    assert statistic < degrees * (1 - ratio + 4 * math.sqrt(ratio)) ** 3


TEMPERATURES = [0.5, 0.8, 1.0, 1.5, 3.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_places_of_one_seed_are_drawn_from_the_softmax(
    graph: Graph, logprobs: Chances, temperature: float
) -> None:
    shape = Shape(temperature)
    drawn = graph(shape, numbers_of(20, 0, DRAWS))
    assert_drawn_from(shape.chances(logprobs), drawn)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_neighbouring_seeds_are_drawn_from_the_softmax(
    graph: Graph, logprobs: Chances, temperature: float
) -> None:
    shape = Shape(temperature)
    numbers = np.concatenate([numbers_of(seed, 7, 1) for seed in range(DRAWS)])
    assert_drawn_from(shape.chances(logprobs), graph(shape, numbers))


SHAPES = [
    *(Shape(temperature) for temperature in TEMPERATURES),
    *(Shape(top_k=k) for k in (1, 2, 7, len(CHARACTERS), 1000)),
    *(Shape(top_p=p) for p in (0.01, 0.3, 0.9, 0.999)),
    *(Shape(min_p=p) for p in (0.01, 0.1, 0.5, 1.0)),
    Shape(2.0, top_k=10, top_p=0.7),
    Shape(2.0, top_k=10, min_p=0.3),
    Shape(1.5, top_p=0.6, min_p=0.05),
    Shape(0.7, top_k=12, top_p=0.95, min_p=0.02),
    Shape(3.0, top_k=20, top_p=0.5, min_p=0.1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evenly_spread_numbers_draw_each_token_its_share(
    graph: Graph, logprobs: Chances, shape: Shape
) -> None:
    """And nothing that top_k, top_p and min_p leave out."""
    chances = shape.chances(logprobs)
    drawn = graph(shape, (np.arange(DRAWS) + 0.5) / DRAWS)
    assert not drawn[chances == 0].any()
    # A share's edges fall between numbers: one more or less. The rest is for float32.
    assert np.abs(drawn - chances * DRAWS).max() <= 1.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_least_and_the_largest_number_draw_tokens_that_are_kept(
    graph: Graph, logprobs: Chances, shape: Shape
) -> None:
    kept = np.flatnonzero(shape.chances(logprobs))
    for number, token in ((0.0, kept[0]), (1 - 2.0**-52, kept[-1])):
        assert np.flatnonzero(graph(shape, np.array([number]))).tolist() == [token]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-7])
def test_next_to_no_temperature_takes_the_likeliest(
    graph: Graph, logprobs: Chances, temperature: float
) -> None:
    drawn = graph(Shape(temperature), numbers_of(1, 0, 100))
    assert drawn[logprobs.argmax()] == 100


def test_a_call_s_seed_draws_from_the_softmax(stubs: Stubs, logprobs: Chances) -> None:
    """Through the server: the first token after the start token, for seeds in a row."""
    shape = Shape(1.3, top_k=12, min_p=0.02)
    drawn = np.zeros(len(CHARACTERS), np.int64)
    for seed in range(400):
        request = CompleteRequest(
            model="lstm", max_tokens=1, seed=seed, temperature=1.3, top_k=12, min_p=0.02
        )
        response = stubs.completions.Complete(request, timeout=SECONDS)
        drawn[response.token_ids[0]] += 1
    assert_drawn_from(shape.chances(logprobs), drawn)

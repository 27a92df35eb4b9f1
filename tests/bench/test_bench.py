"""What the benchmark says of what it measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import prometheus_client
import pytest

from bench.arithmetic import flops_per_token
from bench.chart import draw
from bench.figure import Figure, Result
from bench.histogram import histogram
from bench.models import CHARACTERS, Recipe, weights
from bench.progress import in_turns
from bench.rate import Rate, Sample
from bench.ratios import ratio
from bench.records import Records, table
from bench.registry import GROUPS, select

MORE = Figure("more", "ratio", "more is better", 0.85, 0.95)
LESS = Figure("less", "ratio", "less is better", 1.05, 1.0)
FREE = Figure("free", "ms", "nothing is asked")


def test_every_figure_has_one_name() -> None:
    names = [figure.name for group in GROUPS for figure in group.figures]
    assert len(names) == len(set(names))


def test_a_word_selects_the_figures_that_begin_with_it() -> None:
    names = [figure.name for figure in select(["served_over_bare_wall", "int8_over_fp32"])]
    assert names == [
        "served_over_bare_wall_64_fp32",
        "served_over_bare_wall_64_int8",
        "int8_over_fp32_64",
    ]
    usual = [group for group in GROUPS if not group.only_if_named]
    assert select([]) == [figure for group in usual for figure in group.figures]
    assert len(usual) < len(GROUPS)
    with pytest.raises(ValueError, match="'bare'"):
        select(["served", "bare"])


@pytest.mark.parametrize(
    ("figure", "value", "verdict"),
    [
        (MORE, 0.95, "goal"),
        (MORE, 0.9499, "reached"),
        (MORE, 0.85, "reached"),
        (MORE, 0.8499, "missed"),
        (LESS, 1.0, "goal"),
        (LESS, 1.0001, "reached"),
        (LESS, 1.05, "reached"),
        (LESS, 1.0501, "missed"),
        (FREE, 7.0, "-"),
    ],
)
def test_verdict(figure: Figure, value: float, verdict: str) -> None:
    assert figure.verdict(value) == verdict


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    result = ratio(MORE, [1.0, 6.0, 9.0], [2.0, 3.0, 4.0], bare="K 8")
    assert result.value == 2.0
    assert result.detail["range"] == [0.5, 2.25]
    assert (result.detail["over"], result.detail["under"]) == (6.0, 3.0)
    assert list(result.bars.values()) == [0.5, 2.0, 2.25]


def test_every_other_round_runs_backwards() -> None:
    order: list[str] = []

    def measure(name: str) -> str:
        order.append(name)
        return f"{name}{len(order)}"

    rounds = in_turns("test", 2, lambda: measure("a"), lambda: measure("b"))
    assert order == ["a", "b", "b", "a"]
    assert rounds == [("a1", "b2"), ("a4", "b3")]


def test_inter_token_latency_counts_every_token() -> None:
    sample = Sample(Rate(1, 1.0, 1.0), 1, [0.5, 0.25, 1.0], [(0.3, 3), (0.8, 1), (0.4, 2)])
    # 0.1 three times, 0.2 twice, 0.8 once.
    assert sample.inter_token(50) == pytest.approx(statistics.median([0.1, 0.2]))
    assert sample.inter_token(100) == pytest.approx(0.8)
    assert sample.between_messages(50) == pytest.approx(0.4)
    assert sample.first_token(50) == 0.5


@pytest.mark.parametrize(
    ("percentile", "value"), [(25, 1.0), (50, 1.5), (75, 2.0), (99, 2.0), (5, 0.2)]
)
def test_a_percentile_is_that_of_histogram_quantile(percentile: float, value: float) -> None:
    tallies = prometheus_client.Histogram("x", "", buckets=(1, 2), registry=None)
    for one in [0.5] * 10 + [1.5] * 20 + [7.0] * 10:
        tallies.observe(one)
    registry = prometheus_client.CollectorRegistry()
    registry.register(tallies)
    page = prometheus_client.generate_latest(registry).decode()
    assert histogram(page, "x").count == 40
    assert histogram(page, "x").percentile(percentile) == pytest.approx(value)


def test_latest_is_replaced_and_history_grows(tmp_path: Path) -> None:
    for value in (0.5, 0.75):
        Records(tmp_path).add(Result(MORE, value, {"rounds": 1}, reduced="10 sessions"))
    latest = (tmp_path / "latest.jsonl").read_text().splitlines()
    history = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in latest] == [
        {
            "figure": "more",
            "value": 0.75,
            "unit": "ratio",
            "detail": {"rounds": 1, "reduced_to": "10 sessions"},
        }
    ]
    assert [json.loads(line)["value"] for line in history] == [0.5, 0.75]
    assert all("commit" in json.loads(line) for line in history)


def test_table_says_what_was_reached() -> None:
    results = [Result(MORE, 0.9, {}), Result(LESS, 2.0, {}, reduced="10 sessions")]
    lines = [line.split() for line in table([*results, Result(FREE, 12.5, {})]).splitlines()]
    assert lines[1:] == [
        ["more", "0.9", "0.85", "0.95", "reached"],
        ["less", "2", "1.05", "1", "missed", "(10", "sessions", "only)"],
        ["free", "12.5", "ms", "-"],
    ]


def test_chart_is_a_png(tmp_path: Path) -> None:
    for figure in (MORE, FREE):
        draw(tmp_path / "chart.png", Result(figure, 0.9, {}, {"round 1": 0.8}))
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_arithmetic_counts_the_weights_that_are_multiplied() -> None:
    recipe = Recipe(layers=3, hidden=8)
    multiplied = sum(
        tensor.size
        for name, tensor in weights(recipe).items()
        if tensor.ndim == 2 and name not in ("embed.weight", "rnn.weight_ih_l0")
    )
    assert flops_per_token(recipe) == 2 * multiplied


def test_vocabulary_has_96_characters() -> None:
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 96

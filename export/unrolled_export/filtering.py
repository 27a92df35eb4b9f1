"""Chances with min_p, top_k and top_p applied, as nodes that the engine's graphs share."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from unrolled_export.graph_builder import GraphBuilder


class Sums(Protocol):
    """How a graph adds up chances along a row."""

    def doubles(self, graph: GraphBuilder, chances: str) -> str:
        """What is added, float64 [B, V], for chances float32 [B, V]."""

    def before(self, graph: GraphBuilder, doubles: str) -> str:
        """The sum of all that stand before each, [B, V]."""


def filtered_chances(
    graph: GraphBuilder, logprobs: str, vocabulary: int, sums: Sums, output: str
) -> str:
    """Append nodes that drop tokens by min_p, top_k and top_p, in this order.

    They read `logprobs` and `chances` [B, V] and the columns `min_p_column`, `top_k_column`
    and `top_p_column` [B, 1]; `output` [B, V] is zero where a token is dropped. Tokens are ranked
    by log-probability, which tells apart what a high temperature makes equal. top_p is a share of
    what the other two left. Each row's parameters may keep everything, and then its chances
    pass unchanged to the last bit.
    """
    size = graph.integers([vocabulary])
    _, order = graph.split_outputs("TopK", [logprobs, size], 2)
    largest = graph.node("GatherElements", ["chances", order], axis=1)
    first = graph.node("Gather", [largest, graph.integers([0])], axis=1)
    likely = graph.node("GreaterOrEqual", [largest, graph.node("Mul", [first, "min_p_column"])])
    ranks = graph.integers(np.arange(vocabulary)[None], np.int32)
    no_k = graph.node("Equal", ["top_k_column", graph.integers(0, np.int32)])
    ranked = graph.node("Or", [no_k, graph.node("Less", [ranks, "top_k_column"])])
    chosen = graph.node("And", [likely, ranked])
    left = graph.node("Where", [chosen, largest, graph.floats(0.0)])
    doubles = sums.doubles(graph, left)
    before = sums.before(graph, doubles)
    # Not a sum of its own: its order would depend on where in memory the row lies.
    last = graph.integers([vocabulary - 1])
    ends = [graph.node("Gather", [value, last], axis=1) for value in (before, doubles)]
    total = graph.node("Add", ends)
    share = graph.double("top_p_column")
    within = graph.node("Less", [before, graph.node("Mul", [total, share])])
    no_p = graph.node("GreaterOrEqual", ["top_p_column", graph.floats(1.0)])
    nucleus = graph.node("Or", [no_p, within])
    left = graph.node("Where", [nucleus, left, graph.floats(0.0)])
    nothing = graph.node("Sub", ["chances", "chances"])
    return graph.node("ScatterElements", [nothing, order, left], [output], axis=1)

"""Chances with min_p, top_k and top_p applied, without sorting all of a large vocabulary.

What is kept are leading tokens, mostly few of them: so the leading ones are sorted, and more only
where those do not settle what every row keeps. What a row keeps, and every sum that decides it,
depends on the row alone, not on how many tokens other rows made sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from unrolled_export.graph_builder import GraphBuilder, tensor

LARGE = 2048
"""Tokens of a vocabulary from which on this is faster than sorting all. More than 4 * FEW."""
ALIGNED = 64
"""Numbers in a row that is to be summed, a multiple of this: rows that do not begin alike in memory
are added up in other orders."""
FEW = 128
"""Tokens that are sorted at first; then a quarter of all, and in the end, all."""


def leading_chances(
    graph: GraphBuilder, logprobs: str, vocabulary: int, ignored: str, output: str
) -> str:
    """Append nodes that keep what `filtering.filtered_chances` keeps, and read what it reads.

    `ignored`, bool [B, 1]: rows of which nothing is drawn now, whatever they are to keep.
    """
    search = _Search(graph, logprobs, vocabulary, ignored)
    search.append(graph, [FEW, vocabulary // 4, vocabulary], output)
    return output


@dataclass(frozen=True)
class _Leading:
    """The first N tokens of each row in their order."""

    order: str
    """int64 [B, N]: which tokens they are."""
    kept: str
    """float32 [B, N]: their chances, 0 where they are dropped."""
    unsettled: str
    """bool [B, 1]: tokens behind them may have to be kept as well."""


class _Search:
    """What all numbers of sorted tokens share."""

    def __init__(self, graph: GraphBuilder, logprobs: str, vocabulary: int, ignored: str) -> None:
        self._logprobs, self._vocabulary, self._ignored = logprobs, vocabulary, ignored
        axis, zero = graph.integers([1]), graph.floats(0.0)
        first = graph.node("ReduceMax", ["chances", axis], keepdims=1)
        self._least = graph.node("Mul", [first, "min_p_column"])
        likely = graph.node("GreaterOrEqual", ["chances", self._least])
        self._likely_chances = graph.node("Where", [likely, "chances", zero])
        """What min_p leaves of all tokens, [B, V] in their own order."""
        doubles = graph.double(self._aligned(graph, self._likely_chances))
        self._likely_total = graph.node("ReduceSum", [doubles, axis], keepdims=1)
        self._likely_count = self._count(graph, likely)
        self._no_k = graph.node("Equal", ["top_k_column", graph.integers(0, np.int32)])
        self._no_p = graph.node("GreaterOrEqual", ["top_p_column", graph.floats(1.0)])
        self._share = graph.double("top_p_column")

    def append(self, graph: GraphBuilder, counts: list[int], output: str) -> None:
        """Sort the first of `counts`, and where that is not enough, the others."""
        count, *more = counts
        leading = self._leading(graph, count)
        if not more:
            self._scatter(graph, leading, output)
            return
        unsettled = graph.node("Cast", [leading.unsettled], to=TensorProto.INT32)
        some = graph.node("ReduceMax", [unsettled], keepdims=0)
        some = graph.node("Cast", [some], to=TensorProto.BOOL)
        enough = graph.subgraph(f"enough_{count}")
        self._scatter(enough, leading, f"{output}_{count}")
        too_few = graph.subgraph(f"too_few_{count}")
        self.append(too_few, more, f"{output}_{more[0]}_of_more")
        graph.node(
            "If",
            [some],
            [output],
            then_branch=self._branch(too_few, f"{output}_{more[0]}_of_more"),
            else_branch=self._branch(enough, f"{output}_{count}"),
        )

    def _leading(self, graph: GraphBuilder, count: int) -> _Leading:
        _, order = graph.split_outputs("TopK", [self._logprobs, graph.integers([count])], 2)
        chances = graph.node("GatherElements", ["chances", order], axis=1)
        likely = graph.node("GreaterOrEqual", [chances, self._least])
        ranks = graph.integers(np.arange(count)[None], np.int32)
        ranked = graph.node("Less", [ranks, "top_k_column"])
        ranked = graph.node("Or", [self._no_k, ranked])
        chosen = graph.node("And", [likely, ranked])
        zero = graph.floats(0.0)
        left = graph.node("Where", [chosen, chances, zero])
        doubles = graph.double(left)
        before = graph.node("CumSum", [doubles, graph.integers(1)], exclusive=1)
        # With top_k, one after the other, so that zeros behind the k change nothing.
        last_sum = graph.node(
            "Add", [self._last(graph, before, count), self._last(graph, doubles, count)]
        )
        total = graph.node("Where", [self._no_k, self._likely_total, last_sum])
        within = graph.node("Less", [before, graph.node("Mul", [total, self._share])])
        nucleus = graph.node("Or", [self._no_p, within])
        kept = graph.node("Where", [nucleus, left, zero])
        return _Leading(order, kept, self._unsettled(graph, likely, within, count))

    def _unsettled(self, graph: GraphBuilder, likely: str, within: str, count: int) -> str:
        """Whether a row may keep a token behind its first `count`.

        It does not where min_p drops all of those, which are not always less likely than each
        before them: a softmax may round the larger of two logits to the smaller chance. Nor, with
        top_k, where there are k; nor, without, where the last is not within top_p. Where top_p is
        none, no order is asked for.
        """
        likely = graph.node("Less", [self._count(graph, likely), self._likely_count])
        within = self._last(graph, within, count)
        wide = graph.node("And", [self._no_k, within])
        wide = graph.node("And", [wide, graph.node("Not", [self._no_p])])
        long = graph.node("Less", [graph.integers(count, np.int32), "top_k_column"])
        unsettled = graph.node("And", [likely, graph.node("Or", [wide, long])])
        return graph.node("And", [unsettled, graph.node("Not", [self._ignored])])

    def _scatter(self, graph: GraphBuilder, leading: _Leading, output: str) -> None:
        """Put what is kept where its tokens are; where only min_p drops any, it has done so."""
        nothing = graph.node("Sub", ["chances", "chances"])
        scattered = graph.node("ScatterElements", [nothing, leading.order, leading.kept], axis=1)
        unsorted = graph.node("And", [self._no_k, self._no_p])
        graph.node("Where", [unsorted, self._likely_chances, scattered], [output])

    def _branch(self, graph: GraphBuilder, output: str) -> onnx.GraphProto:
        return graph.graph([], [tensor(output, TensorProto.FLOAT, ["B", self._vocabulary])])

    def _aligned(self, graph: GraphBuilder, value: str) -> str:
        """[B, V] with zeros behind it."""
        missing = -self._vocabulary % ALIGNED
        return graph.node("Pad", [value, graph.integers([0, 0, 0, missing])]) if missing else value

    @staticmethod
    def _count(graph: GraphBuilder, value: str) -> str:
        """How many of a row are true, int32 [B, 1]."""
        ones = graph.node("Cast", [value], to=TensorProto.INT32)
        return graph.node("ReduceSum", [ones, graph.integers([1])], keepdims=1)

    @staticmethod
    def _last(graph: GraphBuilder, value: str, count: int) -> str:
        """The last of `count` columns, [B, 1]."""
        return graph.node("Gather", [value, graph.integers([count - 1])], axis=1)

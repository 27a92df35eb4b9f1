"""Every order in which the parts of a state dict can follow one another, judged by widths.

A chain leads from the embedding [V, E] (or one-hot tokens, V wide) over every part to the head
[V, N]: each part reads as many elements as the one before it puts out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unrolled_export.readers.parts import Matrix, Norm, Part
from unrolled_export.readers.recurrent import Recurrent

_MOST_STEPS = 20_000
"""How long to search before giving up: real models need a few dozen."""
_NUMBER = re.compile(r"_?([0-9]+)")


class TooManyOrders(ValueError):
    """The widths allow more orders than are worth looking at."""


@dataclass(frozen=True)
class Chain:
    """One reading of a state dict."""

    embedding: Matrix | None
    """None for one-hot tokens."""
    parts: tuple[Part, ...]
    head: Matrix
    """The embedding itself where the weights are tied."""
    head_bias: str | None

    @property
    def is_tied(self) -> bool:
        return self.embedding is self.head

    @property
    def recurrent(self) -> tuple[Recurrent, ...]:
        return tuple(part for part in self.parts if isinstance(part, Recurrent))

    @property
    def before(self) -> tuple[Matrix | Norm, ...]:
        """What stands before the first recurrent module."""
        first = self.parts.index(self.recurrent[0])
        return tuple(part for part in self.parts[:first] if not isinstance(part, Recurrent))

    @property
    def after(self) -> tuple[Matrix | Norm, ...]:
        """What stands after the last recurrent module."""
        last = self.parts.index(self.recurrent[-1])
        return tuple(part for part in self.parts[last:] if not isinstance(part, Recurrent))

    @property
    def free(self) -> tuple[Matrix | Norm, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Recurrent))


def find_chains(
    matrices: Sequence[Matrix], parts: Sequence[Part], lone_biases: Sequence[tuple[str, int]]
) -> tuple[Chain, ...]:
    """Every chain that uses all of `matrices` and `parts`.

    Where names number the parts (`fc1`, `fc2`; `layers.0`, `layers.1`), in this order if the
    widths allow it. `lone_biases` are names and sizes of biases without a weight: of a head
    whose tied weight the file does not repeat. Raises TooManyOrders.
    """
    for by_number in (True, False):
        chains = tuple(_Search(matrices, parts, by_number).chains())
        if chains:
            return tuple(_with_lone_bias(chain, lone_biases) for chain in chains)
    return ()


class _Search:
    """One search; `by_number` keeps to the numbers in names."""

    def __init__(self, matrices: Sequence[Matrix], parts: Sequence[Part], by_number: bool) -> None:
        self._matrices = matrices
        self._parts = parts
        names = [part.name for part in (*matrices, *parts)] if by_number else []
        self._later = {one: {name for name in names if _precedes(one, name)} for one in names}
        self._steps = 0

    def chains(self) -> Iterator[Chain]:
        for embedding in (None, *self._matrices):
            for head in self._matrices:
                if embedding is not None and not _may_be_embedding(embedding, head):
                    continue
                others = [
                    part for part in self._matrices if part is not head and part is not embedding
                ]
                start = head.outputs if embedding is None else embedding.inputs
                for order in self._orders(start, (), (*others, *self._parts), embedding, head):
                    yield Chain(embedding, order, head, head.bias)

    def _orders(
        self,
        width: int,
        done: tuple[Part, ...],
        left: tuple[Part, ...],
        embedding: Matrix | None,
        head: Matrix,
    ) -> Iterator[tuple[Part, ...]]:
        """Every way to go on from `done`, whose output is `width` wide, over all of `left`."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise TooManyOrders
        if not left and width == head.inputs and self._in_order(embedding, done, head):
            yield done
        for part in left:
            if part.inputs == width and _may_follow(part, done) and not self._waits(part, left):
                others = tuple(other for other in left if other is not part)
                yield from self._orders(part.outputs, (*done, part), others, embedding, head)

    def _waits(self, part: Part, left: Sequence[Part]) -> bool:
        """Whether a part that is left has a lower number."""
        return any(self._precedes(other.name, part.name) for other in left)

    def _in_order(self, embedding: Matrix | None, parts: Sequence[Part], head: Matrix) -> bool:
        """Whether the numbers also suit the embedding and the head, unless these are one."""
        if embedding is head:
            return True
        chain = [part.name for part in (*([embedding] if embedding else []), *parts, head)]
        is_first = embedding is None or not any(self._precedes(name, chain[0]) for name in chain)
        return is_first and not any(self._precedes(chain[-1], name) for name in chain)

    def _precedes(self, one: str, other: str) -> bool:
        return other in self._later.get(one, ())


def _may_be_embedding(embedding: Matrix, head: Matrix) -> bool:
    if embedding is head:
        return True
    return embedding.outputs == head.outputs and embedding.bias is None


def _may_follow(part: Part, done: tuple[Part, ...]) -> bool:
    """Whether a model can be served that has `part` after `done`: between recurrent layers there
    is room for a norm alone, and nothing normalises twice."""
    if not done:
        return True
    if isinstance(part, Norm):
        return not isinstance(done[-1], Norm)
    if isinstance(part, Matrix):
        return True
    modules = [index for index, other in enumerate(done) if isinstance(other, Recurrent)]
    return not modules or all(isinstance(other, Norm) for other in done[modules[-1] + 1 :])


def _precedes(one: str, other: str) -> bool:
    """Whether two paths part at components that differ in a number, which is lower in `one`."""
    for first, second in zip(one.split("."), other.split("."), strict=False):
        if first != second:
            is_family = _NUMBER.sub("", first) == _NUMBER.sub("", second)
            return is_family and _numbers(first) < _numbers(second)
    return False


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]


def _with_lone_bias(chain: Chain, lone_biases: Sequence[tuple[str, int]]) -> Chain:
    if not chain.is_tied or chain.head_bias is not None:
        return chain
    fitting = [name for name, size in lone_biases if size == chain.head.outputs]
    return replace(chain, head_bias=fitting[0]) if len(fitting) == 1 else chain

"""Every order in which the parts of a state dict can follow one another, judged by widths.

A chain leads from the embedding [V, E] (or one-hot tokens, V wide) over every part to the head
[V, N]: each part reads as many elements as the one before it puts out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from unrolled_export.readers.state_dicts.ends import Ends
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part
from unrolled_export.readers.state_dicts.recurrent import Recurrent

_MOST_STEPS = 20_000
"""How long to search before giving up: real models need a few dozen."""
_NUMBER = re.compile(r"_?([0-9]+)")


class TooManyOrders(ValueError):
    """The widths allow more orders than are worth looking at."""


@dataclass(frozen=True)
class Chain:
    """One reading of a state dict."""

    ends: Ends
    parts: tuple[Part, ...]
    head_bias: str | None

    @property
    def is_tie_assumed(self) -> bool:
        """Whether the embedding is the head for want of another, and nothing shows that it is."""
        return self.ends.is_tied and self.head_bias is None and not self.ends.is_tie_seen

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
    def tensors(self) -> frozenset[str]:
        """Names of those that the chain takes, beside those of recurrent modules."""
        ends = (self.ends.head, *(() if self.ends.embedding is None else (self.ends.embedding,)))
        names = {name for part in (*self.free, *ends) for name in part.tensors}
        return frozenset(names if self.head_bias is None else names | {self.head_bias})

    @property
    def free(self) -> tuple[Matrix | Norm, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Recurrent))


def find_chains(
    ends: Ends, parts: Sequence[Part], by_number: bool, steps: Iterator[int]
) -> Iterator[Chain]:
    """Every chain from one end to the other over all of `parts`.

    `by_number` keeps to the numbers in names: `fc1` before `fc2`, `layers.0` before `layers.1`.
    `steps` counts on over all searches for one file. Raises TooManyOrders.
    """
    for order in _Search(ends, parts, by_number, steps).orders():
        yield Chain(ends, order, ends.head.bias)


class _Search:
    """One search."""

    def __init__(
        self, ends: Ends, parts: Sequence[Part], by_number: bool, steps: Iterator[int]
    ) -> None:
        self._ends = ends
        self._parts = tuple(parts)
        self._names = [part.name for part in parts]
        names = [*self._names, ends.head.name, *([ends.embedding.name] if ends.embedding else [])]
        self._earlier = {
            one: {name for name in names if by_number and _precedes(name, one)} for one in names
        }
        self._steps = steps

    def orders(self) -> Iterator[tuple[Part, ...]]:
        """Every order of the parts."""
        embedding, head = self._ends.embedding, self._ends.head
        if self._is_numbered_otherwise():
            return
        yield from self._extended((), head.outputs if embedding is None else embedding.inputs)

    def _is_numbered_otherwise(self) -> bool:
        """Whether by its number the embedding comes after a part, or the head before one.

        (Their own two numbers tell nothing: `w1` may be either.)
        """
        embedding, head = self._ends.embedding, self._ends.head
        if embedding is head:
            return False
        if any(head.name in self._earlier[name] for name in self._names):
            return True
        return embedding is not None and bool(self._earlier[embedding.name] - {head.name})

    def _extended(self, done: tuple[Part, ...], width: int) -> Iterator[tuple[Part, ...]]:
        """Every way to go on from `done`, whose output is `width` wide, over all other parts."""
        if next(self._steps) > _MOST_STEPS:
            raise TooManyOrders
        left = [part for part in self._parts if part not in done]
        if not left and width == self._ends.head.inputs:
            yield done
        for part in left:
            if part.inputs == width and _may_follow(part, done) and not self._waits(part, left):
                yield from self._extended((*done, part), part.outputs)

    def _waits(self, part: Part, left: Sequence[Part]) -> bool:
        """Whether a part that is left has a lower number."""
        return any(other.name in self._earlier[part.name] for other in left)


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


@lru_cache(maxsize=16_384)
def _precedes(one: str, other: str) -> bool:
    """Whether two paths part at components that differ in a number, which is lower in `one`."""
    for first, second in zip(one.split("."), other.split("."), strict=False):
        if first != second:
            is_family = _NUMBER.sub("", first) == _NUMBER.sub("", second)
            return is_family and _numbers(first) < _numbers(second)
    return False


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]

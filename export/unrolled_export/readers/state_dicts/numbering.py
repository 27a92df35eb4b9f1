"""What the numbers in names tell of modules that have no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def is_place_empty(before: str, names: Sequence[str]) -> bool:
    """Whether a module without weights, an activation or a dropout, stands right before `before`.

    nn.Sequential numbers its modules: after `fc.0` alone, `fc.3` has two before it. `names` are
    all that have weights, as dotted paths.
    """
    parent, number = _numbered(before)
    if number is None or number == 0:
        return False
    return number - 1 not in set(_numbers_in(parent, names))


def are_neighbours(one: str, other: str) -> bool:
    """Whether two modules follow one another in a list, by their numbers."""
    (parent, number), (same, following) = _numbered(one), _numbered(other)
    return number is not None and parent == same and following == number + 1


def _numbered(name: str) -> tuple[str, int | None]:
    """Of a path that ends in a number: what is before it, and the number."""
    parent, _, last = name.rpartition(".")
    return parent, int(last) if parent and last.isdecimal() else None


def _numbers_in(parent: str, names: Sequence[str]) -> Iterator[int]:
    for name in names:
        inner = name.removeprefix(f"{parent}.").partition(".")[0]
        if name.startswith(f"{parent}.") and inner.isdecimal():
            yield int(inner)

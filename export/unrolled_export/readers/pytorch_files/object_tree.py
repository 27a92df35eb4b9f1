"""Walking through what a pickle held: maps, lists and inert objects, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from unrolled_export.readers.pickling.inert import Opaque, Reference

_DEEPEST = 24
"""Models and vocabularies do not lie deeper; linked lists and trees in a pickle may."""
_LONGEST_NAME = 100


@dataclass(frozen=True, eq=False)
class Place:
    """A value that holds others, and where it was found."""

    value: object
    path: tuple[str, ...] = ()
    """Keys, attributes and positions that lead there."""
    parent: Place | None = None

    @property
    def name(self) -> str:
        """The path for messages and `--set`."""
        return ".".join(self.path) or "."

    def ancestors(self) -> Iterator[Place]:
        """Those that hold it, the nearest first."""
        place = self.parent
        while place is not None:
            yield place
            place = place.parent


def walk(tree: object) -> Iterator[Place]:
    """Every map, list, tuple and object in a tree, and every other value that is not plain.

    Outer ones come first; what lies in several places comes once.
    """
    waiting = deque([Place(tree)])
    seen: set[int] = set()
    while waiting:
        place = waiting.popleft()
        if id(place.value) in seen:
            continue
        seen.add(id(place.value))
        yield place
        if len(place.path) < _DEEPEST:
            waiting.extend(
                Place(value, (*place.path, name), place)
                for name, value in children(place.value)
                if not is_plain(value) and id(value) not in seen
            )


def children(value: object) -> Iterator[tuple[str, object]]:
    """What a value holds, and under which names."""
    if isinstance(value, dict):
        yield from ((key_name(key), inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), inner) for index, inner in enumerate(value))
    elif isinstance(value, Opaque):
        for part in (value.state, value.entries, value.items, value.arguments):
            yield from children(part)


def is_plain(value: object) -> bool:
    """Whether it holds nothing and is no tensor."""
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes, Reference))


def key_name(key: object) -> str:
    """A key as part of a path."""
    if isinstance(key, Reference):
        return key.name
    short = isinstance(key, str) and len(key) <= _LONGEST_NAME and key.isprintable()
    if short or isinstance(key, bool) or (isinstance(key, int) and abs(key) < 2**63):
        return str(key)
    return f"({type(key).__name__})"

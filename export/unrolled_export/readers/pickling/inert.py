"""What the objects of a pickle become where nothing that it names is imported or called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reference:
    """A class or function, by name only."""

    module: str
    name: str

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Opaque:
    """An instance of a class of which nothing but the name is known."""

    class_name: str
    """With its module: `model.CharRNN`."""
    arguments: tuple[object, ...] = ()
    """That its constructor would have got."""
    state: Mapping[str, object] = field(default_factory=dict)
    """Its attributes."""
    items: list[object] = field(default_factory=list)
    """Of a list or set; also a state that is not a map of attributes."""
    entries: dict[object, object] = field(default_factory=dict)
    """Of a map."""

    @property
    def short_name(self) -> str:
        """The class's own name: `CharRNN`."""
        return self.class_name.rpartition(".")[2]


@dataclass(frozen=True, eq=False)
class OddTensor:
    """A tensor of a kind that is not read."""

    kind: str
    """In words that follow "a": `sparse tensor`."""

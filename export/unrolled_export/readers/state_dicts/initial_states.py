"""States before any token that were trained with the weights, which only names tell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unrolled_export.network import Floats, State
from unrolled_export.readers.tensors import Tensors

_NAME = re.compile(
    r"(?:.*[._])?(?:"
    r"(?P<first>h|c|hx|cx|hidden|cell)(?:_?state)?_?(?:0|init|initial)"
    r"|(?:init|initial|learned)_?(?P<second>h|c|hidden|cell)(?:_?state)?_?0?"
    r")(?:[._](?P<number>[0-9]+))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class InitialStates:
    """The initial states that a file has."""

    names: dict[str, list[str]]
    """Of the tensors, by `h` or `c`, bottom layer first."""
    rows: dict[str, list[Floats]]
    """By `h` or `c`, bottom layer first."""


def take_initial(tensors: Tensors) -> InitialStates:
    """Take the initial states.

    A tensor `h0`, `c_init` or the like is [L, 1, H] or [L, H] for L layers; several of a kind are
    for one layer after another. Raises CheckpointError where they are for more than one sequence.
    """
    names = _names_by_kind(tensors)
    return InitialStates(names, {kind: _rows(tensors, names[kind]) for kind in names})


def fitted_initial(
    tensors: Tensors, found: InitialStates, states: Sequence[State]
) -> tuple[Floats, ...] | None:
    """The initial states in the order of `states`; None where the file has none.

    A kind without tensors starts at zero. Raises CheckpointError where they do not fit.
    """
    for kind, names in found.names.items():
        sizes = [state.size for state in states if state.kind == kind]
        if [len(row) for row in found.rows[kind]] != sizes:
            shown = ", ".join(tensors.shown(name) for name in names)
            raise tensors.error(f"{shown} should be the initial {kind} of layers of {sizes} units")
    if not found.names:
        return None
    return tuple(
        found.rows[state.kind][state.layer]
        if state.kind in found.rows
        else np.zeros(state.size, np.float32)
        for state in states
    )


def assumed_of_initial(found: InitialStates, states: Sequence[State]) -> Iterator[str]:
    """What is taken for granted of states that a file has."""
    names = [name for kind in sorted(found.names, reverse=True) for name in found.names[kind]]
    missing = sorted({state.kind for state in states} - found.names.keys())
    if names:
        zero = f", and that of {missing[0]} is zero" if missing else ""
        yield f"the first state is {' and '.join(names)} unchanged{zero}"


def _names_by_kind(tensors: Tensors) -> dict[str, list[str]]:
    """Names of initial states by `h` or `c`, bottom layer first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in tensors.left:
        if match := _NAME.fullmatch(name):
            kind = (match["first"] or match["second"])[0].lower()
            found.setdefault("c" if kind == "c" else "h", []).append(
                (int(match["number"] or 0), name)
            )
    return {kind: [name for _, name in sorted(numbered)] for kind, numbered in found.items()}


def _rows(tensors: Tensors, names: Sequence[str]) -> list[Floats]:
    """The states of one kind, by layer. Raises CheckpointError where they are of several rows."""
    rows: list[Floats] = []
    for name in names:
        shape = tensors.shape(name)
        if len(shape) not in (1, 2, 3) or (len(shape) == 3 and shape[1] != 1):
            remedy = f"add --set {shlex.quote(f'ignore={name}')}"
            raise tensors.error(
                f"{tensors.shown(name)} is not the initial state of one sequence: where it only is "
                f"what the last batch left, {remedy}"
            )
        rows.extend(tensors.take(name).reshape(-1, shape[-1]))
    return rows

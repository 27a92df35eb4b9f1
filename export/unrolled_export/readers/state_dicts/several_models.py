"""State dicts that hold a model several times: its average beside it, or an ensemble."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from unrolled_export.readers.state_dicts.recurrent import RECURRENT_FIELD
from unrolled_export.readers.tensors import Tensors

_Matrices = dict[str, str]
"""The names of matrices by what follows the prefix of their model, without dots: averages are
kept under names without them."""


def refuse_several(tensors: Tensors) -> None:
    """Raise CheckpointError where all matrices are those of models of the same shapes."""
    models = _by_prefix([name for name in tensors.left if len(tensors.shape(name)) == 2])
    first, *others = models.values()
    if not others or not _is_whole(first) or all(_is_same(tensors, first, it) for it in others):
        return
    if all(_has_shapes_of(tensors, first, it) for it in others):
        patterns = [f"{prefix}*" for prefix in models]
        setting = shlex.quote(f"ignore={','.join(patterns[1:])}")
        raise tensors.error(
            f"holds {len(patterns)} models of the same shapes, {' and '.join(patterns)}: for the "
            f"first, add --set {setting}"
        )


def _by_prefix(names: list[str]) -> Mapping[str, _Matrices]:
    """By the first part of the names in which they differ; empty for those that have none."""
    start = ""
    while True:
        models: dict[str, _Matrices] = {}
        for name in names:
            head, dot, rest = name.removeprefix(start).partition(".")
            prefix = f"{start}{head}{dot}" if dot else start
            models.setdefault(prefix, {})[(rest or head).replace(".", "")] = name
        if len(models) != 1 or start in models:
            return models or {start: {}}
        (start,) = models


def _is_whole(model: _Matrices) -> bool:
    """Whether it has recurrent weights and others."""
    recurrent = [name for name in model if RECURRENT_FIELD.search(name)]
    return 0 < len(recurrent) < len(model)


def _has_shapes_of(tensors: Tensors, one: _Matrices, other: _Matrices) -> bool:
    return one.keys() == other.keys() and all(
        tensors.shape(one[key]) == tensors.shape(other[key]) for key in one
    )


def _is_same(tensors: Tensors, one: _Matrices, other: _Matrices) -> bool:
    return one.keys() == other.keys() and all(tensors.same(one[key], other[key]) for key in one)

"""Weights that a state dict holds as the parts they are computed from at every step.

Weight normalisation (Salimans and Kingma 2016): w = g v / ||v||, the norm over each row, each
column or all, as the shape of g tells. Spectral normalisation (Miyato et al. 2018), at inference:
w = w0 / (u^T w0 v). Both are computed in float64 and rounded once to float32. Pruning
(torch.nn.utils.prune): w = w0 * mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Floats
from unrolled_export.readers.tensors import Tensors

_NEW = re.compile(r"(?P<start>.*?)parametrizations\.(?P<field>\w+)\.(?P<rest>.+)")
_OLD = re.compile(r"(?P<weight>.*(?:weight|bias)\w*)_(?P<rest>g|v|u|orig|mask)")
_WEIGHT_NORM = ({"g", "v"}, {"original0", "original1"})
_SPECTRAL_NORM = ({"orig", "u", "v"}, {"original", "0._u", "0._v"})
_PRUNED = {"orig", "mask"}


@dataclass(frozen=True)
class _Parts:
    """The tensors of one weight, by the ends of their names."""

    weight: str
    """What the weight is called without the parametrization."""
    names: dict[str, str]

    @property
    def is_pruned(self) -> bool:
        return self.names.keys() == _PRUNED


def with_plain_weights(tensors: Tensors) -> Tensors:
    """The same tensors, each parametrized weight in place of its parts, and the rest as it was.

    Raises CheckpointError for a parametrization that is not read.
    """
    found = list(_parametrized(tensors))
    return _Plain(tensors, found) if found else tensors


class _Plain(Tensors):
    """Tensors whose parametrized weights have been computed."""

    def __init__(self, tensors: Tensors, parametrized: list[_Parts]) -> None:
        self._normalised = [parts.weight for parts in parametrized if not parts.is_pruned]
        self._pruned = [parts.weight for parts in parametrized if parts.is_pruned]
        arrays = tensors.arrays()
        for parts in parametrized:
            arrays[parts.weight] = _weight(tensors, parts)
            for name in parts.names.values():
                del arrays[name]
        super().__init__(tensors.file, arrays)

    @property
    def aside(self) -> tuple[str, ...]:
        return (
            *super().aside,
            *_phrase(self._normalised, "computed from what normalises it"),
            *_phrase(self._pruned, "as it was pruned"),
        )


def _phrase(weights: Sequence[str], what: str) -> Iterator[str]:
    if weights:
        yield f"{' and '.join(weights)} {what}"


def _parametrized(tensors: Tensors) -> Iterator[_Parts]:
    found: dict[str, dict[str, str]] = {}
    for name in tensors.left:
        new, old = _NEW.fullmatch(name), _OLD.fullmatch(name)
        if new:
            found.setdefault(new["start"] + new["field"], {})[new["rest"]] = name
        elif old:
            found.setdefault(old["weight"], {})[old["rest"]] = name
    for weight, names in found.items():
        if names.keys() < {"g", "u", "v"} and names.keys() != {"g", "v"}:
            continue  # Called alike, and nothing more.
        if names.keys() not in (*_WEIGHT_NORM, *_SPECTRAL_NORM, _PRUNED):
            shown = " and ".join(tensors.shown(name) for name in list(names.values())[:3])
            raise tensors.error(
                f"{shown}: {weight} is computed from these by other than weight norm (g and v), "
                "spectral norm (the original, u and v) or pruning (the original and a mask), which "
                "this release does not serve"
            )
        if weight in tensors:
            first = next(iter(names.values()))
            raise tensors.error(f"holds both {weight} and {first}, from which it is computed")
        yield _Parts(weight, names)


def _weight(tensors: Tensors, parts: _Parts) -> Floats:
    """The weight that a model computes from the parts."""
    names = parts.names
    if parts.is_pruned:
        return _masked(tensors, names["orig"], names["mask"])
    with np.errstate(all="ignore"):  # What is not finite is refused where it is taken.
        if names.keys() in _WEIGHT_NORM:
            g, v = (names[end] for end in sorted(names))
            weight = _weight_normed(tensors, g, v)
        else:
            u, v = (names[end] for end in sorted(names) if end.endswith(("u", "v")))
            (original,) = set(names.values()) - {u, v}
            weight = _spectrally_normed(tensors, original, u, v)
        return weight.astype(np.float32)


def _masked(tensors: Tensors, original: str, mask: str) -> Floats:
    tensors.check_shape(mask, tensors.shape(original), tensors.shown(original))
    return tensors.take(original) * tensors.take(mask)


def _weight_normed(tensors: Tensors, g: str, v: str) -> NDArray[np.float64]:
    rows, columns = tensors.matrix_shape(v)
    axes: dict[tuple[int, ...], int | None] = {(rows, 1): 1, (1, columns): 0, (): None}
    if tensors.shape(g) not in axes:
        fitting = f"[{rows}, 1], [1, {columns}] or []"
        raise tensors.error(f"{tensors.shown(g)} should be {fitting}, to fit {tensors.shown(v)}")
    direction = tensors.take(v).astype(np.float64)
    norms = np.linalg.norm(direction, axis=axes[tensors.shape(g)], keepdims=True)
    scaled: NDArray[np.float64] = tensors.take(g) * direction / norms
    return scaled


def _spectrally_normed(tensors: Tensors, original: str, u: str, v: str) -> NDArray[np.float64]:
    rows, columns = tensors.matrix_shape(original)
    tensors.check_shape(u, (rows,), tensors.shown(original))
    tensors.check_shape(v, (columns,), tensors.shown(original))
    weight = tensors.take(original).astype(np.float64)
    scaled: NDArray[np.float64] = weight / (tensors.take(u) @ weight @ tensors.take(v))
    return scaled

"""Operations on the vector of a token, folded into the table of embeddings or the next product.

Everything is computed in float64 and rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Activation, Dense, Floats, Layer, LayerNorm, Stage

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """scale * x + shift, element by element: what batch normalisation is at inference."""

    scale: Doubles
    shift: Doubles


Operation = LayerNorm | Dense | Affine | Activation


def batch_norm(
    weight: Floats, bias: Floats, mean: Floats, variance: Floats, epsilon: float
) -> Affine:
    """Ioffe and Szegedy (2015) with running statistics:
    (x - mean) / sqrt(variance + epsilon) * weight + bias."""
    scale = _double(weight) / np.sqrt(_double(variance) + epsilon)
    return Affine(scale, _double(bias) - _double(mean) * scale)


def folded_table(table: Floats, operations: Iterable[Operation]) -> Floats:
    """Every row of `table` after the operations."""
    return _single(_folded(_double(table), operations))


def folded_one_hot(vocabulary: int, operations: Iterable[Operation]) -> Floats:
    """Every one-hot vector after the operations, of which there is at least one."""
    first, *others = operations
    if isinstance(first, Dense):
        # What it makes of row k of the identity is its column k.
        table = _activated(first.activation, _double(first.weight).T + first.bias)
        return _single(_folded(table, others))
    return folded_table(np.eye(vocabulary, dtype=np.float32), (first, *others))


def folded_layer(layer: Layer, operation: Affine | LayerNorm) -> Layer:
    """The layer that reads its input through the operation."""
    if isinstance(operation, LayerNorm):
        return replace(layer, norm=operation)
    weight, bias = _product_after(operation, layer.weight_ih, layer.bias_ih)
    return replace(layer, weight_ih=weight, bias_ih=bias)


def folded_stages(
    width: int, operations: Iterable[Operation], head: Dense
) -> tuple[tuple[Stage, ...], Dense]:
    """The stages that stand for operations on `width` elements, and the head that follows.

    No layer norm may follow an Affine.
    """
    stages: list[Stage] = []
    pending: Affine | None = None
    for operation in operations:
        if isinstance(operation, Affine):
            pending = operation
        elif isinstance(operation, LayerNorm):
            stages.append(operation)
        elif isinstance(operation, Dense):
            stages.append(_dense_after(pending, operation))
            pending = None
        else:
            units = len(stages[-1].bias) if stages else width
            _activate(stages, pending, operation, units)
            pending = None
    return tuple(stages), _dense_after(pending, head)


def _folded(values: Doubles, operations: Iterable[Operation]) -> Doubles:
    for operation in operations:
        values = _applied(operation, values)
    return values


def _activate(
    stages: list[Stage], pending: Affine | None, activation: Activation, units: int
) -> None:
    """Apply an activation to what `pending` makes of the last stage's `units` elements."""
    last = stages[-1] if stages else None
    if pending is None and isinstance(last, Dense) and last.activation is Activation.LINEAR:
        stages[-1] = replace(last, activation=activation)
    else:
        identity = Dense(np.eye(units, dtype=np.float32), np.zeros(units, np.float32), activation)
        stages.append(_dense_after(pending, identity))


def _dense_after(affine: Affine | None, dense: Dense) -> Dense:
    if affine is None:
        return dense
    weight, bias = _product_after(affine, dense.weight, dense.bias)
    return replace(dense, weight=weight, bias=bias)


def _product_after(affine: Affine, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Weight and bias of `weight (scale * x + shift) + bias`."""
    product = _double(weight)
    return _single(product * affine.scale), _single(product @ affine.shift + _double(bias))


def _applied(operation: Operation, values: Doubles) -> Doubles:
    """The operation on every row."""
    if isinstance(operation, Affine):
        return values * operation.scale + operation.shift
    if isinstance(operation, Activation):
        return _activated(operation, values)
    weight, bias = _double(operation.weight), _double(operation.bias)
    if isinstance(operation, Dense):
        return _activated(operation.activation, values @ weight.T + bias)
    centred = values - values.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normal: Doubles = centred / np.sqrt(variance + operation.epsilon) * weight + bias
    return normal


def _activated(activation: Activation, values: Doubles) -> Doubles:
    if activation is Activation.RELU:
        return np.maximum(values, 0)
    if activation is Activation.TANH:
        return np.tanh(values)
    if activation is Activation.SIGMOID:
        # In terms of tanh, which does not overflow.
        return 0.5 * (1 + np.tanh(0.5 * values))
    return values


def _double(array: NDArray[Any]) -> Doubles:
    return array.astype(np.float64)


def _single(array: Doubles) -> Floats:
    return np.ascontiguousarray(array, dtype=np.float32)

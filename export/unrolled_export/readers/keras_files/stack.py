"""A chain of Keras layers as a Network.

Below the first recurrent layer everything is computed per token and becomes the embedding. Between
recurrent layers a layer normalisation may stand, and what is affine after it (batch normalisation
at inference, a linear Dense) is folded into the product of the layer above. Above the last one,
normalisations and Dense layers become stages and the last Dense the head. Products are folded in
float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import SettingNeeded
from unrolled_export.network import (
    Activation,
    Dense,
    Floats,
    Gate,
    Layer,
    LayerNorm,
    Network,
    Stage,
)
from unrolled_export.readers.keras_files.recurrent import (
    RECURRENT,
    Part,
    Recurrence,
    read_recurrent,
)
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

Doubles = NDArray[np.float64]

IGNORED = (
    "InputLayer",
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
)
"""Classes that do nothing at inference."""
_OUTPUTS = ("softmax", "softmax_v2", "log_softmax", "log_softmax_v2")
_MAX_TABLE = 1 << 28
_MAX_DIAGONAL = 1 << 13
_FORMS_OF_A_NUMBER = ("scaled-id", "id")


@dataclass(frozen=True)
class _Scale:
    """scale * x + shift: batch normalisation at inference."""

    scale: Doubles
    shift: Doubles


@dataclass(frozen=True)
class _Projection:
    """weight x + bias."""

    weight: Doubles
    """[M, N]"""
    bias: Doubles


_Linear = _Scale | _Projection


class Stack:
    """Takes layers from the input to the output. Every method raises CheckpointError."""

    def __init__(
        self, tensors: Tensors, settings: Settings, hard_sigmoid: Callable[[], Gate]
    ) -> None:
        """`hard_sigmoid` tells which one the file's Keras means, or raises."""
        self.assumptions: list[str] = []
        self._tensors = tensors
        self._settings = settings
        self._hard_sigmoid = hard_sigmoid
        self._table: Doubles | None = None
        """[V, width] of what the first layer reads; None for one-hot tokens."""
        self._layers: list[Layer] = []
        self._recurrence: Recurrence | None = None
        self._above: list[LayerNorm | _Linear | Dense] = []
        """What stands on the last recurrent layer so far."""
        self._width: int | None = None
        self._form_of_number: str | None = None
        """What stands for a token where it is read as one number."""
        self._untrained = 0
        self._ends_sequence: str | None = None
        self._is_finished = False

    def add(self, part: Part) -> None:
        kind = part.spec.kind
        if kind in IGNORED:
            return
        if self._is_finished:
            raise part.error(self._tensors, "stands above the softmax")
        if kind in RECURRENT:
            self._add_recurrent(part)
        elif kind in _HANDLERS:
            _HANDLERS[kind](self, part)
        else:
            raise part.error(self._tensors, "is of a class that this release does not read")

    def network(self) -> Network:
        """The network of the layers added."""
        if self._recurrence is None:
            raise self._tensors.error("no recurrent layer")
        if not self._above or not isinstance(head := self._above[-1], _Projection):
            raise self._tensors.error(
                "the model does not end in a Dense layer with softmax or without activation"
            )
        embedding = self._embedding(len(head.weight))
        size = self._layers[0].input_size if embedding is None else len(embedding)
        if len(head.weight) != size:
            raise self._tensors.error(
                f"the model reads {size} tokens but gives probabilities to {len(head.weight)}"
            )
        return Network(
            self._recurrence.cell,
            embedding,
            tuple(self._layers),
            self._floats(head.weight),
            self._floats(head.bias),
            self._tensors.numbers_taken - self._untrained,
            tuple(self._stage(item) for item in self._above[:-1]),
            self._recurrence.gate,
            self._recurrence.reset_after,
        )

    def _embedding(self, size: int) -> Floats | None:
        """[V, I]; None for one-hot tokens."""
        if self._form_of_number is not None:
            scale = size if self._form_of_number == "scaled-id" else 1
            return self._floats(np.arange(size)[:, None] / scale)
        return None if self._table is None else self._floats(self._table)

    def _add_embedding(self, part: Part) -> None:
        if self._table is not None or self._layers:
            raise part.error(self._tensors, "is not the first layer")
        table = self._take(part, "embeddings", 2)
        if part.spec.config.get("mask_zero"):
            self.assumptions.append("token 0, which training skipped (mask_zero), is a step")
        self._set_table(part, table)

    def _add_recurrent(self, part: Part) -> None:
        if self._ends_sequence is not None:
            raise part.error(self._tensors, f"reads the last step alone of {self._ends_sequence}")
        recurrence, layer = read_recurrent(part, self._tensors, self._hard_sigmoid)
        if self._recurrence not in (None, recurrence):
            raise part.error(
                self._tensors, f"is {recurrence}, but the layer below {self._recurrence}"
            )
        if self._layers:
            self._check_width(part, layer.input_size)
            layer = self._folded(part, layer)
        else:
            self._read_input(part, layer)
        self._recurrence, self._above = recurrence, []
        self._layers.append(layer)
        self._width = layer.hidden_size
        if part.spec.config.get("return_sequences") is False:
            self._ends_sequence = part.spec.name
            self.assumptions.append("trained on windows that start from the zero state")

    def _read_input(self, part: Part, layer: Layer) -> None:
        """Of the first recurrent layer."""
        if self._table is not None:
            self._check_width(part, layer.input_size)
        elif layer.input_size == 1:
            self._form_of_number = self._settings.choice("input", _FORMS_OF_A_NUMBER)
            if self._form_of_number is None:
                raise SettingNeeded(
                    self._tensors.file,
                    f"layer {part.spec.name} reads a token as one number, and the file does not "
                    "tell whether that is its id over the number of tokens or its id",
                    "input",
                    _FORMS_OF_A_NUMBER,
                )

    def _folded(self, part: Part, layer: Layer) -> Layer:
        """A layer above the first, with what stands below it."""
        norm, linear = None, self._above
        if linear and isinstance(linear[0], LayerNorm):
            norm, linear = linear[0], linear[1:]
        weight, bias = layer.weight_ih.astype(np.float64), layer.bias_ih.astype(np.float64)
        for item in reversed(linear):
            if not isinstance(item, _Linear):
                raise part.error(
                    self._tensors,
                    "stands on more than a normalisation and linear layers, which this release "
                    "does not read between recurrent layers",
                )
            weight, bias = _after(item, weight, bias)
        if linear:
            layer = replace(layer, weight_ih=self._floats(weight), bias_ih=self._floats(bias))
        return replace(layer, norm=norm)

    def _add_dense(self, part: Part) -> None:
        weight = self._take(part, "kernel", 2).T
        self._check_units(part, len(weight))
        bias = self._take(part, "bias", 1) if "bias" in part.weights else np.zeros(len(weight))
        self._check_length(part, bias, len(weight))
        if self._layers or self._table is not None:
            self._check_width(part, weight.shape[1])
        if self._layers:
            self._put_projection(_Projection(weight, bias))
        elif self._table is None:
            self._set_table(part, weight.T + bias)
        else:
            self._check_table(part, len(self._table) * len(weight))
            self._set_table(part, self._table @ weight.T + bias)
        self._width = len(weight)
        self._activate(part, part.spec.config.get("activation", "linear"))

    def _put_projection(self, projection: _Projection) -> None:
        if self._above and isinstance(below := self._above[-1], _Scale):
            weight, bias = _after(below, projection.weight, projection.bias)
            self._above[-1] = _Projection(weight, bias)
        else:
            self._above.append(projection)

    def _add_activation(self, part: Part) -> None:
        self._activate(part, part.spec.config.get("activation"))

    def _add_softmax(self, part: Part) -> None:
        if part.spec.config.get("axis", -1) not in (-1, 2):
            raise part.error(self._tensors, "is not over the tokens")
        self._activate(part, "softmax")

    def _add_relu(self, part: Part) -> None:
        told = part.spec.config
        other = [key for key in ("threshold", "negative_slope") if told.get(key)]
        other += ["max_value"] if told.get("max_value") is not None else []
        if other:
            raise part.error(self._tensors, f"has a {other[0]}, which this release does not read")
        self._activate(part, Activation.RELU)

    def _activate(self, part: Part, name: object) -> None:
        if name in _OUTPUTS and self._layers:
            self._is_finished = True
        elif name not in tuple(Activation):
            raise part.error(
                self._tensors, f"has activation {name!r}, which this release does not read"
            )
        elif name != Activation.LINEAR:
            self._squash(part, Activation(str(name)))

    def _squash(self, part: Part, activation: Activation) -> None:
        if not self._layers:
            table = self._identity(part) if self._table is None else self._table
            self._set_table(part, _FUNCTIONS[activation](table))
        else:
            weight, bias = self._taken_product(part)
            self._above.append(Dense(self._floats(weight), self._floats(bias), activation))

    def _taken_product(self, part: Part) -> tuple[Doubles, Doubles]:
        """The product that an activation is applied to."""
        below = self._above[-1] if self._above else None
        if isinstance(below, _Scale | _Projection):
            self._above.pop()
            return _product(below)
        width = self._width_here(part)
        return np.eye(width), np.zeros(width)

    def _add_layer_norm(self, part: Part) -> None:
        if part.spec.config.get("rms_scaling"):
            raise part.error(self._tensors, "scales by the root mean square (rms_scaling)")
        self._check_axis(part)
        width = self._width_of_norm(part)
        norm = LayerNorm(
            self._floats(self._scale(part, "gamma", width, 1)),
            self._floats(self._scale(part, "beta", width, 0)),
            self._epsilon(part),
        )
        if self._layers:
            self._above.append(norm)
        else:
            table = self._identity(part, width) if self._table is None else self._table
            self._set_table(part, _normalised(table, norm))

    def _add_batch_norm(self, part: Part) -> None:
        self._check_axis(part)
        width = self._width_of_norm(part)
        gamma, beta = self._scale(part, "gamma", width, 1), self._scale(part, "beta", width, 0)
        mean, variance = self._take(part, "moving_mean", 1), self._take(part, "moving_variance", 1)
        self._check_length(part, mean, width)
        self._check_length(part, variance, width)
        self._untrained += 2 * width
        if (variance < 0).any():
            raise part.error(self._tensors, "has a variance below zero")
        scale = gamma / np.sqrt(variance + self._epsilon(part))
        self._put_scale(part, _Scale(scale, beta - mean * scale))

    def _put_scale(self, part: Part, item: _Scale) -> None:
        below = self._above[-1] if self._above else None
        if not self._layers:
            table = self._identity(part, len(item.scale)) if self._table is None else self._table
            self._set_table(part, table * item.scale + item.shift)
        elif isinstance(below, _Projection):
            weight = below.weight * item.scale[:, None]
            self._above[-1] = _Projection(weight, below.bias * item.scale + item.shift)
        elif isinstance(below, _Scale):
            shift = below.shift * item.scale + item.shift
            self._above[-1] = _Scale(below.scale * item.scale, shift)
        else:
            self._above.append(item)

    def _scale(self, part: Part, role: str, width: int, default: float) -> Doubles:
        if role not in part.weights:
            return np.full(width, default)
        values = self._take(part, role, 1)
        self._check_length(part, values, width)
        return values

    def _epsilon(self, part: Part) -> float:
        # The default of both of Keras' normalisations.
        epsilon = part.spec.config.get("epsilon", 1e-3)
        if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise part.error(self._tensors, f"has epsilon {epsilon!r}")
        return float(epsilon)

    def _check_axis(self, part: Part) -> None:
        """The axis of the units: the last of three, or of two above the last step alone."""
        axis = part.spec.config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        last = (-1, 2) if self._ends_sequence is None else (-1, 1)
        if axis not in last or isinstance(axis, bool):
            raise part.error(self._tensors, f"is over axis {axis!r}, not over the units")

    def _width_of_norm(self, part: Part) -> int:
        """Of a normalisation, from what it stands on or, over one-hot tokens, its weights."""
        if self._width is not None:
            return self._width
        for name in part.weights.values():
            return int(np.prod(self._tensors.shape(name)))
        raise part.error(self._tensors, "normalises one-hot tokens of unknown number")

    def _identity(self, part: Part, width: int | None = None) -> Doubles:
        """One-hot tokens as a table."""
        if width is None:
            raise part.error(self._tensors, "is applied to one-hot tokens")
        self._check_table(part, width * width)
        self._width = width
        return np.eye(width)

    def _set_table(self, part: Part, table: Doubles) -> None:
        self._table, self._width = table, table.shape[1]
        if not np.isfinite(self._floats(table)).all():
            raise part.error(self._tensors, "makes numbers beyond float32")

    def _check_table(self, part: Part, numbers: int) -> None:
        if numbers > _MAX_TABLE:
            raise part.error(self._tensors, f"would make an embedding of {numbers} numbers")

    def _width_here(self, part: Part) -> int:
        if self._width is None or self._width > _MAX_DIAGONAL:
            raise part.error(self._tensors, f"stands on {self._width} units without a product")
        return self._width

    def _check_width(self, part: Part, inputs: int) -> None:
        if inputs != self._width:
            raise part.error(
                self._tensors,
                f"reads {inputs} numbers a step, but what is below it gives {self._width}",
            )

    def _check_units(self, part: Part, units: int) -> None:
        told = part.spec.config.get("units", part.spec.config.get("output_dim", units))
        if told != units:
            raise part.error(
                self._tensors, f"should have {told!r} units, but its weights have {units}"
            )

    def _check_length(self, part: Part, vector: Doubles, length: int) -> None:
        if len(vector) != length:
            raise part.error(
                self._tensors, f"has a vector of {len(vector)} numbers where {length} would fit"
            )

    def _take(self, part: Part, role: str, dimensions: int) -> Doubles:
        if role not in part.weights:
            raise part.error(self._tensors, f"has no {role}")
        name = part.weights[role]
        if len(self._tensors.shape(name)) != dimensions:
            what = "matrix" if dimensions == 2 else "vector"
            raise self._tensors.error(f"{self._tensors.shown(name)} is not a {what}")
        return self._tensors.take(name).astype(np.float64)

    def _stage(self, item: LayerNorm | _Linear | Dense) -> Stage:
        if isinstance(item, LayerNorm | Dense):
            return item
        weight, bias = _product(item)
        return Dense(self._floats(weight), self._floats(bias))

    def _floats(self, values: Doubles) -> Floats:
        """Rounded, once. Raises CheckpointError where folding leaves the range of float32."""
        with np.errstate(over="ignore"):
            floats = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(floats).all():
            raise self._tensors.error("folding its layers into one makes numbers beyond float32")
        return floats


_HANDLERS: dict[str, Callable[[Stack, Part], None]] = {
    "Embedding": Stack._add_embedding,
    "Dense": Stack._add_dense,
    "TimeDistributedDense": Stack._add_dense,
    "Activation": Stack._add_activation,
    "Softmax": Stack._add_softmax,
    "ReLU": Stack._add_relu,
    "LayerNormalization": Stack._add_layer_norm,
    "BatchNormalization": Stack._add_batch_norm,
}
_FUNCTIONS: dict[Activation, Callable[[Doubles], Doubles]] = {
    Activation.RELU: lambda values: np.maximum(values, 0),
    Activation.TANH: np.tanh,
    Activation.SIGMOID: lambda values: 0.5 * (1 + np.tanh(0.5 * values)),
}


def _after(item: _Linear, weight: Doubles, bias: Doubles) -> tuple[Doubles, Doubles]:
    """The product weight x + bias of what `item` makes of x."""
    if isinstance(item, _Scale):
        return weight * item.scale, bias + weight @ item.shift
    return weight @ item.weight, bias + weight @ item.bias


def _product(item: _Linear) -> tuple[Doubles, Doubles]:
    """Weight and bias."""
    if isinstance(item, _Scale):
        return np.diag(item.scale), item.shift
    return item.weight, item.bias


def _normalised(table: Doubles, norm: LayerNorm) -> Doubles:
    centred = table - table.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + norm.epsilon)
    result: Doubles = centred / deviation * norm.weight + norm.bias
    return result

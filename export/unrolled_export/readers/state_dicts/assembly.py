"""A network from a chain of parts: takes their tensors, and folds what has no place of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from unrolled_export.errors import SettingError
from unrolled_export.network import Activation, Cell, Dense, Floats, Layer, LayerNorm, Network
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.activations import Activations
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.folding import (
    Operation,
    batch_norm,
    folded_layer,
    folded_one_hot,
    folded_stages,
    folded_table,
)
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part
from unrolled_export.readers.state_dicts.recurrent import REPEATED, Recurrent
from unrolled_export.readers.tensors import Tensors

_MOST_ONE_HOT = 8192
"""Tokens of one-hot input that is normalised: the table of embeddings is then as wide as long."""


class Assembly:
    """Makes the network of one chain."""

    def __init__(
        self,
        tensors: Tensors,
        chain: Chain,
        layers: Mapping[str, tuple[Layer, ...]],
        activations: Activations,
        settings: Settings,
        modules: Modules,
    ) -> None:
        """`layers` are those of each recurrent module, as they were taken, by its name."""
        self._tensors = tensors
        self._chain = chain
        self._recurrent = layers
        self._activations = activations
        self._settings = settings
        self._modules = modules

    def network(self, cell: Cell) -> Network:
        """Take every other tensor of the chain.

        Settings: `norm_epsilon`, and `norm_epsilon.NORM` for one, where no pickled model tells it.
        Raises CheckpointError, SettingNeeded, and SettingError where a setting is not what the
        pickled model tells.
        """
        head = self._dense(self._chain.ends.head, self._chain.head_bias)
        embedding = self._embedding()
        layers = tuple(self._layers())
        last = self._chain.recurrent[-1]
        after = [*self._activation(last.name), *self._operations(self._chain.after)]
        operations = [*after, *_but_linear(self._activations.at_head)]
        stages, head = folded_stages(layers[-1].output_size, operations, head)
        trained = self._tensors.numbers_taken
        return Network(cell, embedding, layers, head.weight, head.bias, trained, stages)

    def _embedding(self) -> Floats | None:
        """The table that the first layer reads; None for one-hot tokens."""
        matrix = self._chain.ends.embedding
        if matrix is None:
            operations = list(self._operations(self._chain.before))
            return self._one_hot(operations) if operations else None
        table = self._tensors.take(matrix.weight)
        self._set_repeated_aside(matrix)
        activation = self._activation(matrix.name)
        operations = [*activation, *self._operations(self._chain.before)]
        return folded_table(table, operations) if operations else table

    def _one_hot(self, operations: list[Operation]) -> Floats:
        vocabulary = self._chain.ends.head.outputs
        if not isinstance(operations[0], Dense) and vocabulary > _MOST_ONE_HOT:
            raise self._tensors.error(
                f"one-hot input of {vocabulary} tokens that is normalised, where this release "
                f"reads up to {_MOST_ONE_HOT}"
            )
        return folded_one_hot(vocabulary, operations)

    def _layers(self) -> Iterator[Layer]:
        """The layers of all recurrent modules, with what stands between two modules."""
        between: list[Operation] = []
        for part in self._chain.parts[len(self._chain.before) :]:
            if isinstance(part, Recurrent):
                first, *others = self._recurrent[part.name]
                yield self._folded(first, between)
                yield from others
                between = [*self._activation(part.name)]
            elif part not in self._chain.after:
                between.extend(self._operations([part]))

    def _folded(self, layer: Layer, between: Iterable[Operation]) -> Layer:
        for operation in between:
            if isinstance(operation, Dense | Activation):
                raise self._tensors.error(
                    "an activation between two recurrent modules, which this release does not serve"
                )
            layer = folded_layer(layer, operation)
        return layer

    def _operations(self, parts: Iterable[Part]) -> Iterator[Operation]:
        """What parts that are not recurrent do, and the activations after them."""
        for part in parts:
            if isinstance(part, Matrix):
                yield self._dense(part, part.bias)
            elif isinstance(part, Norm):
                yield self._norm(part)
            yield from self._activation(part.name)

    def _activation(self, part: str) -> Iterator[Activation]:
        yield from _but_linear(self._activations.after.get(part, Activation.LINEAR))

    def _dense(self, matrix: Matrix, bias: str | None) -> Dense:
        weight = self._tensors.take(matrix.weight)
        self._set_repeated_aside(matrix)
        return Dense(weight, self._or_filled(bias, len(weight), 0))

    def _norm(self, norm: Norm) -> Operation:
        weight = self._or_filled(norm.weight, norm.size, 1)
        bias = self._or_filled(norm.bias, norm.size, 0)
        epsilon = self._epsilon(norm)
        if not norm.is_batch:
            return LayerNorm(weight, bias, epsilon)
        mean = self._tensors.take(norm.mean, trained=False)
        variance = self._tensors.take(norm.variance, trained=False)
        if (variance < 0).any():
            raise self._tensors.error(f"{norm.variance} holds negative variances")
        return batch_norm(weight, bias, mean, variance, epsilon)

    def _epsilon(self, norm: Norm) -> float:
        module = self._modules.get(norm.name)
        said = None if module is None else module.attributes.get("eps")
        key = self._settings.key_for("norm_epsilon", norm.name)
        epsilon = self._settings.number(key)
        if isinstance(said, float) and 0 < said < 1:
            if epsilon not in (None, said):
                raise SettingError(f"--set {key}={epsilon:g}: module {norm.name} has eps={said:g}")
            return said
        if epsilon is None:
            raise self._tensors.unsettled(
                f"the file does not tell the epsilon of the normalisation {norm.name}",
                "norm_epsilon",
                ("1e-05", "1e-03"),
            )
        return epsilon

    def _or_filled(self, name: str | None, size: int, value: float) -> Floats:
        """The tensor, or a vector of `value` where there is none."""
        return np.full(size, value, np.float32) if name is None else self._tensors.take(name)

    def _set_repeated_aside(self, matrix: Matrix) -> None:
        reason = None if self._chain.ends.is_tied else REPEATED
        self._tensors.set_aside(matrix.names[1:], reason)


def _but_linear(activation: Activation) -> Iterator[Activation]:
    if activation is not Activation.LINEAR:
        yield activation

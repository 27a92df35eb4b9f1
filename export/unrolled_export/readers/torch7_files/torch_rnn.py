"""Models of torch-rnn: an nn.LanguageModel, in sequence LookupTable, layers and Linear.

Equations: LSTM.lua, VanillaRNN.lua and GRU.lua of torch-rnn. A layer's weight is
[D + H, G*H], the rows of the input first; its gates are i, f, o, g of an LSTM and u, r, n of a
GRU, whose reset gate comes before the product and whose u is 1 - z: h' = (1 - u) * h + u * n.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.tensors import Tensors
from unrolled_export.readers.torch7_files.nn_modules import (
    BYTES_ASSUMED,
    check_dropout,
    kind_of,
    module_tensors,
    take,
    take_bias,
    to_torch_order,
    tokens_by_id,
    with_bytes,
)
from unrolled_export.readers.torch7_files.t7_file import Table

Doubles = NDArray[np.float64]

_CELLS = {"LSTM": Cell.LSTM, "VanillaRNN": Cell.RNN_TANH, "GRU": Cell.GRU}
_PASSED = (
    "View",
    "Identity",
    "Contiguous",
    "Copy",
    "Reshape",
    "Transpose",
    "LogSoftMax",
    "SoftMax",
)


def read_torch_rnn(file: Path, model: Table) -> Checkpoint:
    """Read an nn.LanguageModel. Raises CheckpointError."""
    modules = _modules(file, model)
    chain = _Chain(module_tensors(file, modules))
    for name, module in modules:
        chain.add(name, module)
    network = chain.network()
    spelled = _tokens(file, model, network.vocabulary_size)
    tokens = None if spelled is None else with_bytes(spelled)
    return Checkpoint(
        network,
        (file,),
        f"torch-rnn checkpoint: {chain.reading()}",
        tokens,
        assumptions=(BYTES_ASSUMED,) if tokens and list(tokens) != spelled else (),
    )


def _modules(file: Path, model: Table) -> list[tuple[str, Table]]:
    net = model.get("net")
    listed = net.get("modules") if isinstance(net, Table) else None
    if not isinstance(listed, Table):
        raise CheckpointError(file, "model.net is not a sequence of modules")
    modules = list(listed.listed())
    named = [(f"model.net.{i}", m) for i, m in enumerate(modules, 1) if isinstance(m, Table)]
    if len(named) != len(listed.fields):
        raise CheckpointError(file, "model.net.modules is not a list of modules")
    return named


def _tokens(file: Path, model: Table, size: int) -> list[str] | None:
    table = model.get("idx_to_token")
    if table is None:
        return None
    if not isinstance(table, Table):
        raise CheckpointError(file, "model.idx_to_token is not a table")
    tokens = tokens_by_id(file, "model.idx_to_token", table.fields.items())
    if len(tokens) != size:
        raise CheckpointError(
            file, f"model.idx_to_token has {len(tokens)} tokens where the weights have {size}"
        )
    return tokens


@dataclass(frozen=True)
class _Affine:
    """scale * x + shift, element by element, to be folded into the next product."""

    scale: Doubles
    shift: Doubles

    def fold(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """weight (scale * x + shift) + bias as a product of x, rounded once."""
        exact = weight.astype(np.float64)
        folded = bias + exact @ self.shift
        # What leaves float32's range becomes infinite, and is refused as such by the caller.
        with np.errstate(over="ignore"):
            return (exact * self.scale).astype(np.float32), folded.astype(np.float32)


class _Chain:
    """The network as far as its modules have been read, from the tokens upwards."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._embedding: Floats | None = None
        self._cells: list[Cell] = []
        self._layers: list[Layer] = []
        self._affine: _Affine | None = None
        self._head: tuple[Floats, Floats] | None = None
        self._parameters = 0

    def add(self, name: str, module: Table) -> None:
        """Read the next module."""
        kind = kind_of(module)
        if kind == "LookupTable" and self._embedding is None:
            self._embedding = self._counted(self._tensors.take(f"{name}.weight"))
        elif kind in _CELLS and self._embedding is not None and self._head is None:
            self._add_layer(name, _CELLS[kind])
        elif kind == "BatchNormalization" and self._layers and self._affine is None:
            self._add_normalisation(name, module)
        elif kind == "Linear" and self._layers and self._head is None:
            self._add_head(name)
        elif kind == "Dropout":
            check_dropout(self._tensors.file, name, module)
        elif kind not in _PASSED:
            raise self._tensors.error(f"{name}: {module.class_name} is not read in this place")

    def network(self) -> Network:
        """All of it. Raises CheckpointError where something is missing."""
        if self._embedding is None or self._head is None or self._affine is not None:
            raise self._tensors.error("model.net is not LookupTable, recurrent layers and Linear")
        cell = self._cells[0]
        if any(other is not cell for other in self._cells):
            raise self._tensors.error(f"model.net mixes {' and '.join(sorted(set(self._cells)))}")
        if len(self._embedding) != len(self._head[0]):
            sizes = f"{len(self._embedding)} tokens, the Linear {len(self._head[0])}"
            raise self._tensors.error(f"the LookupTable has {sizes}")
        self._tensors.check_all_taken(self.reading())
        return Network(
            cell,
            self._embedding,
            tuple(self._layers),
            *self._head,
            self._parameters,
            reset_after=cell is not Cell.GRU,
        )

    def reading(self) -> str:
        """Which modules were found, in words."""
        return f"LookupTable, {len(self._layers)} {self._cells[0]}, Linear"

    def _add_layer(self, name: str, cell: Cell) -> None:
        below = self._layers[-1].hidden_size if self._layers else self._width()
        columns = self._tensors.matrix_shape(f"{name}.weight")[1]
        hidden = columns // cell.gates
        beside = f"{cell} of {hidden} units over {below} inputs"
        shape = (below + hidden, cell.gates * hidden)
        weight = to_torch_order(take(self._tensors, f"{name}.weight", shape, beside).T, cell)
        bias = to_torch_order(take_bias(self._tensors, f"{name}.bias", columns, beside), cell)
        self._count(name)
        weight_ih, bias_ih = self._folded(np.ascontiguousarray(weight[:, :below]), bias)
        weight_hh = np.ascontiguousarray(weight[:, below:])
        zeros = np.zeros_like(bias)
        self._layers.append(Layer(weight_ih, weight_hh, bias_ih, zeros))
        self._cells.append(cell)

    def _add_normalisation(self, name: str, module: Table) -> None:
        """Batch normalisation as it is at inference, with running mean and variance."""
        size, tensors = self._layers[-1].hidden_size, self._tensors
        beside = f"{size} units"
        mean = take(tensors, f"{name}.running_mean", (size,), beside).astype(np.float64)
        scale = self._inverse_deviation(name, module, size)
        shift = -mean * scale
        if f"{name}.weight" in tensors:
            gain = take(tensors, f"{name}.weight", (size,), beside).astype(np.float64)
            scale, shift = gain * scale, gain * shift
        shift = shift + take_bias(tensors, f"{name}.bias", size, beside)
        self._count(name)
        self._affine = _Affine(scale, shift)

    def _inverse_deviation(self, name: str, module: Table, size: int) -> Doubles:
        tensors, beside = self._tensors, f"{size} units"
        if f"{name}.running_std" in tensors:
            # The first version of the class keeps 1 / sqrt(variance + eps) under this name.
            return take(tensors, f"{name}.running_std", (size,), beside).astype(np.float64)
        variance = take(tensors, f"{name}.running_var", (size,), beside).astype(np.float64)
        epsilon = module.get("eps")
        if not isinstance(epsilon, int | float) or not 0 <= epsilon < 1 or variance.min() < 0:
            raise tensors.error(f"{name}: eps or running_var is not one of batch normalisation")
        if (variance + epsilon).min() == 0:
            raise tensors.error(f"{name}: running_var and eps are both 0")
        result: Doubles = 1 / np.sqrt(variance + epsilon)
        return result

    def _add_head(self, name: str) -> None:
        size = self._layers[-1].hidden_size
        rows = self._tensors.matrix_shape(f"{name}.weight")[0]
        beside = f"{size} units"
        weight = take(self._tensors, f"{name}.weight", (rows, size), beside)
        bias = take_bias(self._tensors, f"{name}.bias", rows, beside)
        self._count(name)
        self._head = self._folded(weight, bias)

    def _folded(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        affine, self._affine = self._affine, None
        if affine is None:
            return weight, bias
        weight, bias = affine.fold(weight, bias)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise self._tensors.error("batch normalisation scales beyond the range of float32")
        return weight, bias

    def _width(self) -> int:
        return 0 if self._embedding is None else int(self._embedding.shape[1])

    def _counted(self, array: Floats) -> Floats:
        self._parameters += array.size
        return array

    def _count(self, name: str) -> None:
        """Count a module's trained tensors."""
        for field in (f"{name}.weight", f"{name}.bias"):
            if field in self._tensors:
                self._parameters += int(np.prod(self._tensors.shape(field)))

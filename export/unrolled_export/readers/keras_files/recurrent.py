"""The recurrent layers of Keras in PyTorch's layout.

Keras keeps the transpose: kernel [I, G*H], recurrent_kernel [H, G*H]. Gates of an LSTM are
i, f, c, o, PyTorch's order; of a GRU z, r, h, where PyTorch has r, z, n. Both update a GRU as
z * h + (1 - z) * n. A GRU's bias is [2, 3H] where its reset gate is applied after the product
(`reset_after`), first of the input and then of the state, and [3H] where before.

Layers of cuDNN (CuDNNLSTM, CuDNNGRU) are told by a flat bias for input and state both, [8H] or
[6H]. Their kernels hold, gate by gate in the same order, the numbers of the matrices [H, I] and
[H, H] row by row, whatever their shape says (Keras' own conversion: `_convert_rnn_weights` in
its keras/engine/saving.py). They know the sigmoid only, and reset after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Floats, Gate, Layer
from unrolled_export.readers.keras_files.architecture import LayerSpec
from unrolled_export.readers.tensors import Tensors

GATES = {"LSTM": "ifco", "GRU": "zrh", "SimpleRNN": ""}
"""Of a class, in Keras' order; the letters are those in the weight names of Keras 1."""
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}
RECURRENT = (*GATES, *CUDNN)


@dataclass(frozen=True)
class Part:
    """A layer and its weights."""

    spec: LayerSpec
    weights: Mapping[str, str]
    """Names of tensors by role."""

    def error(self, tensors: Tensors, problem: str) -> CheckpointError:
        return tensors.error(f"layer {self.spec.name} ({self.spec.kind}) {problem}")


@dataclass(frozen=True)
class Recurrence:
    """What the layers of a network share."""

    cell: Cell
    gate: Gate
    reset_after: bool

    def __str__(self) -> str:
        reset = "" if self.cell is not Cell.GRU else f", reset {_when(self.reset_after)}"
        return f"{self.cell}, {self.gate}{reset}"


def _when(reset_after: bool) -> str:
    return "after the product" if reset_after else "before the product"


def read_recurrent(
    part: Part, tensors: Tensors, hard_sigmoid: Callable[[], Gate]
) -> tuple[Recurrence, Layer]:
    """The layer, and what it demands of the others.

    `hard_sigmoid` tells which one the file's Keras means, or raises. Raises CheckpointError.
    """
    _refuse_unserved(part, tensors)
    kind = CUDNN.get(part.spec.kind, part.spec.kind)
    kernels = _kernels(part, tensors, kind)
    bias = _joined(part, tensors, "bias", kind)
    units, columns = kernels[1].shape
    is_cudnn = bias is not None and kind != "SimpleRNN" and bias.shape == (2 * columns,)
    weights = [_matrix(kernel, kind, is_cudnn) for kernel in kernels]
    reset_after = kind != "GRU" or _is_reset_after(part, tensors, bias, columns)
    biases = _biases(part, tensors, bias, columns, kind)
    told = part.spec.config.get("units", part.spec.config.get("output_dim", units))
    if told != units:
        raise part.error(tensors, f"should have {told!r} units, but its weights have {units}")
    gate = _gate(part, tensors, kind, is_cudnn, hard_sigmoid)
    recurrence = Recurrence(_cell(part, tensors, kind), gate, reset_after)
    return recurrence, Layer(weights[0], weights[1], *biases)


def gates_of(tensors: Tensors, weights: Mapping[str, str]) -> int:
    """Columns of the recurrent kernel per unit."""
    if "recurrent_kernel" in weights:
        units, columns = tensors.matrix_shape(weights["recurrent_kernel"])
        return columns // units if units and columns % units == 0 else 0
    return sum(role.startswith("recurrent_kernel_") for role in weights)


def _refuse_unserved(part: Part, tensors: Tensors) -> None:
    if part.spec.config.get("go_backwards"):
        raise part.error(tensors, "reads a text from its end (go_backwards)")
    activation = part.spec.config.get("activation", "tanh")
    if activation != "tanh" and (part.spec.kind, activation) != ("SimpleRNN", "relu"):
        raise part.error(tensors, f"has activation {activation!r}, where this release reads tanh")


def _cell(part: Part, tensors: Tensors, kind: str) -> Cell:
    if kind == "SimpleRNN":
        return Cell(f"rnn_{part.spec.config.get('activation', 'tanh')}")
    return Cell.LSTM if kind == "LSTM" else Cell.GRU


def _gate(
    part: Part, tensors: Tensors, kind: str, is_cudnn: bool, hard_sigmoid: Callable[[], Gate]
) -> Gate:
    config = part.spec.config
    told = config.get("recurrent_activation", config.get("inner_activation"))
    if kind == "SimpleRNN" or (told is None and (is_cudnn or part.spec.kind in CUDNN)):
        return Gate.SIGMOID
    if told == "sigmoid":
        return Gate.SIGMOID
    if told == "hard_sigmoid" and not is_cudnn:
        return hard_sigmoid()
    raise part.error(
        tensors, f"has recurrent_activation {told!r}, which this release does not read"
    )


def _kernels(part: Part, tensors: Tensors, kind: str) -> tuple[Floats, Floats]:
    """[I, G*H] and [H, G*H]."""
    kernel = _joined(part, tensors, "kernel", kind)
    recurrent = _joined(part, tensors, "recurrent_kernel", kind)
    if kernel is None or recurrent is None:
        raise part.error(tensors, "has no kernel and recurrent_kernel")
    gates = max(1, len(GATES[kind]))
    shapes = f"{list(kernel.shape)} and {list(recurrent.shape)}"
    if kernel.ndim != 2 or recurrent.ndim != 2:
        raise part.error(tensors, f"has kernels {shapes}, which are not matrices")
    columns = gates * recurrent.shape[0]
    if recurrent.shape[1] != columns or kernel.shape[1] != columns:
        raise part.error(
            tensors, f"has kernels {shapes}: they should be [I, {gates} H] and [H, {gates} H]"
        )
    return kernel, recurrent


def _joined(part: Part, tensors: Tensors, role: str, kind: str) -> Floats | None:
    """The weights of all gates, which Keras 1 may keep apart; None where there are none."""
    if role in part.weights:
        return tensors.take(part.weights[role])
    roles = [f"{role}_{letter}" for letter in GATES[kind]]
    found = [name for name in roles if name in part.weights]
    if not found:
        return None
    if found != roles:
        missing = next(name for name in roles if name not in part.weights)
        raise part.error(tensors, f"has {found[0]} but no {missing}")
    arrays = [tensors.take(part.weights[name]) for name in roles]
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim not in (1, 2):
        raise part.error(tensors, f"has gates whose {role} differ in shape")
    return np.concatenate(arrays, axis=-1)


def _matrix(kernel: Floats, kind: str, is_cudnn: bool) -> Floats:
    """[G*H, N] in PyTorch's order of gates."""
    blocks = np.split(kernel, max(1, len(GATES[kind])), axis=1)
    rows, units = blocks[0].shape
    turned = [block.reshape(units, rows) if is_cudnn else block.T for block in blocks]
    return np.ascontiguousarray(np.concatenate(_ordered(turned, kind)))


def _ordered(blocks: list[Floats], kind: str) -> list[Floats]:
    return [blocks[1], blocks[0], blocks[2]] if kind == "GRU" else blocks


def _is_reset_after(part: Part, tensors: Tensors, bias: Floats | None, columns: int) -> bool:
    told = part.spec.config.get("reset_after", part.spec.kind in CUDNN)
    if not isinstance(told, bool):
        raise part.error(tensors, f"has reset_after {told!r}, which is not true or false")
    if bias is None:
        return told
    seen = bias.shape != (columns,)
    if "reset_after" in part.spec.config and seen != told and bias.shape != (2 * columns,):
        raise part.error(
            tensors, f"resets {_when(told)}, but its bias {list(bias.shape)} does not fit that"
        )
    return seen


def _biases(
    part: Part, tensors: Tensors, bias: Floats | None, columns: int, kind: str
) -> tuple[Floats, Floats]:
    """Of the input and of the state, [G*H] each in PyTorch's order."""
    zeros = np.zeros(columns, np.float32)
    pairs: Mapping[Any, Callable[[Floats], Floats]] = {
        (columns,): lambda array: np.stack([array, zeros]),
        **({} if kind == "SimpleRNN" else {(2 * columns,): lambda array: array.reshape(2, -1)}),
        **({(2, columns): lambda array: array} if kind == "GRU" else {}),
    }
    if bias is None:
        return zeros, zeros
    if bias.shape not in pairs:
        raise part.error(tensors, f"has a bias {list(bias.shape)}, where [{columns}] would fit")
    first, second = pairs[bias.shape](bias)
    return _ordered_vector(first, kind), _ordered_vector(second, kind)


def _ordered_vector(vector: Floats, kind: str) -> Floats:
    return np.concatenate(_ordered(np.split(vector, max(1, len(GATES[kind]))), kind))

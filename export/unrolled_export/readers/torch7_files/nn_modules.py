"""What the modules of Torch7's package nn hold, and their tokens' table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Floats
from unrolled_export.readers.tensors import Tensors
from unrolled_export.readers.torch7_files.t7_file import Table, Tensor

FIELDS = ("weight", "bias", "running_mean", "running_var", "running_std")
"""Of a module, what computes. Everything else is a gradient, a buffer or an option."""
BYTES_ASSUMED = "tokens [128] to [255] are single bytes"

ORDERS = {Cell.LSTM: (0, 1, 3, 2), Cell.GRU: (1, 0, 2), Cell.RNN_TANH: (0,)}
"""Where each of PyTorch's gates is found in i, f, o, g of an LSTM and u, r, n of a GRU."""

_BYTE = re.compile(r"\[(1(?:2[89]|[3-9][0-9])|2[0-4][0-9]|25[0-5])\]")


def kind_of(module: Table) -> str:
    """The class of a module without its package."""
    return module.class_name.rpartition(".")[2]


def module_tensors(file: Path, modules: Iterable[tuple[str, Table]]) -> Tensors:
    """The tensors of named modules, as `NAME.FIELD`.

    Raises CheckpointError where one's elements lie outside of its storage.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, module in modules:
        for field in FIELDS:
            value = module.get(field)
            if isinstance(value, Tensor) and value.sizes:
                arrays[f"{name}.{field}"] = _array(file, f"{name}.{field}", value)
    return Tensors(file, arrays)


def _array(file: Path, name: str, tensor: Tensor) -> NDArray[Any]:
    array = tensor.array()
    if array is None:
        shape = list(tensor.sizes)
        raise CheckpointError(file, f"{name} {shape} does not lie within its storage")
    return array


def take(tensors: Tensors, name: str, shape: tuple[int, ...], beside: str) -> Floats:
    """The tensor, which has to be of this shape to fit what `beside` says."""
    if tensors.shape(name) != shape:
        raise tensors.error(f"{tensors.shown(name)} should be {list(shape)}, to fit {beside}")
    return tensors.take(name)


def take_bias(tensors: Tensors, name: str, size: int, beside: str) -> Floats:
    """The bias, zeros where the module has none."""
    if name not in tensors:
        return np.zeros(size, np.float32)
    return take(tensors, name, (size,), beside)


def tokens_by_id(file: Path, name: str, numbered: Iterable[tuple[object, object]]) -> list[str]:
    """Tokens from pairs of an id, counted from 1, and a text.

    Raises CheckpointError where they are anything else.
    """
    tokens: dict[int, str] = {}
    for number, token in numbered:
        if not isinstance(number, int) or not isinstance(token, str) or number in tokens:
            problem = f"entry {len(tokens) + 1} is not a token and an id of its own"
            raise CheckpointError(file, f"{name}: {problem}")
        tokens[number] = token
    missing = next((index for index in range(1, len(tokens) + 1) if index not in tokens), None)
    if missing is not None:
        raise CheckpointError(
            file, f"{name}: no token of id {missing}, though {len(tokens)} tokens"
        )
    return [tokens[index] for index in range(1, len(tokens) + 1)]


def with_bytes(tokens: list[str]) -> tuple[str, ...]:
    """The tokens, `[200]` and the like replaced by the byte, surrogate-escaped.

    So torch-rnn's preprocess.py spells bytes beyond ASCII in a vocabulary of bytes.
    """
    matches = [(_BYTE.fullmatch(token), token) for token in tokens]
    return tuple(chr(0xDC00 + int(match[1])) if match else token for match, token in matches)


def to_torch_order(array: Floats, cell: Cell) -> Floats:
    """Blocks of rows in `ORDERS`, in PyTorch's order and meaning: its z is 1 - u."""
    blocks = np.split(array, cell.gates)
    if cell is Cell.GRU:
        # 1 - sigmoid(x) = sigmoid(-x).
        blocks[0] = -blocks[0]
    return np.concatenate([blocks[gate] for gate in ORDERS[cell]])


def check_dropout(file: Path, name: str, module: Table) -> None:
    """Refuse an nn.Dropout of the first version: it scales at inference, not in training."""
    if module.get("v2") is False and module.get("p") != 0:
        raise CheckpointError(file, f"{name}: nn.Dropout of the first version is not read")

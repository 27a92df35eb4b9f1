"""A network from the tensors of a PyTorch state dict, recognised by structure.

The recurrent module is nn.RNN, nn.LSTM or nn.GRU under any name: its parameters end in
`weight_ih_l{k}`, `weight_hh_l{k}`, `bias_ih_l{k}` and `bias_hh_l{k}` for layer k. The rows of
`weight_ih` over the columns of `weight_hh` are the gates: 1, 3 or 4.
"""

from __future__ import annotations

import re

import numpy as np

from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.readers.roles import Roles, find_roles
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

_RECURRENT = re.compile(r"(.*?)(?:weight|bias)_(?:ih|hh)_l([0-9]{1,3})")
_REVERSE = re.compile(r".*_l[0-9]+_reverse")
_PROJECTION = re.compile(r".*weight_hr_l[0-9]+")
_CELLS = {3: Cell.GRU, 4: Cell.LSTM}


def read_state_dict(
    tensors: Tensors, settings: Settings, cell: Cell | None = None
) -> tuple[Network, str]:
    """The network, and one line on which tensors were taken for what.

    `cell` is what the checkpoint says of itself, if it does. Setting: `nonlinearity` of a
    plain RNN. Raises CheckpointError or SettingError.
    """
    _refuse_unserved(tensors)
    module, count = _recurrent_module(tensors)
    cell = _cell(tensors, module, settings, cell)
    layers = _layers(tensors, module, count, cell)
    roles = find_roles(tensors, layers[0].input_size, layers[-1].hidden_size, settings)
    embedding = None if roles.embedding is None else tensors.take(roles.embedding)
    head_weight = tensors.take(roles.head)
    head_bias = _head_bias(tensors, roles, len(head_weight))
    is_tied = roles.embedding is not None and tensors.same(roles.embedding, roles.head)
    reading = _reading(module, roles, cell, is_tied)
    tensors.check_all_taken(reading)
    repeated = head_weight.size if is_tied and roles.matrices == 2 else 0
    parameters = tensors.numbers_taken - repeated
    return Network(cell, embedding, layers, head_weight, head_bias, parameters), reading


def _refuse_unserved(tensors: Tensors) -> None:
    for name in tensors.left:
        if _REVERSE.fullmatch(name):
            raise tensors.error(
                f"{name} belongs to a bidirectional layer, which reads a text from its end as "
                "well and so cannot continue one"
            )
        if _PROJECTION.fullmatch(name):
            raise tensors.error(
                f"{name} projects the hidden state (proj_size), which this release does not read"
            )


def _recurrent_module(tensors: Tensors) -> tuple[str, int]:
    """The name that the recurrent parameters share, and the number of layers."""
    found = [match for name in tensors.left if (match := _RECURRENT.fullmatch(name))]
    modules = sorted({match[1] for match in found})
    if not modules:
        raise tensors.error("no recurrent layer: no tensor is called weight_ih_l0")
    if len(modules) > 1:
        raise tensors.error(
            f"two recurrent modules, {modules[0]}weight_ih_l0 and {modules[1]}weight_ih_l0, "
            "where this release reads one"
        )
    return modules[0], 1 + max(int(match[2]) for match in found)


def _cell(tensors: Tensors, module: str, settings: Settings, said: Cell | None) -> Cell:
    """The cell as the shapes of the first layer tell it."""
    weight_ih, weight_hh = f"{module}weight_ih_l0", f"{module}weight_hh_l0"
    rows, units = tensors.matrix_shape(weight_ih)[0], tensors.matrix_shape(weight_hh)[1]
    gates = rows // units if units and rows % units == 0 else 0
    if gates not in (1, 3, 4):
        raise tensors.error(
            f"{tensors.shown(weight_ih)} and {tensors.shown(weight_hh)} are not those of a "
            "recurrent layer, whose rows are 1, 3 or 4 times its units"
        )
    if said is None:
        return _CELLS.get(gates) or _plain_cell(tensors, weight_ih, settings)
    if said.gates != gates:
        raise tensors.error(
            f"{tensors.shown(weight_ih)} and {tensors.shown(weight_hh)} have {gates} gates, "
            f"but the cell is said to be {said}, which has {said.gates}"
        )
    return said


def _plain_cell(tensors: Tensors, weight_ih: str, settings: Settings) -> Cell:
    nonlinearity = settings.choice("nonlinearity", ("tanh", "relu"))
    if nonlinearity is None:
        raise tensors.error(
            f"{weight_ih} belongs to a plain RNN, whose nonlinearity the file does not tell: "
            "add --set nonlinearity=tanh or --set nonlinearity=relu"
        )
    return Cell(f"rnn_{nonlinearity}")


def _layers(tensors: Tensors, module: str, count: int, cell: Cell) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for index in range(count):
        below = layers[-1].hidden_size if layers else None
        layers.append(_layer(tensors, module, index, cell, below))
    return tuple(layers)


def _layer(tensors: Tensors, module: str, index: int, cell: Cell, below: int | None) -> Layer:
    """Layer `index`, whose input is `below` wide; None: whatever its weights say."""
    weight_ih, weight_hh = (f"{module}weight_{side}_l{index}" for side in ("ih", "hh"))
    hidden = tensors.matrix_shape(weight_hh)[1]
    inputs = tensors.matrix_shape(weight_ih)[1] if below is None else below
    rows = cell.gates * hidden
    _check_shape(tensors, weight_hh, (rows, hidden), f"{cell.gates} gates of {hidden} units")
    above = f" above {below} units" if below else ""
    _check_shape(tensors, weight_ih, (rows, inputs), tensors.shown(weight_hh) + above)
    biases = [f"{module}bias_{side}_l{index}" for side in ("ih", "hh")]
    given = any(bias in tensors for bias in biases)
    return Layer(
        tensors.take(weight_ih),
        tensors.take(weight_hh),
        *(_bias(tensors, bias, rows, weight_hh) if given else _zeros(rows) for bias in biases),
    )


def _bias(tensors: Tensors, name: str, size: int, weight: str) -> Floats:
    _check_shape(tensors, name, (size,), tensors.shown(weight))
    return tensors.take(name)


def _head_bias(tensors: Tensors, roles: Roles, size: int) -> Floats:
    if roles.head_bias is None:
        return _zeros(size)
    return _bias(tensors, roles.head_bias, size, roles.head)


def _zeros(size: int) -> Floats:
    return np.zeros(size, np.float32)


def _check_shape(tensors: Tensors, name: str, shape: tuple[int, ...], beside: str) -> None:
    if tensors.shape(name) != shape:
        raise tensors.error(f"{tensors.shown(name)} should be {list(shape)}, to fit {beside}")


def _reading(module: str, roles: Roles, cell: Cell, is_tied: bool) -> str:
    """Which tensors were taken for what, in words."""
    recurrent = f"{cell} {module}*"
    embedding = f"embedding {roles.embedding}" if roles.embedding else "one-hot input"
    head = f"head {roles.head}" + (f" and {roles.head_bias}" if roles.head_bias else ", no bias")
    if is_tied:
        head += ", tied to the embedding"
    return f"{embedding}, {recurrent}, {head}"

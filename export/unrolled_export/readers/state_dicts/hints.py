"""The cell of the recurrent layers, which tensors and what is said beside them tell.

Hints are plain values saved with the tensors (`rnn_type`); a pickled model has the like
as attributes of its modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from unrolled_export.errors import SettingError
from unrolled_export.network import Cell
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

Hints = Mapping[str, object]
"""Plain values by where they are: `config.rnn_type`."""

CELL_KEYS = ("mode", "rnn_type", "rnn_mode", "cell", "cell_type", "model", "model_type", "type")
PLAIN_CELL = re.compile(r"(?:rnn|elman)_?(tanh|relu)", re.IGNORECASE)
_NONLINEARITIES = ("tanh", "relu")
_OF_THE_MODEL = re.compile(
    r"(\w*(config|cfg|args?|params|parameters|opts?|options|settings|model|lm|rnn|net(work)?|json|metadata)\.)*"
    r"nonlinearity",
    re.IGNORECASE,
)
"""Where a nonlinearity is said to be that of the layers, and not of some part beside them."""


def find_cell(
    tensors: Tensors,
    recurrent: tuple[Recurrent, ...],
    settings: Settings,
    modules: Modules,
    hints: Hints,
) -> tuple[Cell, tuple[str, ...]]:
    """The cell of all layers, by the gates of their shapes, and what that takes for granted. Of a
    plain RNN its own modules tell the nonlinearity, else the setting `nonlinearity`, else what is
    said beside them.

    Raises CheckpointError where layers differ, SettingNeeded where nothing tells the nonlinearity,
    and SettingError where the setting is not what a module tells.
    """
    _check_alike(tensors, recurrent)
    gates = recurrent[0].gates
    if gates > 1:
        return Cell.GRU if gates == 3 else Cell.LSTM, ()
    chosen = settings.choice("nonlinearity", _NONLINEARITIES)
    own = {part.name: said for part in recurrent if (said := _nonlinearity(part, modules))}
    if len(set(own.values())) > 1:
        raise tensors.error("layers of different nonlinearities, which this release does not serve")
    for name, said in own.items():
        if chosen not in (None, said):
            raise SettingError(f"--set nonlinearity={chosen}: module {name} has {said}")
        return Cell(f"rnn_{said}"), ()
    if chosen is not None:
        return Cell(f"rnn_{chosen}"), ()
    if (plain := _plain_cell_around(modules, hints)) is not None:
        return Cell(f"rnn_{plain}"), ()
    for key, value in hints.items():
        if value in _NONLINEARITIES and _OF_THE_MODEL.fullmatch(key):
            (other,) = set(_NONLINEARITIES) - {value}
            assumed = f"the recurrent layers apply {value}, as {key} says"
            return Cell(f"rnn_{value}"), (f"{assumed} (else --set nonlinearity={other})",)
    raise tensors.unsettled(
        f"{recurrent[0].layers[0]['weight_ih']} belongs to a plain RNN, whose nonlinearity the "
        "file does not tell",
        "nonlinearity",
        _NONLINEARITIES,
    )


def _check_alike(tensors: Tensors, recurrent: tuple[Recurrent, ...]) -> None:
    """Raise CheckpointError where layers are of different kinds."""
    first = recurrent[0]
    for other in recurrent:
        if other.gates != first.gates:
            raise tensors.error(
                f"{first.name} has {first.gates} gates and {other.name} has {other.gates}: layers "
                "of different kinds, which this release does not serve"
            )


def _nonlinearity(part: Recurrent, modules: Modules) -> str | None:
    """What the pickled module itself says."""
    module = modules.get(part.name)
    if module is None:
        return None
    nonlinearity = module.attributes.get("nonlinearity")
    is_one = nonlinearity in _NONLINEARITIES
    return str(nonlinearity) if is_one else _plain_cell(module.attributes)


def _plain_cell_around(modules: Modules, hints: Hints) -> str | None:
    """What the checkpoint or the pickled model as a whole calls the cell."""
    said = {key.rpartition(".")[2]: value for key, value in hints.items()}
    root = modules[""].attributes if "" in modules else {}
    return _plain_cell(said) or _plain_cell(root)


def _plain_cell(said: Mapping[str, object]) -> str | None:
    for key in CELL_KEYS:
        if match := PLAIN_CELL.fullmatch(str(said.get(key))):
            return match[1].lower()
    return None

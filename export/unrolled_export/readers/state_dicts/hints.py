"""The cell of the recurrent layers, which tensors and what is said beside them tell.

Hints are plain values saved with the tensors (`rnn_type`); a pickled model has the like
as attributes of its modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from unrolled_export.network import Cell
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

Hints = Mapping[str, object]

CELL_KEYS = ("mode", "rnn_type", "rnn_mode", "cell", "cell_type", "model", "model_type", "type")
PLAIN_CELL = re.compile(r"(?:rnn|elman)_?(tanh|relu)", re.IGNORECASE)


def find_cell(
    tensors: Tensors,
    recurrent: tuple[Recurrent, ...],
    settings: Settings,
    modules: Modules,
    hints: Hints,
) -> Cell:
    """The cell of all layers, by the gates of their shapes. Setting: `nonlinearity`.

    Raises CheckpointError where they differ, and SettingNeeded for a plain RNN of which nothing
    tells the nonlinearity.
    """
    first = recurrent[0]
    for other in recurrent:
        if other.gates != first.gates:
            raise tensors.error(
                f"{first.name} has {first.gates} gates and {other.name} has {other.gates}: layers "
                "of different kinds, which this release does not serve"
            )
    if first.gates > 1:
        return Cell.GRU if first.gates == 3 else Cell.LSTM
    said = {_nonlinearity(part, modules) or _hinted(modules, hints) for part in recurrent}
    if len(said) > 1:
        raise tensors.error("layers of different nonlinearities, which this release does not serve")
    return Cell(f"rnn_{said.pop() or _asked(tensors, first, settings)}")


def _nonlinearity(part: Recurrent, modules: Modules) -> str | None:
    """What the pickled module itself says."""
    module = modules.get(part.name)
    if module is None:
        return None
    nonlinearity = module.attributes.get("nonlinearity")
    return nonlinearity if nonlinearity in ("tanh", "relu") else _plain_cell(module.attributes)


def _hinted(modules: Modules, hints: Hints) -> str | None:
    """What the checkpoint or the pickled model as a whole says."""
    said = {key.rpartition(".")[2]: value for key, value in hints.items()}
    if said.get("nonlinearity") in ("tanh", "relu"):
        return str(said["nonlinearity"])
    root = modules[""].attributes if "" in modules else {}
    return _plain_cell(said) or _plain_cell(root)


def _plain_cell(said: Mapping[str, object]) -> str | None:
    for key in CELL_KEYS:
        if match := PLAIN_CELL.fullmatch(str(said.get(key))):
            return match[1].lower()
    return None


def _asked(tensors: Tensors, part: Recurrent, settings: Settings) -> str:
    nonlinearity = settings.choice("nonlinearity", ("tanh", "relu"))
    if nonlinearity is None:
        raise tensors.unsettled(
            f"{part.layers[0]['weight_ih']} belongs to a plain RNN, whose nonlinearity the file "
            "does not tell",
            "nonlinearity",
            ("tanh", "relu"),
        )
    return nonlinearity

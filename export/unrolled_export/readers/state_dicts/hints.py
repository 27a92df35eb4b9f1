"""What a checkpoint says about a state dict in so many words, beside its tensors.

Hints are plain values saved with it (`rnn_type`, `is_forward_lm`); a pickled model has the like
as attributes of its modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unrolled_export.network import Cell
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.activations import ACTIVATION_CLASSES
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

Hints = Mapping[str, object]

_CELL_KEYS = ("mode", "rnn_type", "rnn_mode", "cell", "cell_type", "model", "model_type", "type")
_PLAIN_CELL = re.compile(r"(?:rnn|elman)_?(tanh|relu)", re.IGNORECASE)
_BACKWARD = {"is_forward_lm": False, "direction": "backward", "backward": True, "reverse": True}
_UNSERVED = {
    "bidirectional": "reads a text from its end as well and so cannot continue one",
    "residual": "adds a layer's input to its output, which this release does not serve",
    "residuals": "adds earlier hidden states to later ones, which this release does not serve",
}
_ORDINARY = frozenset(
    {
        "Linear",
        "Embedding",
        "RNN",
        "LSTM",
        "GRU",
        "RNNCell",
        "LSTMCell",
        "GRUCell",
        "LayerNorm",
        "BatchNorm1d",
        "ModuleList",
        "ModuleDict",
        "ParameterList",
        "ParameterDict",
        "Sequential",
        "Identity",
        "Softmax",
        "LogSoftmax",
        "WeightDrop",
        "WeightDropout",
    }
)
"""Classes that say no more than their tensors do, beside dropouts, losses and activations."""


def refuse_said(tensors: Tensors, modules: Modules, hints: Hints) -> None:
    """Raise CheckpointError where the checkpoint says that it is of a kind not served."""
    for where, key, value in _statements(modules, hints):
        if value is True and key in _UNSERVED:
            raise tensors.error(f"{where} has {key}=True: it {_UNSERVED[key]}")
        if key in _BACKWARD and value == _BACKWARD[key]:
            raise tensors.error(
                f"{where} has {key}={value}: it reads a text from its end and cannot continue one"
            )
        if key == "max_norm" and value is not None:
            raise tensors.error(
                f"{where} has {key}={value}: it rescales embeddings as they are read, which this "
                "release does not serve"
            )


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


def unknown_classes(modules: Modules) -> tuple[str, ...]:
    """Classes of a pickled model whose code may do more than their tensors tell."""
    names = dict.fromkeys(module.class_name for module in modules.values())
    return tuple(name for name in names if not _is_ordinary(name))


def _is_ordinary(name: str) -> bool:
    return (
        name in _ORDINARY | ACTIVATION_CLASSES or "Dropout" in name or name.endswith(("Loss", "DP"))
    )


def _statements(modules: Modules, hints: Hints) -> Iterator[tuple[str, str, object]]:
    """Who says it, of what, and what."""
    for key, value in hints.items():
        yield "the checkpoint", key.rpartition(".")[2], value
    for path, module in modules.items():
        where = f"module {path} ({module.class_name})" if path else f"the {module.class_name}"
        for key, value in module.attributes.items():
            yield where, key, value


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
    for key in _CELL_KEYS:
        if match := _PLAIN_CELL.fullmatch(str(said.get(key))):
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

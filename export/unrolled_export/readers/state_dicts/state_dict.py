"""A network from the tensors of a PyTorch state dict, recognised by structure.

Recurrent modules are nn.RNN, nn.LSTM, nn.GRU or their cells under any name (`recurrent`). What is
left are matrices and normalisations (`parts`); their widths tell in which order these can lead
from an embedding to a head (`chains`), and names which of the orders it is (`roles`). What the
tensors do not hold is told by the checkpoint beside them (`hints`), by the modules of a pickled
model (`activations`, `module_classes`) or by the user. Then everything is put together
(`assembly`), held against what the checkpoint claims of itself (`claims`), and said in words
(`account`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from unrolled_export.network import Cell, Network
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.account import (
    assumed_of_parts,
    assumed_unseen,
    reading_text,
)
from unrolled_export.readers.state_dicts.activations import NO_ACTIVATIONS, find_activations
from unrolled_export.readers.state_dicts.assembly import Assembly
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.claims import check_claims, refuse_unserved
from unrolled_export.readers.state_dicts.hints import Hints, find_cell
from unrolled_export.readers.state_dicts.ignoring import (
    assumed_of_ignored,
    check_ignored,
    ignored_names,
    modules_without,
    refuse_other_cell,
    remedy,
)
from unrolled_export.readers.state_dicts.initial_states import (
    InitialStates,
    assumed_of_initial,
    fitted_initial,
    take_initial,
)
from unrolled_export.readers.state_dicts.module_classes import (
    assumed_of_classes,
    is_sequence,
)
from unrolled_export.readers.state_dicts.parametrized import with_plain_weights
from unrolled_export.readers.state_dicts.parts import (
    refuse_foreign,
    training_only,
)
from unrolled_export.readers.state_dicts.recurrent import Recurrent, find_recurrent, read_layers
from unrolled_export.readers.state_dicts.roles import find_roles
from unrolled_export.readers.state_dicts.several_models import refuse_several
from unrolled_export.readers.state_dicts.torch_classes import refuse_unread_classes
from unrolled_export.readers.tensors import Tensors

_NO_MODULES: Mapping[str, Module] = MappingProxyType({})
_NO_HINTS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Reading:
    """What a state dict was read as."""

    network: Network
    text: str
    """One line: which tensors were taken for what."""
    assumptions: tuple[str, ...]
    """What was taken although nothing tells it, each in one short phrase."""


def read_state_dict(
    tensors: Tensors,
    settings: Settings,
    cell: Cell | None = None,
    *,
    modules: Modules = _NO_MODULES,
    hints: Hints = _NO_HINTS,
) -> Reading:
    """Read every tensor.

    `cell` is what the checkpoint says of itself, if it does; `modules` are those of a pickled
    model, `hints` plain values found beside the tensors. Settings: `ignore`, `nonlinearity`,
    `input`, `head`, `norm`, `order`, `norm_epsilon`, `head_activation`, `input_activation` (of one
    part alone with its name, as in `norm_epsilon.ln`), each where it is needed. Raises
    CheckpointError, SettingNeeded or SettingError.
    """
    whole, ignored = tensors, ignored_names(tensors, settings)
    if ignored:
        tensors = tensors.without(ignored)
        modules = modules_without(modules, ignored, tensors)
    reading, chain = _read(tensors, settings, cell, modules, hints)
    check_ignored(ignored, chain)
    refuse_other_cell(whole, ignored, chain.recurrent)
    return replace(reading, assumptions=(*assumed_of_ignored(ignored), *reading.assumptions))


def _read(
    tensors: Tensors, settings: Settings, cell: Cell | None, modules: Modules, hints: Hints
) -> tuple[Reading, Chain]:
    """The reading, and the chain that it follows."""
    refuse_unserved(tensors, modules, hints)
    tensors = with_plain_weights(tensors)
    tensors.set_aside(filter(tensors.is_counter, tensors.left), "a counter")
    refuse_several(tensors)
    recurrent, of_repeated = find_recurrent(tensors)
    said = _cell_as_said(tensors, recurrent[0], cell)
    cell, of_cell = (
        find_cell(tensors, recurrent, settings, modules, hints) if said is None else (said, ())
    )
    layers = {part.name: read_layers(tensors, part) for part in recurrent}
    refuse_foreign(tensors, recurrent, modules)
    refuse_unread_classes(tensors, modules)
    tensors.set_aside(training_only(tensors), "of a loss or metric")
    initial = take_initial(tensors)
    chain, placing = find_roles(tensors, recurrent, settings, modules)
    _refuse_left_over(tensors, chain, cell, initial)
    activations = find_activations(tensors, chain, settings, modules)
    assembly = Assembly(tensors, chain, layers, activations, settings, modules)
    # What leaves float32's range when it is folded becomes infinite, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        network = assembly.network(cell)
    if not all(np.isfinite(array).all() for _, array in network.arrays()):
        raise tensors.error("weights that leave the range of float32 where they are folded")
    check_claims(tensors, chain, network, activations, modules, hints)
    network = replace(network, initial=fitted_initial(tensors, initial, network.states))
    text = reading_text(tensors, chain, cell, activations, initial)
    tensors.check_all_taken(text)
    is_all_told = is_sequence(modules) or said is not None
    assumptions = (
        *of_cell,
        *of_repeated,
        *placing,
        *activations.assumptions,
        *assumed_of_initial(initial, network.states),
        *assumed_of_parts(chain, cell, modules),
        *(() if is_all_told else assumed_unseen(chain, activations, modules)),
        *assumed_of_classes(tensors, chain, cell, modules, activations.strangers),
    )
    return Reading(network, text, assumptions), chain


def _refuse_left_over(tensors: Tensors, chain: Chain, cell: Cell, initial: InitialStates) -> None:
    """Raise CheckpointError for tensors that the chain does not take, before anything is asked."""
    left = [name for name in tensors.left if name not in chain.tensors]
    if left:
        refuse_other_cell(tensors, left, chain.recurrent)
        used = tensors.arrays().keys() - left
        text = reading_text(tensors, chain, cell, NO_ACTIVATIONS, initial)
        raise tensors.left_over(left, text, remedy(left, used, chain))


def _cell_as_said(tensors: Tensors, first: Recurrent, said: Cell | None) -> Cell | None:
    """What the checkpoint says. Raises CheckpointError where the gates are of another cell."""
    if said is not None and said.gates != first.gates:
        shown = [tensors.shown(first.layers[0][field]) for field in ("weight_ih", "weight_hh")]
        raise tensors.error(
            f"{' and '.join(shown)} have {first.gates} gates, "
            f"but the cell is said to be {said}, which has {said.gates}"
        )
    return said

"""A network from the tensors of a PyTorch state dict, recognised by structure.

Recurrent modules are nn.RNN, nn.LSTM, nn.GRU or their cells under any name (`recurrent`). What is
left are matrices and normalisations (`parts`); their widths tell in which order these can lead
from an embedding to a head (`chains`), and names which of the orders it is (`roles`). What the
tensors do not hold is told by the checkpoint beside them (`hints`), by the modules of a pickled
model (`activations`, `module_classes`) or by the user. Then everything is put together
(`assembly`), and held against what the checkpoint claims of itself (`claims`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from unrolled_export.network import Activation, Cell, Network
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.activations import Activations, find_activations
from unrolled_export.readers.state_dicts.assembly import Assembly
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.claims import check_claims, refuse_unserved
from unrolled_export.readers.state_dicts.hints import Hints, find_cell
from unrolled_export.readers.state_dicts.initial_states import (
    InitialStates,
    fitted_initial,
    take_initial,
)
from unrolled_export.readers.state_dicts.module_classes import (
    assumed_of_classes,
    refuse_unread_classes,
)
from unrolled_export.readers.state_dicts.numbering import are_neighbours
from unrolled_export.readers.state_dicts.parametrized import with_plain_weights
from unrolled_export.readers.state_dicts.parts import (
    Matrix,
    Norm,
    Part,
    beside,
    module_of,
    refuse_foreign,
    training_only,
)
from unrolled_export.readers.state_dicts.recurrent import Recurrent, find_recurrent, read_layers
from unrolled_export.readers.state_dicts.roles import find_roles
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
    model, `hints` plain values found beside the tensors. Settings: `nonlinearity`, `input`,
    `head`, `norm`, `order`, `norm_epsilon`, `head_activation`, `input_activation`, each where it
    is needed. Raises CheckpointError, SettingNeeded or SettingError.
    """
    refuse_unserved(tensors, modules, hints)
    tensors = with_plain_weights(tensors)
    tensors.set_aside(filter(tensors.is_counter, tensors.left), "a counter")
    recurrent = find_recurrent(tensors)
    said = cell
    cell = _cell_as_said(tensors, recurrent[0], cell) or find_cell(
        tensors, recurrent, settings, modules, hints
    )
    layers = {part.name: read_layers(tensors, part) for part in recurrent}
    refuse_foreign(tensors, recurrent, modules)
    refuse_unread_classes(tensors, modules)
    tensors.set_aside(training_only(tensors), "of a loss or metric")
    initial = take_initial(tensors)
    chain, placing = find_roles(tensors, recurrent, settings, modules)
    activations = find_activations(tensors, chain, settings, modules)
    assembly = Assembly(tensors, chain, layers, activations, settings, modules)
    # What leaves float32's range when it is folded becomes infinite, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        network = assembly.network(cell)
    if not all(np.isfinite(array).all() for _, array in network.arrays()):
        raise tensors.error("weights that leave the range of float32 where they are folded")
    check_claims(tensors, chain, network, activations, settings, modules, hints)
    network = replace(network, initial=fitted_initial(tensors, initial, network.states))
    text = _text(tensors, chain, cell, activations, initial)
    tensors.check_all_taken(text)
    is_all_told = bool(modules) or said is not None or settings.text("head_activation") is not None
    assumptions = (
        *placing,
        *activations.assumptions,
        *_assumptions(chain, modules),
        *(() if is_all_told else _invisible(chain)),
        *assumed_of_classes(chain, cell, modules),
    )
    return Reading(network, text, assumptions)


def _cell_as_said(tensors: Tensors, first: Recurrent, said: Cell | None) -> Cell | None:
    """What the checkpoint says. Raises CheckpointError where the gates are of another cell."""
    if said is not None and said.gates != first.gates:
        shown = [tensors.shown(first.layers[0][field]) for field in ("weight_ih", "weight_hh")]
        raise tensors.error(
            f"{' and '.join(shown)} have {first.gates} gates, "
            f"but the cell is said to be {said}, which has {said.gates}"
        )
    return said


def _text(
    tensors: Tensors, chain: Chain, cell: Cell, activations: Activations, initial: InitialStates
) -> str:
    """Which tensors were taken for what, in words and in the order of the computation."""
    embedding = chain.ends.embedding
    start = "one-hot input"
    if embedding is not None:
        start = f"embedding {embedding.weight}{_followed(embedding, activations)}"
    parts = [_described(part, cell, activations) for part in chain.parts]
    before_head = "" if activations.at_head is Activation.LINEAR else f"{activations.at_head} and "
    head = f"{before_head}{_head_text(chain)}"
    return ", ".join((start, *parts, *_initial_text(initial), head, *tensors.aside))


def _followed(part: Part, activations: Activations) -> str:
    activation = activations.after.get(part.name, Activation.LINEAR)
    return "" if activation is Activation.LINEAR else f" with {activation}"


def _described(part: Part, cell: Cell, activations: Activations) -> str:
    after = _followed(part, activations)
    if isinstance(part, Recurrent):
        return f"{cell} {part.prefix}*{after}"
    if isinstance(part, Norm):
        return f"{'batch' if part.is_batch else 'layer'} norm {part.name}{after}"
    return f"linear {part.weight}{f' and {part.bias}' if part.bias else ''}{after}"


def _initial_text(initial: InitialStates) -> Iterator[str]:
    names = [name for kind in sorted(initial.names, reverse=True) for name in initial.names[kind]]
    if names:
        yield f"initial states {' and '.join(names)}"


def _head_text(chain: Chain) -> str:
    # The name beside the bias, of those that tied weights have.
    own = [name for name in chain.ends.head.names if chain.head_bias == beside(name, "bias")]
    name = (own or chain.ends.head.names[-1:])[0]
    bias = f" and {chain.head_bias}" if chain.head_bias else ", no bias"
    return f"head {name}{bias}{', tied to the embedding' if chain.ends.is_tied else ''}"


def _assumptions(chain: Chain, modules: Modules) -> Iterator[str]:
    """What has been taken beside places and activations."""
    if len(chain.recurrent) > 1:
        yield "no residual connections between the recurrent modules"
    for module in chain.recurrent:
        if len(module.layers[0].keys() & {"bias_ih", "bias_hh"}) == 1:
            yield f"the bias that {module.name} lacks is zero"
    for part in chain.free:
        if isinstance(part, Norm) and not part.is_batch and part.name not in modules:
            yield f"{part.name} is a layer norm"


def _invisible(chain: Chain) -> Iterator[str]:
    """What tensors alone cannot show, where no question has settled it."""
    head = module_of(chain.ends.head.names[-1])
    behind = [chain.recurrent[-1], *chain.after]
    for part, following in zip(behind, [*(part.name for part in behind[1:]), head], strict=True):
        if not isinstance(part, Matrix) and not are_neighbours(part.name, following):
            yield (
                "nothing without weights (an activation, a norm) between "
                f"{part.name or 'the recurrent layers'} and {following}"
            )

"""The activations between the parts of a network, which a state dict does not hold.

In a pickled model an activation that is a module inside nn.Sequential has a clear place: right
after the part before it there. Any other, and whatever `forward` does by functions, the user has
to tell; what one published family alone does is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unrolled_export.network import Activation
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.module_places import (
    known_linear,
    part_before,
    path_names,
    strangers,
)
from unrolled_export.readers.state_dicts.numbering import is_place_empty
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, module_of
from unrolled_export.readers.state_dicts.told_activations import ToldActivations, unknown_after
from unrolled_export.readers.state_dicts.torch_classes import (
    ACTIVATION_CLASSES,
    NORMALISED_CLASSES,
    SERVED_CLASSES,
)
from unrolled_export.readers.tensors import Tensors

_POSSIBLE = (Activation.LINEAR, Activation.RELU, Activation.TANH)
_LIKELY = (Activation.RELU, Activation.LINEAR, Activation.TANH)
"""Where something without weights stands, which a dropout may be too."""
_LINEAR_NAMES = {"proj": "flair", "additional_fc": "fairseq"}
"""Stages before the head without an activation, by the family that names them so."""


@dataclass(frozen=True)
class Activations:
    """What is applied to the output of each part, by the part's name."""

    after: dict[str, Activation]
    at_head: Activation
    """What is applied to the input of the head, beside that."""
    untold: dict[str, str]
    """By a part's name, the setting that would tell what is applied to its output, where neither
    the user nor the model has."""
    is_told: bool
    """Whether the user has told any."""
    strangers: frozenset[str]
    """Paths of modules of unknown classes that what was told is said of."""
    assumptions: tuple[str, ...]


NO_ACTIVATIONS = Activations({}, Activation.LINEAR, {}, False, frozenset(), ())


def find_activations(
    tensors: Tensors, chain: Chain, settings: Settings, modules: Modules
) -> Activations:
    """Every activation of the chain.

    Settings: `head_activation` after linear stages behind the recurrent layers, or without any
    before the head; `input_activation` after linear stages before the recurrent layers, or
    without any after the embedding. `head_activation.PART` and `input_activation.PART` tell it of
    one part alone. Raises CheckpointError and SettingNeeded.
    """
    _check_normalised(tensors, chain, modules)
    placed, unclear = _placed(tensors, chain, modules)
    known = placed.keys() | known_linear(chain, modules)
    strange = strangers(chain, placed, modules)
    before = _open_stages(chain.before, known, strange)
    after = _open_stages(chain.after, known, strange)
    path, first, last = path_names(chain)[:-1], chain.recurrent[0].name, chain.recurrent[-1].name
    ahead, behind = path[: path.index(first)], path[path.index(last) :]
    embedding = [] if chain.ends.embedding is None else ahead[:1]
    stages = before or [name for name in embedding if name not in placed]
    inputs = _told(tensors, settings, "input_activation", stages, ahead, known)
    heads = _told(tensors, settings, "head_activation", after or behind[-1:], behind, known)
    conventions = _conventions(settings, after, unclear)
    gap = None if modules else _behind_empty_place(chain, after)
    if unclear:
        _ask_for_unclear(unclear, chain, inputs, heads)
    elif gap is not None:
        heads.need(f"by its number {gap} stands behind a module without weights", _LIKELY)
    elif len(conventions) < len(after):
        heads.need(_unknown(after, strange), _POSSIBLE, _norms_behind(chain.after))
    if before:
        inputs.need(_unknown(before, strange), _POSSIBLE, _norms_behind(chain.before))
    assumptions = (
        *(f"no activation after {name}, as in {family}" for name, family in conventions),
        *(f"{path} ({kind}) is applied nowhere else" for path, kind in unclear.items()),
    )
    at_last = None if after else behind[-1]
    paths = (path for path, _ in strange.values())
    return _activations(inputs, heads, placed, at_last, paths, assumptions)


def _ask_for_unclear(
    unclear: Mapping[str, str], chain: Chain, inputs: ToldActivations, heads: ToldActivations
) -> None:
    """Raise SettingNeeded where nothing tells what the modules are applied to: among norms by
    part, since what is applied to one is often meant to follow it."""
    if not any(isinstance(part, Norm) for part in chain.after):
        heads.need(*_unclear_question(unclear))
    elif not inputs.is_any_applied():
        heads.need_place(*_unclear_question(unclear))


def _told(
    tensors: Tensors,
    settings: Settings,
    key: str,
    stages: Sequence[str],
    parts: Sequence[str],
    known: Collection[str],
) -> ToldActivations:
    open_ = [part for part in parts if part in stages or part not in known]
    return ToldActivations(tensors, settings, key, stages, open_)


def _activations(
    inputs: ToldActivations,
    heads: ToldActivations,
    placed: Mapping[str, Activation],
    last: str | None,
    strangers: Iterable[str],
    assumptions: tuple[str, ...],
) -> Activations:
    """What was told and what modules are; `last` is the part whose output the head reads, where
    what is told of it is beside an activation that is a module."""
    at_inputs, at_heads = inputs.chosen(), heads.chosen()
    is_told = bool(at_inputs or at_heads)
    at_head = Activation.LINEAR if last is None else at_heads.pop(last, Activation.LINEAR)
    after = {**at_inputs, **at_heads, **placed}
    untold = inputs.untold() | heads.untold()
    return Activations(after, at_head, untold, is_told, frozenset(strangers), assumptions)


def _conventions(
    settings: Settings, names: Sequence[str], unclear: dict[str, str]
) -> list[tuple[str, str]]:
    """Linear stages whose name tells that no activation follows, and the family that it is of;
    none where the user or a module of the model has something to say about it."""
    if unclear:
        return []
    families = [(name, _LINEAR_NAMES.get(name.rpartition(".")[2])) for name in names]
    return [
        (name, family)
        for name, family in families
        if family is not None and settings.text(settings.key_for("head_activation", name)) is None
    ]


def _open_stages(
    parts: Sequence[Matrix | Norm], known: Collection[str], strange: Collection[str]
) -> list[str]:
    """Names of the parts that an activation is likely to follow."""
    return [
        part.name
        for part in parts
        if part.name in strange or (isinstance(part, Matrix) and part.name not in known)
    ]


def _unknown(names: Sequence[str], strange: Mapping[str, tuple[str, str]]) -> str:
    """What is not known of the parts, in words."""
    for name in names:
        if name in strange:
            path, kind = strange[name]
            return f"module {path} ({kind}) may be an activation after {name}"
    return unknown_after(names)


def _norms_behind(parts: Sequence[Matrix | Norm]) -> dict[str, str]:
    """Names of norms by that of the linear stage that they follow."""
    return {
        part.name: following.name
        for part, following in pairwise(parts)
        if isinstance(part, Matrix) and isinstance(following, Norm)
    }


def _behind_empty_place(chain: Chain, stages: Sequence[str]) -> str | None:
    """The first part that its number shows to be behind a module without weights, of those that
    follow `stages` or are the head."""
    order = path_names(chain)
    for name, following in pairwise(order):
        is_asked_for = name in stages or following == order[-1]
        if is_asked_for and is_place_empty(following, order):
            return following
    return None


def _unclear_question(unclear: Mapping[str, str]) -> tuple[str, tuple[Activation, ...]]:
    """The problem and the choices."""
    shown = " and ".join(f"module {path} ({kind})" for path, kind in unclear.items())
    served = [SERVED_CLASSES[kind] for kind in unclear.values() if kind in SERVED_CLASSES]
    return f"{shown} may be applied before the head", (Activation.LINEAR, *dict.fromkeys(served))


def _check_normalised(tensors: Tensors, chain: Chain, modules: Modules) -> None:
    """Raise CheckpointError for a softmax that is not behind the head."""
    order, places = path_names(chain), list(modules)
    heads = [places.index(name) for name in map(module_of, chain.ends.head.names) if name in places]
    for path, module in modules.items():
        if module.class_name not in NORMALISED_CLASSES:
            continue
        before = part_before(path, order, modules)
        is_behind = places.index(path) > max(heads, default=-1)
        if not (is_behind if before is None else before == order[-1]):
            raise tensors.error(
                f"module {path} ({module.class_name}) is not behind the head, which this release "
                "does not serve"
            )


def _placed(
    tensors: Tensors, chain: Chain, modules: Modules
) -> tuple[dict[str, Activation], dict[str, str]]:
    """Activations by the part that they follow, and the class names of those of unclear place.

    Raises CheckpointError for one that cannot be served where it is.
    """
    order = path_names(chain)
    placed: dict[str, Activation] = {}
    unclear: dict[str, str] = {}
    for path, module in modules.items():
        if module.class_name not in ACTIVATION_CLASSES:
            continue
        before = part_before(path, order, modules)
        if before is None:
            unclear[path] = module.class_name
        elif before in placed or before == order[-1] or module.class_name not in SERVED_CLASSES:
            raise tensors.error(
                f"module {path} ({module.class_name}) is applied to the output of {before}, which "
                "this release does not serve"
            )
        else:
            placed[before] = SERVED_CLASSES[module.class_name]
    return placed, unclear

"""The language model in what a file of `torch.save` held, wherever it lies.

By structure: maps that name tensors and objects that hold modules are candidates, and those whose
tensors are called like recurrent weights are models. The rest of the file may hold hints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.readers.pickling.inert import OddTensor, Opaque
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.pytorch_files.object_tree import Place, children, walk
from unrolled_export.readers.pytorch_files.pickled_modules import (
    Tensor,
    flat_module,
    is_module,
    is_script,
    named_tensors,
    plain_values,
)
from unrolled_export.readers.pytorch_files.storage import StoredTensor
from unrolled_export.readers.settings import Settings

_RECURRENT = re.compile(r"weight_hh|weight_hr|h2h|state_linearity|recurrent_kernel")
_RECURRENT_ONLY = re.compile(r"(.*\.)?(weight|bias)_(ih|hh|hr)(_l\d+)?(_raw)?(_reverse)?")
_NOT_A_MODEL = re.compile(
    r"\w*optim\w*|momentum\w*|exp_avg\w*|\w*scheduler|grads?|gradients?", re.IGNORECASE
)
"""As part of a path: the numbers that optimizers keep for each weight."""
_MOST_MODELS = 64
_LONGEST_NAME = 300
_HINT_LEVELS = 2
"""Of maps in one another beside the model, such as hyper_parameters and the args in them."""


@dataclass(frozen=True)
class FoundModel:
    """A model, and what was found beside it."""

    arrays: Mapping[str, NDArray[Any]]
    """By dotted name, without the prefix that all share."""
    modules: Modules
    """Empty for a state dict."""
    hints: Mapping[str, object]
    """Plain values beside and above it by path, of each name the nearest."""
    place: str
    """Where in the file: keys and attributes, `.` for all of it."""
    is_script: bool = False
    """Whether it is a module of TorchScript."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    place: Place
    tensors: Mapping[str, Tensor]
    modules: Modules

    @property
    def is_recurrent(self) -> bool:
        return any(_RECURRENT.search(name) for name in self.tensors)

    @property
    def is_only_recurrent(self) -> bool:
        return all(_RECURRENT_ONLY.fullmatch(name) for name in self.tensors)


def find_model(file: Path, tree: object, settings: Settings) -> FoundModel:
    """The model in `tree`. Setting: `model`, where there are several.

    Raises CheckpointError where there is none or one of its tensors is of a kind that is not
    read, and SettingNeeded where there are several.
    """
    candidates = tuple(_candidates(file, tree))
    chosen = _with_siblings(_chosen(file, candidates, settings), candidates)
    _check_names(file, chosen)
    arrays = {name: _array(file, name, tensor) for name, tensor in chosen.tensors.items()}
    prefix = _shared_prefix(arrays)
    return FoundModel(
        {name.removeprefix(prefix): array for name, array in arrays.items()},
        _without_prefix(chosen.modules, prefix),
        _hints(chosen.place),
        chosen.place.name,
        isinstance(chosen.place.value, Opaque) and is_script(chosen.place.value),
    )


def may_hold_model(file: Path, tree: object) -> bool:
    """Whether anything in `tree` names a matrix. Raises CheckpointError as find_model does."""
    return any(
        len(_shape(tensor)) > 1
        for candidate in _candidates(file, tree)
        for tensor in candidate.tensors.values()
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """None of a tensor that is not read."""
    if isinstance(tensor, OddTensor):
        return ()
    return tensor.shape if isinstance(tensor, StoredTensor) else tensor.array.shape


def _candidates(file: Path, tree: object) -> Iterator[_Candidate]:
    """Outer ones first; none inside a module."""
    modules: set[int] = set()
    for place in walk(tree):
        value = place.value
        if any(id(outer) in modules for outer in place.ancestors()):
            continue
        if isinstance(value, Opaque) and is_module(value):
            modules.add(id(place))
            if len(modules) > _MOST_MODELS:
                raise CheckpointError(file, f"holds more than {_MOST_MODELS} models")
            yield _Candidate(place, *flat_module(file, value))
        elif tensors := named_tensors(value):
            yield _Candidate(place, tensors, {})


def _chosen(file: Path, candidates: Sequence[_Candidate], settings: Settings) -> _Candidate:
    """The only model, or the one that the user names; the largest candidate where none is."""
    if not candidates:
        raise CheckpointError(file, "holds no model: no map or module in it names tensors")
    usual = [one for one in candidates if _may_be_model(one.place.name)] or candidates
    models = [one for one in usual if one.is_recurrent]
    if len(models) > _MOST_MODELS:
        raise CheckpointError(file, f"holds more than {_MOST_MODELS} models")
    likely = models or [max(usual, key=lambda one: len(one.tensors))]
    for one in likely:
        _check_names(file, one)
    different = _different(file, likely)
    if len(different) == 1:
        return different[0]
    return _named(file, different, settings)


def _check_names(file: Path, candidate: _Candidate) -> None:
    """Raise CheckpointError for a name that is none."""
    longest = max(map(len, candidate.tensors), default=0)
    if longest > _LONGEST_NAME:
        raise CheckpointError(file, f"a tensor has a name of {longest:,} characters")


def _may_be_model(path: str) -> bool:
    return not any(_NOT_A_MODEL.fullmatch(part) for part in path.split("."))


def _named(file: Path, models: Sequence[_Candidate], settings: Settings) -> _Candidate:
    names = [model.place.name for model in models]
    name = settings.choice("model", names)
    if name is None:
        raise SettingNeeded(file, f"holds {len(names)} different models", "model", names[:4])
    return models[names.index(name)]


def _different(file: Path, models: Sequence[_Candidate]) -> list[_Candidate]:
    """Those that do not repeat another; of equal ones a module rather than a state dict."""
    kept: list[_Candidate] = []
    for model in sorted(models, key=lambda model: not model.modules):
        if not any(_are_same(file, model, other) for other in kept):
            kept.append(model)
    return kept


def _are_same(file: Path, one: _Candidate, other: _Candidate) -> bool:
    """Whether two models hold the same numbers under the same names, but for a prefix."""
    first, second = (_without_shared_prefix(model.tensors) for model in (one, other))
    return first.keys() == second.keys() and all(
        first[name] is second[name]
        or np.array_equal(_array(file, name, first[name]), _array(file, name, second[name]))
        for name in first
    )


def _without_shared_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _shared_prefix(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _with_siblings(chosen: _Candidate, candidates: Sequence[_Candidate]) -> _Candidate:
    """A bare recurrent module with the parts saved beside it, each under its key."""
    parent = chosen.place.parent
    if parent is None or not chosen.is_only_recurrent:
        return chosen
    beside = [part for part in candidates if part.place.parent is parent]
    others = [part for part in beside if not part.is_recurrent and _may_be_model(part.place.name)]
    if not others:
        return chosen
    parts = [part for part in beside if part is chosen or part in others]
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Module] = {}
    for part in parts:
        key = part.place.path[-1]
        tensors |= {f"{key}.{name}": tensor for name, tensor in part.tensors.items()}
        modules |= {f"{key}.{path}".removesuffix("."): one for path, one in part.modules.items()}
    return _Candidate(parent, named_tensors(parent.value) | tensors, modules)


def _array(file: Path, name: str, tensor: Tensor) -> NDArray[Any]:
    if isinstance(tensor, OddTensor):
        raise CheckpointError(file, f"{name!r} is a {tensor.kind}, which is not read")
    try:
        return tensor.load()
    except ValueError as error:
        raise CheckpointError(file, f"{name!r} has no data: damaged or cut off") from error


def _shared_prefix(names: Mapping[str, object]) -> str:
    """What all names begin with, in whole parts, leaving at least one name of two parts."""
    prefix = ""
    while True:
        first = next(iter(names), "")[len(prefix) :].partition(".")[0]
        longer = f"{prefix}{first}."
        if not all(name.startswith(longer) for name in names):
            return prefix
        if not any("." in name[len(longer) :] for name in names):
            return prefix
        prefix = longer


def _without_prefix(modules: Modules, prefix: str) -> Modules:
    return {
        f"{path}.".removeprefix(prefix).removesuffix("."): module
        for path, module in modules.items()
        if f"{path}.".startswith(prefix) or not prefix
    }


def _hints(place: Place) -> dict[str, object]:
    """Plain values in the maps and objects around the model, and in those beside it."""
    hints = _Hints()
    around = (place, *place.ancestors())
    for holder in around:
        # What a module says itself is in the modules.
        if not is_module(holder.value):
            hints.add("", holder.value)
        for path, value in _beside(holder.value, _HINT_LEVELS):
            hints.add(path, value)
    return hints.by_path


class _Hints:
    """Plain values, of each name the first."""

    def __init__(self) -> None:
        self.by_path: dict[str, object] = {}
        self._names: set[str] = set()
        self._seen: set[int] = set()

    def add(self, path: str, value: object) -> None:
        """Those directly in a map or object; `path` is where it is, with a dot behind."""
        if id(value) in self._seen or isinstance(value, (list, tuple)):
            return
        self._seen.add(id(value))
        for name, hint in plain_values(value):
            if name not in self._names:
                self._names.add(name)
                self.by_path[path + name] = hint


def _beside(value: object, levels: int, path: str = "") -> Iterator[tuple[str, object]]:
    """Maps and objects inside, outer ones first, but neither modules nor what optimizers keep."""
    inner = [
        (f"{path}{name}.", child)
        for name, child in children(value)
        if isinstance(child, (dict, Opaque))
        and not is_module(child)
        and _may_be_model(name)
        and not name.startswith("_")
    ]
    yield from inner
    if levels > 1:
        for name, child in inner:
            yield from _beside(child, levels - 1, name)

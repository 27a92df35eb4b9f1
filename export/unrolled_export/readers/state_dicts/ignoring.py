"""Tensors that the user says the output does not depend on.

They are taken away before anything is read, and with them the modules that hold nothing else. What
belongs to a part that is read all the same cannot be taken away: it would be another part.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product

from unrolled_export.errors import SettingError
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

_OF_PART = re.compile(r"(weight|bias|running_mean|running_var)(_\w+)?")
_OF_RNN = re.compile(r"(weight|bias|w|b)(_\w+)?", re.IGNORECASE)
_MOST_SHOWN = 3


def ignored_names(tensors: Tensors, settings: Settings) -> tuple[str, ...]:
    """Names of the tensors that the setting `ignore` tells, in the file's order.

    Its value is one or more patterns of fnmatch, with commas between. Raises SettingError for one
    that no tensor matches.
    """
    value = settings.text("ignore")
    patterns = [] if value is None else value.split(",")
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in tensors.left):
            raise SettingError(f"--set ignore={pattern}: no tensor is called so")
    return tuple(
        name for name in tensors.left if any(_matches(name, pattern) for pattern in patterns)
    )


def modules_without(modules: Modules, ignored: Sequence[str], tensors: Tensors) -> Modules:
    """The modules but those that hold nothing but ignored tensors; `tensors` are the others."""
    emptied = set(_paths(ignored)) - {"", *_paths(tensors.left)}
    return {path: module for path, module in modules.items() if path not in emptied}


def refuse_other_cell(
    tensors: Tensors, names: Sequence[str], recurrent: Sequence[Recurrent]
) -> None:
    """Raise CheckpointError for one of `names` that a recurrent module has beside what PyTorch's
    have: it is by its rows of the gates, so another cell."""
    for part, name in product(recurrent, names):
        field = name.removeprefix(part.prefix)
        if not name.startswith(part.prefix) or "." in field:
            continue
        units = tensors.shape(part.layers[0]["weight_hh"])[0] // part.gates
        rows = (*tensors.shape(name), 0)[0]
        if part.gates > 1:
            is_of_gates = rows in (3 * units, 4 * units)
        else:
            is_of_gates = rows == units and _OF_RNN.fullmatch(field) is not None
        if is_of_gates:
            raise tensors.error(
                f"{tensors.shown(name)} is of the gates of {part.name or 'the recurrent layer'}, "
                "which is not a cell of PyTorch then, and not served"
            )


def check_ignored(ignored: Sequence[str], chain: Chain) -> None:
    """Raise SettingError for a tensor that belongs to a part of the chain."""
    for name in ignored:
        if _is_of(name, chain):
            part = _module(name) or "the model itself"
            raise SettingError(f"--set ignore: {name} belongs to {part}, which is read")


def _is_of(name: str, chain: Chain) -> bool:
    """Whether a tensor that the chain does not use belongs to a part of it all the same."""
    ends = (chain.ends.head, *(() if chain.ends.embedding is None else (chain.ends.embedding,)))
    names = {name for part in (*chain.parts, *ends) for name in part.tensors}
    modules = {*map(_module, names), *(part.name for part in chain.parts)}
    return _module(name) in modules and bool(_OF_PART.fullmatch(name.rpartition(".")[2]))


def assumed_of_ignored(ignored: Sequence[str]) -> Iterator[str]:
    """What it takes for granted."""
    if ignored:
        more = f" and {len(ignored) - _MOST_SHOWN} more" if len(ignored) > _MOST_SHOWN else ""
        yield f"the output does not depend on {', '.join(ignored[:_MOST_SHOWN])}{more} (ignored)"


def remedy(left: Sequence[str], used: Collection[str], chain: Chain) -> str:
    """How to say that the output does not depend on what is left over; nothing where that is
    refused."""
    if any(_is_of(name, chain) for name in left):
        return ""
    patterns = list(dict.fromkeys(_pattern(name, left, used) for name in left))
    value = ",".join(patterns) if len(patterns) <= _MOST_SHOWN else "PATTERN,PATTERN"
    setting = shlex.quote(f"ignore={value}")
    return f"where the output does not depend on them, add --set {setting}"


def _pattern(name: str, left: Sequence[str], used: Collection[str]) -> str:
    """One for all that the tensor's module holds, where all of that is left over."""
    whole = f"{_module(name)}.*"
    matched = {other for other in (*left, *used) if _matches(other, whole)}
    is_whole = len(matched) > 1 and matched.issubset(left)
    return whole if is_whole and "," not in whole else name.replace(",", "?")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _paths(names: Sequence[str]) -> Iterator[str]:
    """The path of every module that holds one of the tensors."""
    for name in names:
        path = name
        while path := _module(path):
            yield path

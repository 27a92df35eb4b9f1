"""Tensors that the user says the output does not depend on.

They are taken away before anything is read, and with them the modules that hold nothing else. What
belongs to a part that is read all the same cannot be taken away: it would be another part.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase

from unrolled_export.errors import SettingError
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.tensors import Tensors

_OF_PART = re.compile(r"(weight|bias|running_mean|running_var)(_\w+)?")
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


def check_ignored(ignored: Sequence[str], chain: Chain) -> None:
    """Raise SettingError for a tensor that belongs to a part of the chain."""
    ends = (chain.ends.head, *(() if chain.ends.embedding is None else (chain.ends.embedding,)))
    names = {name for part in (*chain.parts, *ends) for name in part.tensors}
    modules = {*map(_module, names), *(part.name for part in chain.parts)}
    for name in ignored:
        if _module(name) in modules and _OF_PART.fullmatch(name.rpartition(".")[2]):
            part = _module(name) or "the model itself"
            raise SettingError(f"--set ignore: {name} belongs to {part}, which is read")


def assumed_of_ignored(ignored: Sequence[str]) -> Iterator[str]:
    """What it takes for granted."""
    if ignored:
        more = f" and {len(ignored) - _MOST_SHOWN} more" if len(ignored) > _MOST_SHOWN else ""
        yield f"the output does not depend on {', '.join(ignored[:_MOST_SHOWN])}{more} (ignored)"


def remedy(left: Sequence[str], used: Collection[str]) -> str:
    """How to say that the output does not depend on what is left over."""
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

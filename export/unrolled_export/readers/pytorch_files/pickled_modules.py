"""Pickled modules of PyTorch as inert objects: their tensors, submodules and plain attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.pickling.inert import OddTensor, Opaque, Reference
from unrolled_export.readers.pickling.numpy_arrays import NumpyArray
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.pytorch_files.object_tree import children
from unrolled_export.readers.pytorch_files.storage import StoredTensor

_TORCHSCRIPT = "__torch__"
_MOST = 100_000
"""Modules or tensors of one model: a few objects that hold one another could pretend to more."""
_LONGEST_TEXT = 200
_LONGEST_TUPLE = 64

Tensor = StoredTensor | NumpyArray | OddTensor


def is_module(value: object) -> bool:
    """Whether it is an nn.Module, or a module of a TorchScript archive."""
    if not isinstance(value, Opaque):
        return False
    return isinstance(value.state.get("_modules"), dict) or is_script(value)


def is_script(module: Opaque) -> bool:
    """Whether it is a module of a TorchScript archive."""
    return module.class_name.partition(".")[0] == _TORCHSCRIPT


def flat_module(file: Path, root: Opaque) -> tuple[dict[str, Tensor], Modules]:
    """Tensors, as a state dict names them, and modules; in order of registration.

    Raises CheckpointError where modules hold one another without end.
    """
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Module] = {}
    described: dict[int, Module] = {}
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        if id(module) not in described:
            described[id(module)] = Module(module.class_name, _attributes(module))
        modules[path] = described[id(module)]
        start = f"{path}." if path else ""
        tensors.update((start + name, tensor) for name, tensor in _own_tensors(module).items())
        waiting += reversed([(start + name, child) for name, child in _own_modules(module)])
        if max(len(modules) + len(waiting), len(tensors)) > _MOST or len(path) > 1000:
            raise CheckpointError(file, f"the {root.short_name} nests modules without end")
    return tensors, modules


def named_tensors(value: object) -> dict[str, Tensor]:
    """The tensors directly in a map, by their keys."""
    entries = value.entries if isinstance(value, Opaque) else value
    if not isinstance(entries, dict):
        return {}
    return {
        name: tensor
        for name, tensor in entries.items()
        if isinstance(name, str) and _is_tensor(tensor)
    }


def plain_values(value: object) -> Iterator[tuple[str, object]]:
    """The plain values directly in a map or object: numbers, short texts, truth values, None and
    tuples of these. A list counts as a tuple, a function or class as its dotted name."""
    for name, inner in children(value):
        if isinstance(inner, Reference):
            yield name, inner.full_name
        elif _is_short(inner):
            yield name, inner
        elif _is_short_list(inner):
            yield name, tuple(inner)


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, float)


def _is_short_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    if not isinstance(value, (list, tuple)) or len(value) > _LONGEST_TUPLE:
        return False
    return all(_is_short(part) for part in value)


def _is_tensor(value: object) -> bool:
    """NumPy's arrays of text are none."""
    if isinstance(value, NumpyArray):
        return value.items is None and value.array.dtype.kind not in "US"
    return isinstance(value, (StoredTensor, OddTensor))


def _own_tensors(module: Opaque) -> dict[str, Tensor]:
    """Parameters, and the buffers that a state dict would have."""
    if is_script(module):
        return named_tensors(module.state)
    passing = module.state.get("_non_persistent_buffers_set")
    skipped = passing.items if isinstance(passing, Opaque) else []
    buffers = named_tensors(module.state.get("_buffers"))
    for name in skipped:
        if isinstance(name, str):
            buffers.pop(name, None)
    return named_tensors(module.state.get("_parameters")) | buffers


def _own_modules(module: Opaque) -> Iterator[tuple[str, Opaque]]:
    held = module.state if is_script(module) else module.state.get("_modules")
    for name, child in children(held):
        if isinstance(child, Opaque) and is_module(child):
            yield name, child


def _attributes(module: Opaque) -> dict[str, object]:
    return dict(plain_values(dict(module.state)))

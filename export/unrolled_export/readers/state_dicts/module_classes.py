"""What the classes of a pickled model's modules mean for its reading.

Only their names are known, never their code. Classes of torch.nn are read, without effect at
inference, or refused; of any other class something has to be assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from unrolled_export.network import Cell
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part, module_of
from unrolled_export.readers.state_dicts.torch_classes import (
    ACTIVATION_CLASSES,
    NORMALISED_CLASSES,
    TORCH_NAMES,
    is_known,
)
from unrolled_export.readers.tensors import Tensors


def assumed_of_classes(
    tensors: Tensors, chain: Chain, cell: Cell, modules: Modules, told: Collection[str]
) -> Iterator[str]:
    """What is taken for granted of modules whose classes are not known, but of the paths `told`."""
    parts = dict(_parts_by_path(chain))
    names = (*tensors.arrays(), *modules)
    running: list[str] = []
    idle: list[str] = []
    for path, module in modules.items():
        is_empty = path != "" and not any(name.startswith(f"{path}.") for name in names)
        if path in told or is_known(module, is_empty=is_empty):
            continue
        name = _shown(module)
        if path in parts:
            yield f"{name} computes as nn.{_standard(parts[path], chain, cell)}"
        elif _has_modules(path, modules):
            running.append(name)
        elif module.class_name in ACTIVATION_CLASSES | NORMALISED_CLASSES:
            yield f"{name} computes as nn.{module.class_name}"
        else:
            idle.append(name)
    yield from _assumed(running, "to apply its modules one after another and nothing else")
    yield from _assumed(idle, "to change nothing")


def is_sequence(modules: Modules) -> bool:
    """Whether the pickled model as a whole is one that only applies its modules in turn."""
    return "" in modules and modules[""].torch_class == "Sequential"


def is_own(modules: Modules) -> bool:
    """Whether the pickled model as a whole is of a class of its own, which something is assumed
    of."""
    return "" in modules and not is_known(modules[""], is_empty=False)


def _shown(module: Module) -> str:
    """Its class, told from PyTorch's of the same name."""
    is_alike = module.torch_class is None and module.class_name in TORCH_NAMES
    return f"the model's own {module.class_name}" if is_alike else module.class_name


def _parts_by_path(chain: Chain) -> Iterator[tuple[str, Part]]:
    """Every part, under each of its names."""
    ends = (chain.ends.head, *(() if chain.ends.embedding is None else (chain.ends.embedding,)))
    for part in (*ends, *chain.parts):
        if isinstance(part, Matrix):
            yield from ((module_of(name), part) for name in part.names)
        else:
            yield part.name, part


def _standard(part: Part, chain: Chain, cell: Cell) -> str:
    """The class of torch.nn that has such tensors."""
    if isinstance(part, Norm):
        return "BatchNorm1d" if part.is_batch else "LayerNorm"
    if isinstance(part, Matrix):
        return "Embedding" if part is chain.ends.embedding else "Linear"
    kind = {Cell.LSTM: "LSTM", Cell.GRU: "GRU"}.get(cell, "RNN")
    return f"{kind}Cell" if part.is_cell else kind


def _has_modules(path: str, modules: Modules) -> bool:
    start = f"{path}." if path else ""
    return any(other != path and other.startswith(start) for other in modules)


def _assumed(names: Sequence[str], what: str) -> Iterator[str]:
    """One phrase for all classes."""
    if distinct := list(dict.fromkeys(names)):
        verb = "is" if len(distinct) == 1 else "are"
        phrase = what if len(distinct) == 1 else what.replace("its", "their")
        yield f"{', '.join(distinct)} {verb} taken {phrase}"

"""Where the modules of a pickled model stand among the parts of a network: nn.Sequential alone
tells it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.numbering import are_neighbours
from unrolled_export.readers.state_dicts.parts import Norm
from unrolled_export.readers.state_dicts.torch_classes import is_known


def path_names(chain: Chain) -> list[str]:
    """The names of the parts from the embedding to the head."""
    embedding = [] if chain.ends.embedding is None else [chain.ends.embedding.name]
    return [*embedding, *(part.name for part in chain.parts), chain.ends.head_name]


def part_before(path: str, order: Sequence[str], modules: Modules) -> str | None:
    """The part whose output the module inside nn.Sequential reads; None where that is unclear."""
    parent = path.rpartition(".")[0]
    if not _is_sequential(parent, modules):
        return None
    earlier: list[str] = []
    later: list[str] = []
    for sibling in _children(parent, modules):
        (later if path in earlier else earlier).append(sibling)
    found = [name for name in earlier if name in order]
    if found:
        return found[-1]
    following = [order.index(name) for name in later if name in order]
    return order[following[0] - 1] if following and following[0] else None


def strangers(
    chain: Chain, placed: Collection[str], modules: Modules
) -> dict[str, tuple[str, str]]:
    """Paths and classes of modules of unknown classes, which may well be activations, by the part
    right after which nn.Sequential runs them."""
    order = path_names(chain)
    parts = {part.name for part in chain.free} - set(placed)
    found: dict[str, tuple[str, str]] = {}
    for path, module in modules.items():
        is_part = any(f"{name}.".startswith(f"{path}.") for name in order)
        if not path or is_part or is_known(module, is_empty=True):
            continue
        before = part_before(path, order, modules)
        if before in parts:
            found.setdefault(before, (path, module.class_name))
    return found


def known_linear(chain: Chain, modules: Modules) -> set[str]:
    """Parts after which nothing hides before the next: nn.Sequential runs the two one after the
    other, or a state dict numbers them so. (A list of like modules may have anything between.)"""
    order = path_names(chain)
    norms = {part.name for part in chain.parts if isinstance(part, Norm)}
    return {
        name
        for name, following in pairwise(order)
        if _are_in_sequence(name, following, modules)
        or (not modules and following in norms - {name} and are_neighbours(name, following))
    }


def _children(parent: str, modules: Modules) -> Iterator[str]:
    """Paths of the modules directly inside, in order."""
    for path in modules:
        if path and path.rpartition(".")[0] == parent:
            yield path


def _is_sequential(path: str, modules: Modules) -> bool:
    return path in modules and modules[path].torch_class == "Sequential"


def _are_in_sequence(name: str, following: str, modules: Modules) -> bool:
    parent = name.rpartition(".")[0]
    return parent == following.rpartition(".")[0] and _is_sequential(parent, modules)

"""In which order the parts between the embedding and the head follow one another.

Where the widths leave a choice, the order in which a pickled model registers its parts and then
their names tell it; where these leave a choice too, the user does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

from unrolled_export.errors import SettingError
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.ends import BEFORE_NAME
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

_AFTER_NAME = re.compile(
    r"out|head|decod|post|final|last|(^|[._])(fc\d*|proj|additional_fc|(ln|norm)_f)([._]|$)",
    re.IGNORECASE,
)
_MOST_CHOICES = 4


def placed(
    tensors: Tensors, chains: Sequence[Chain], settings: Settings, modules: Modules
) -> tuple[Chain, tuple[str, ...]]:
    """The chain whose parts are at the likeliest places, and what that takes for granted."""
    if len(chains) == 1:
        return chains[0], ()
    chosen = _chosen(tensors, chains, settings)
    registered = [chain for chain in chosen if _is_registered(chain, modules)] or chosen
    best = max(_place_evidence(chain) for chain in registered)
    likeliest = [chain for chain in registered if _place_evidence(chain) == best]
    if len(likeliest) > 1:
        _ask_for_order(tensors, likeliest)
    order = _order(likeliest[0]).replace(",", ", ")
    return likeliest[0], (f"the parts follow one another as {order}",) if len(chosen) > 1 else ()


def _chosen(tensors: Tensors, chains: Sequence[Chain], settings: Settings) -> list[Chain]:
    """Those that agree with the settings. Raises SettingError where none does."""
    place = settings.choice("norm", ("before", "after"))
    order = settings.text("order")
    chosen = [
        chain
        for chain in chains
        if (place is None or _norms_are(place, chain)) and order in (None, _order(chain))
    ]
    if not chosen:
        setting = f"norm={place}" if order is None else f"order={order}"
        orders, more = _shown_orders(tensors, chains)
        others = f" or {more} more" if more else ""
        raise SettingError(f"--set {setting}: the widths allow {' or '.join(orders)}{others}")
    return chosen


def _norms_are(place: str, chain: Chain) -> bool:
    """Whether every norm has a recurrent module somewhere on that side of it."""
    kinds = [isinstance(part, Recurrent) for part in chain.parts]
    norms = [index for index, part in enumerate(chain.parts) if isinstance(part, Norm)]
    if place == "before":
        return all(any(kinds[index:]) for index in norms)
    return all(any(kinds[:index]) for index in norms)


def _order(chain: Chain) -> str:
    """The setting that chooses this chain."""
    return ",".join(part.name for part in chain.parts)


def _shown_orders(tensors: Tensors, chains: Sequence[Chain]) -> tuple[list[str], int]:
    """The likeliest orders, and how many more there are."""
    names = list(tensors.arrays())
    # A file that is sorted by name, as those of safetensors are, tells nothing by its order.
    places = {} if names == sorted(names) else {name: place for place, name in enumerate(names)}
    ranked = sorted(chains, key=lambda chain: _unlikelihood(chain, places))
    return [_order(chain) for chain in ranked[:_MOST_CHOICES]], len(ranked[_MOST_CHOICES:])


def _unlikelihood(chain: Chain, places: Mapping[str, int]) -> tuple[int, int, int]:
    """How many linear stages come before a recurrent module, which few do, how many pairs of
    parts are not in the file's order, and how many norms come before all recurrent modules."""
    last = chain.parts.index(chain.recurrent[-1])
    early = sum(isinstance(part, Matrix) for part in chain.parts[:last])
    order = [places.get(part.tensors[0], -1) if part.tensors else -1 for part in chain.parts]
    swapped = sum(one > other for one, other in combinations(order, 2))
    return early, swapped, sum(isinstance(part, Norm) for part in chain.before)


def _is_registered(chain: Chain, modules: Modules) -> bool:
    """Whether the pickled model registers all parts, and nowhere in another order.

    A container holds its parts together whatever runs between them, unless it is nn.Sequential:
    its place among other parts tells nothing.
    """
    names = [part.name for part in chain.parts]
    places = {path: place for place, path in enumerate(modules)}
    spread = {path for path in modules if _is_spread(path, names, modules)}
    pairs = [_parted(one, other) for one, other in combinations(names, 2)]
    return all(name in places for name in names) and all(
        places.get(one, 0) <= places.get(other, 0)
        for one, other in pairs
        if not {one, other} & spread
    )


def _is_spread(path: str, names: Sequence[str], modules: Modules) -> bool:
    inside = [name for name in names if name.startswith(f"{path}.")]
    return len(inside) > 1 and modules[path].torch_class != "Sequential"


def _parted(one: str, other: str) -> tuple[str, str]:
    """Two paths, each up to the component where they part."""
    first, second = one.split("."), other.split(".")
    shared = 1
    while first[:shared] == second[:shared] and shared < min(len(first), len(second)):
        shared += 1
    return ".".join(first[:shared]), ".".join(second[:shared])


def _place_evidence(chain: Chain) -> int:
    """How many matrices and norms are where their names say, less those that are not."""
    before = sum(_looks_like_before(part) for part in chain.before)
    return before - sum(_looks_like_before(part) for part in chain.after)


def _looks_like_before(part: Part) -> int:
    """1 for a name of what comes before the recurrent layers, -1 for one of what comes after."""
    if BEFORE_NAME.search(part.name):
        return 1
    return -1 if _AFTER_NAME.search(part.name) else 0


def _ask_for_order(tensors: Tensors, chains: Sequence[Chain]) -> None:
    """Raises SettingNeeded."""
    by_place = {
        place: [chain for chain in chains if _norms_are(place, chain)]
        for place in ("before", "after")
    }
    if len(chains) == 2 and all(len(found) == 1 for found in by_place.values()):
        names = ", ".join(part.name for part in chains[0].parts if isinstance(part, Norm))
        raise tensors.unsettled(
            f"{names} may normalise what the recurrent layers read or what they put out",
            "norm",
            ("before", "after"),
        )
    orders, more = _shown_orders(tensors, chains)
    problem = "the widths allow more than one order of the parts"
    raise tensors.unsettled(problem, "order", orders, more)

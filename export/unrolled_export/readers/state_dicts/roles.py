"""Which of the readings that the widths allow a state dict means.

The embedding and the head come first (`ends`), then what is between (`chains`) and in which order
(`orders`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, groupby, permutations

from unrolled_export.errors import SettingError
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.chains import Chain, TooManyOrders, find_chains
from unrolled_export.readers.state_dicts.ends import (
    Ends,
    agrees_with_classes,
    check_same_ends,
    possible_ends,
)
from unrolled_export.readers.state_dicts.orders import placed
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part, find_matrices, find_norms
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

_MOST_SHOWN = 12


def find_roles(
    tensors: Tensors, recurrent: Sequence[Recurrent], settings: Settings, modules: Modules
) -> tuple[Chain, tuple[str, ...]]:
    """The likeliest chain over the recurrent modules and the tensors left beside them, and what
    was assumed of its ends and its order.

    Settings settle what is ambiguous: `input` (embedding or one-hot), `head` (a tensor's name),
    `norm` (before or after the recurrent layers), `order` (the parts' names, in order). Raises
    CheckpointError where nothing fits, and SettingNeeded where more than one reading does. Where
    every chain leaves tensors over, which the caller refuses, nothing is asked.
    """
    matrices, norms = find_matrices(tensors), find_norms(tensors, modules)
    parts: tuple[Part, ...] = (*recurrent, *norms)
    ends = _allowed_ends(matrices, settings, modules)
    lone = _lone_biases(tensors, matrices, norms)
    try:
        chains = [_with_lone_bias(chain, lone) for chain in _chains(tensors, ends, matrices, parts)]
        whole = [chain for chain in chains if chain.tensors.issuperset(tensors.left)]
        if not whole:
            return chains[0], ()
        check_same_ends(tensors, [chain.ends for chain in whole])
        naming = _assumed_of_names(tensors, whole[0].ends, ends, matrices, parts)
    except TooManyOrders as error:
        raise tensors.error(
            f"{len(matrices)} matrices, {len(norms)} norms and {len(recurrent)} recurrent modules "
            "may follow one another in too many orders"
        ) from error
    chain, placing = placed(tensors, whole, settings, modules)
    return chain, (*naming, *placing)


def _chains(
    tensors: Tensors, ends: Sequence[Ends], matrices: Sequence[Matrix], parts: Sequence[Part]
) -> list[Chain]:
    """The likeliest chains over all parts or, where there is none, some that leave tensors over.

    Raises CheckpointError where there are none of these either.
    """
    steps = count()
    if chains := _likeliest(ends, matrices, parts, steps):
        return chains
    _refuse_unequal_ends(tensors, matrices, parts)
    recurrent = [part for part in parts if isinstance(part, Recurrent)]
    chains = _likeliest(ends, (), parts, steps) or _likeliest(ends, (), recurrent, steps)
    if not chains:
        raise tensors.error(_nothing_fits(tensors, recurrent))
    return chains


def _refuse_unequal_ends(
    tensors: Tensors, matrices: Sequence[Matrix], parts: Sequence[Part]
) -> None:
    """Raise CheckpointError where all would fit, had embedding and head as many rows."""
    pairs = [Ends(*pair) for pair in permutations(matrices, 2) if pair[0].bias is None]
    ranked = sorted(pairs, key=lambda choice: choice.evidence, reverse=True)
    for choice in ranked:
        embedding, head = choice.embedding, choice.head
        if embedding is not None and _fits(choice, matrices, parts, by_number=False):
            raise tensors.error(
                f"{tensors.shown(embedding.weight)} would be the embedding and "
                f"{tensors.shown(head.weight)} the head, but {embedding.outputs} tokens to read "
                f"and {head.outputs} to write are not served"
            )


def _allowed_ends(matrices: Sequence[Matrix], settings: Settings, modules: Modules) -> list[Ends]:
    """Every choice that agrees with the settings and, where any does, with a pickled model.

    Raises SettingError for a head that there is not.
    """
    form = settings.choice("input", ("embedding", "one-hot"))
    head = settings.text("head")
    if head is not None and not any(head in matrix.names for matrix in matrices):
        raise SettingError(f"--set head={head}: no matrix of the file is called so")
    ends = [
        choice
        for choice in possible_ends(matrices)
        if form in (None, "embedding" if choice.embedding else "one-hot")
        and (head is None or head in choice.head.names)
    ]
    return [choice for choice in ends if agrees_with_classes(choice, modules)] or ends


def _assumed_of_names(
    tensors: Tensors,
    chosen: Ends,
    ends: Sequence[Ends],
    matrices: Sequence[Matrix],
    parts: Sequence[Part],
) -> tuple[str, ...]:
    """What names alone tell of the ends: which of two that could be exchanged is the head.

    Raises SettingNeeded where they do not tell it either.
    """
    embedding, head = chosen.embedding, chosen.head
    if embedding is None or chosen.is_tied:
        return ()
    exchanged = [one for one in ends if one.embedding is head and one.head is embedding]
    by_number = _fits(chosen, matrices, parts, by_number=True)
    if not any(_fits(one, matrices, parts, by_number=by_number) for one in exchanged):
        return ()
    if not chosen.are_named:
        check_same_ends(tensors, [chosen, *exchanged])
    names = f"{embedding.weight} is the embedding and {head.weight} the head"
    return (f"{names}, by their names (else --set head={embedding.weight})",)


def _fits(
    choice: Ends, matrices: Sequence[Matrix], parts: Sequence[Part], *, by_number: bool
) -> bool:
    between = (*choice.without(matrices), *parts)
    return any(True for _ in find_chains(choice, between, by_number, count()))


def _likeliest(
    ends: Sequence[Ends],
    matrices: Sequence[Matrix],
    parts: Sequence[Part],
    steps: Iterator[int],
) -> list[Chain]:
    """The chains over all matrices and parts from the likeliest ends that allow any."""
    ranked = sorted(ends, key=lambda choice: choice.evidence, reverse=True)
    for by_number in (True, False):
        for _, group in groupby(ranked, key=lambda choice: choice.evidence):
            chains = [
                chain
                for choice in group
                for chain in find_chains(
                    choice, (*choice.without(matrices), *parts), by_number, steps
                )
            ]
            if chains:
                return chains
    return []


def _lone_biases(
    tensors: Tensors, matrices: Sequence[Matrix], norms: Sequence[Norm]
) -> tuple[tuple[str, int], ...]:
    """Names and sizes of biases that are of no matrix and of no norm."""
    owned = {bias for matrix in matrices for bias in matrix.biases} | {norm.bias for norm in norms}
    return tuple(
        (name, tensors.shape(name)[0])
        for name in tensors.left
        if name.endswith("bias") and len(tensors.shape(name)) == 1 and name not in owned
    )


def _with_lone_bias(chain: Chain, lone: Sequence[tuple[str, int]]) -> Chain:
    """The chain, with the bias of a tied head whose weight the file does not repeat."""
    if not chain.ends.is_tied or chain.head_bias is not None:
        return chain
    fitting = [name for name, size in lone if size == chain.ends.head.outputs]
    return replace(chain, head_bias=fitting[0]) if len(fitting) == 1 else chain


def _nothing_fits(tensors: Tensors, recurrent: Sequence[Recurrent]) -> str:
    names = sorted(tensors.left)
    shown = [tensors.shown(name) for name in names[:_MOST_SHOWN]]
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    found = (", ".join(shown) or "nothing") + more
    if len(recurrent) > 1:
        widths = ", ".join(f"{part.name} {part.inputs} to {part.outputs}" for part in recurrent)
        return (
            f"the recurrent modules ({widths}) do not follow one another between an embedding and "
            f"a head: found {found}"
        )
    inputs, hidden = recurrent[0].inputs, recurrent[0].outputs
    return (
        f"no embedding [V, {inputs}] and head [V, {hidden}], nor a head "
        f"[{inputs}, {hidden}] for one-hot input, beside the recurrent layers: found {found}"
    )

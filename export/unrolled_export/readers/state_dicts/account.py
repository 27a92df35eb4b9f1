"""A reading in words: which tensors were taken for what, and what was taken for granted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from unrolled_export.network import Activation, Cell
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.state_dicts.activations import Activations
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.initial_states import InitialStates
from unrolled_export.readers.state_dicts.module_classes import is_own
from unrolled_export.readers.state_dicts.numbering import are_neighbours
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part, beside
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

_CELLS = {
    Cell.LSTM: "nn.LSTMCell (gates i, f, g, o)",
    Cell.GRU: "nn.GRUCell (gates r, z, n, the reset after the product)",
}
_NOTHING = "nothing without weights (an activation, a norm)"


def reading_text(
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


def assumed_of_parts(chain: Chain, cell: Cell, modules: Modules) -> Iterator[str]:
    """What is taken for granted beside places and activations."""
    if chain.is_tie_assumed:
        yield f"the file has no head of its own: it is {chain.ends.head.weight} again, without bias"
    for module in chain.recurrent:
        if len(module.layers[0].keys() & {"bias_ih", "bias_hh"}) == 1:
            yield f"the bias that {module.name} lacks is zero"
    if not all(_is_told(part, modules) for part in chain.recurrent):
        yield f"the cells compute as {_CELLS.get(cell, 'nn.RNNCell')}"
    for part in chain.free:
        if isinstance(part, Norm) and not part.is_batch and part.name not in modules:
            yield f"{part.name} is a layer norm"
        if isinstance(part, Norm) and part not in chain.before and chain.recurrent[0].is_cell:
            yield f"{part.name} normalises what the cells put out, not the state they carry"


def assumed_unseen(chain: Chain, activations: Activations, modules: Modules) -> Iterator[str]:
    """What neither tensors nor modules can show, where no question has settled it."""
    first, last = chain.recurrent[0], chain.recurrent[-1]
    before = [*_embedding(chain), *chain.before, first]
    for part, following in (*pairwise(before), *pairwise((last, *chain.after, chain.ends.head))):
        is_asked_about = isinstance(part, Matrix) and part is not chain.ends.embedding
        key = activations.untold.get(part.name)
        name = _end_name(chain, following)
        if key is not None and not (is_asked_about or are_neighbours(part.name, name)):
            yield f"{_NOTHING} between {_part_name(part)} and {name} (else --set {key}=relu)"
    if first is not last:
        yield f"{_NOTHING} between the recurrent modules"
    if not is_own(modules):
        if _may_be_parallel(chain.recurrent):
            yield "each recurrent module reads what the one before it puts out"
        yield "no residual connections, gates or scalings"


def _may_be_parallel(recurrent: Sequence[Recurrent]) -> bool:
    """Whether two of them could read the same values."""
    widths = [part.inputs for part in recurrent]
    return len(set(widths)) < len(widths)


def _is_told(part: Recurrent, modules: Modules) -> bool:
    """Whether it is of PyTorch: by the class of its module, or as nothing else names parameters
    by layer."""
    return part.name in modules or not part.is_cell


def _embedding(chain: Chain) -> Iterator[Matrix]:
    if chain.ends.embedding is not None:
        yield chain.ends.embedding


def _part_name(part: Part) -> str:
    return part.name or ("the recurrent layers" if isinstance(part, Recurrent) else "the norm")


def _end_name(chain: Chain, part: Part) -> str:
    """The name of a part that may be the head."""
    is_head = isinstance(part, Matrix) and part is chain.ends.head
    return chain.ends.head_name if is_head else _part_name(part)

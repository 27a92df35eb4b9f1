"""Which tensors of a state dict are the embedding and the head.

Names differ from project to project, so shapes decide: an embedding is [V, I] for the first
layer's input width I, a head [V, H] for the last layer's hidden size H. Where shapes leave a
choice, a bias beside a tensor and then its name decide; where these do too, the user does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

_EMBEDDING_NAME = re.compile(r"emb|encod|lookup|wte", re.IGNORECASE)
_HEAD_NAME = re.compile(
    r"head|decod|linear|dense|out|logit|proj|classif|(^|[._])(fc|lo)\d*[._]|wforward", re.IGNORECASE
)


@dataclass(frozen=True)
class Roles:
    """Names of tensors by what they are."""

    embedding: str | None
    """[V, I]; None for one-hot input."""
    head: str
    """[V, H]; the embedding itself where the file holds tied weights once."""
    head_bias: str | None
    """[V]"""

    @property
    def matrices(self) -> int:
        """How many tensors the embedding and the head are."""
        return len({self.embedding, self.head} - {None})


def find_roles(tensors: Tensors, inputs: int, hidden: int, settings: Settings) -> Roles:
    """The roles of the tensors left after the recurrent ones are taken.

    Settings: `input` (embedding or one-hot) and `head` (a tensor's name) settle what is
    ambiguous. Raises CheckpointError where nothing fits, or more than one reading does.
    """
    form = settings.choice("input", ("embedding", "one-hot"))
    head = settings.text("head")
    readings = [
        roles
        for roles in _readings(tensors, inputs, hidden)
        if form in (None, "embedding" if roles.embedding else "one-hot")
        and head in (None, roles.head)
    ]
    if not readings:
        raise tensors.error(_nothing_fits(tensors, inputs, hidden))
    best = max(_evidence(tensors, roles) for roles in readings)
    likeliest = [roles for roles in readings if _evidence(tensors, roles) == best]
    _check_unambiguous(tensors, likeliest)
    return likeliest[0]


def _readings(tensors: Tensors, inputs: int, hidden: int) -> Iterator[Roles]:
    """Every assignment of roles that the shapes allow."""
    matrices = [name for name in tensors.left if len(tensors.shape(name)) == 2]
    for name in matrices:
        rows, columns = tensors.shape(name)
        if columns == hidden and rows == inputs:
            yield Roles(None, name, _sibling_bias(tensors, name))
        if columns == hidden == inputs:
            yield Roles(name, name, _lone_bias(tensors, rows))
    for embedding, head in permutations(matrices, 2):
        rows = tensors.shape(head)[0]
        if tensors.shape(embedding) == (rows, inputs) and tensors.shape(head) == (rows, hidden):
            yield Roles(embedding, head, _sibling_bias(tensors, head))


def _sibling_bias(tensors: Tensors, weight: str) -> str | None:
    bias = weight.removesuffix("weight") + "bias"
    return bias if weight.endswith("weight") and bias in tensors else None


def _lone_bias(tensors: Tensors, size: int) -> str | None:
    """The bias of a head whose tied weight the file does not repeat."""
    biases = [
        name for name in tensors.left if name.endswith("bias") and tensors.shape(name) == (size,)
    ]
    return biases[0] if len(biases) == 1 else None


def _evidence(tensors: Tensors, roles: Roles) -> tuple[int, int, int]:
    """How likely a reading is: tensors used, then biases, then names."""
    if roles.embedding is None:
        return roles.matrices, 0, -_looks_like_embedding(roles.head)
    if roles.embedding == roles.head:
        # A file that holds tied weights once may keep either name.
        return roles.matrices, 0, abs(_looks_like_embedding(roles.embedding))
    biases = (_sibling_bias(tensors, name) is not None for name in (roles.head, roles.embedding))
    names = _looks_like_embedding(roles.embedding) - _looks_like_embedding(roles.head)
    return roles.matrices, next(biases) - next(biases), names


def _looks_like_embedding(name: str) -> int:
    """1 for the name of an embedding, -1 for that of a head, 0 for neither."""
    if "emb" in name.lower():
        return 1
    if _HEAD_NAME.search(name):
        return -1
    return 1 if _EMBEDDING_NAME.search(name) else 0


def _check_unambiguous(tensors: Tensors, readings: list[Roles]) -> None:
    first, *others = readings
    for other in others:
        if first.embedding and other.embedding and tensors.same(first.embedding, first.head):
            continue
        if bool(first.embedding) != bool(other.embedding):
            raise tensors.error(
                f"{tensors.shown(first.head)} may be the head of a model with one-hot input or "
                "tied to its embedding: add --set input=one-hot or --set input=embedding"
            )
        raise tensors.error(
            f"{tensors.shown(first.head)} and {tensors.shown(other.head)} may each be the head: "
            f"add --set head={first.head} or --set head={other.head}"
        )


def _nothing_fits(tensors: Tensors, inputs: int, hidden: int) -> str:
    found = ", ".join(tensors.shown(name) for name in sorted(tensors.left)) or "nothing"
    return (
        f"no embedding [V, {inputs}] and head [V, {hidden}], nor a head "
        f"[{inputs}, {hidden}] for one-hot input, beside the recurrent layers: found {found}"
    )

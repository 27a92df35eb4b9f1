"""Which matrices of a state dict may be its embedding and its head.

Names differ from project to project, so shapes decide first: an embedding and a head have as
many rows as there are tokens. Where shapes leave a choice, the bias beside a matrix, the classes of
a pickled model and then names tell which it is. Where the two could be exchanged only names of
whole words tell it, and what they tell is an assumption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.state_dicts.parts import Matrix, module_of
from unrolled_export.readers.tensors import Tensors

BEFORE_NAME = re.compile(r"emb|input|(^|[._])(in|pre|first)([._]|$)", re.IGNORECASE)
"""The name of something between the embedding and the recurrent layers."""
_OUTPUT_EMBEDDING_NAME = re.compile(
    r"(^|[._])(out(put)?|un|de|dis|inverse)_?(emb|table)|emb[a-z]*_out(put)?([._]|$)", re.IGNORECASE
)
_EMBEDDING_NAME = re.compile(r"encod|lookup|wte", re.IGNORECASE)
_HEAD_NAME = re.compile(
    r"head|decod|linear|dense|out|logit|proj|classif|last|final|(^|[._])(fc|lo)\d*([._]|$)|wforward",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_EMBEDDING_WORD = re.compile(r"emb|input|encod|lookup|^(in|pre|first|wte|table)$")
_HEAD_WORD = re.compile(
    r"^head|head$|decod|linear|dense|^out|out$|logit|proj|classif|wforward|^(last|final|fc|lo)$"
)


@dataclass(frozen=True)
class Ends:
    """A choice of both."""

    embedding: Matrix | None
    """None for one-hot tokens."""
    head: Matrix
    """The embedding itself where the weights are tied."""

    @property
    def is_tied(self) -> bool:
        return self.embedding is self.head

    @property
    def head_name(self) -> str:
        """The path of the head's module: of the names of tied weights, that most like a head's."""
        if not self.is_tied:
            return self.head.name
        return min(map(module_of, reversed(self.head.names)), key=_look)

    @property
    def evidence(self) -> tuple[bool, int, int]:
        """Whether no name speaks against it, how many tensors it uses (a matrix is not likely to
        be something else if it may be one of the two), and how many names speak for it."""
        heads = _looks(self.head)
        if self.embedding is None:
            return max(heads) < 1, 1, -heads[0]
        if self.is_tied:
            # A file that holds tied weights once may keep either name.
            names = max(heads) - min(heads) if len(heads) > 1 else abs(heads[0])
            return True, min(2, len(heads)), names
        embeddings = _looks(self.embedding)
        return min(embeddings) > -1 and max(heads) < 1, 2, embeddings[0] - heads[0]

    @property
    def are_named(self) -> bool:
        """Whether a word in a name tells the one from the other, and none the opposite."""
        embeddings = set() if self.embedding is None else set(_words_look(self.embedding))
        heads = set(_words_look(self.head))
        return (1 in embeddings or -1 in heads) and -1 not in embeddings and 1 not in heads

    @property
    def is_tie_seen(self) -> bool:
        """Whether the one matrix of both ends has a name that is not that of an embedding, or a
        bias: those of the head."""
        return bool(self.head.biases) or (len(self.head.names) > 1 and min(_looks(self.head)) < 1)

    def without(self, matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
        """The other ones."""
        return tuple(one for one in matrices if one is not self.embedding and one is not self.head)


def possible_ends(matrices: Sequence[Matrix]) -> Iterator[Ends]:
    """Every choice that the numbers of rows allow; an embedding has no bias."""
    for embedding in (None, *matrices):
        for head in matrices:
            is_fitting = (
                embedding is None
                or embedding is head
                or (embedding.outputs == head.outputs and embedding.bias is None)
            )
            if is_fitting:
                yield Ends(embedding, head)


def agrees_with_classes(ends: Ends, modules: Modules) -> bool:
    """Whether a pickled model does not hold the embedding as Linear, nor as Embedding the head
    alone: two tables are an embedding and the weights of a head that looks scores up."""
    if ends.is_tied:
        return True
    embedding = set() if ends.embedding is None else _classes(ends.embedding, modules)
    is_exchanged = "Embedding" in _classes(ends.head, modules) and "Embedding" not in embedding
    return "Linear" not in embedding and not is_exchanged


def _classes(matrix: Matrix, modules: Modules) -> set[str]:
    paths = map(module_of, matrix.names)
    return {modules[path].class_name for path in paths if path in modules}


def check_same_ends(tensors: Tensors, choices: Sequence[Ends]) -> None:
    """Raise SettingNeeded where the choices are not all the same."""
    first, *others = choices
    for other in others:
        name = first.head.weight
        if (first.embedding is None) != (other.embedding is None):
            raise tensors.unsettled(
                f"{tensors.shown(name)} may be the head of a model with one-hot input or tied to "
                "its embedding",
                "input",
                ("one-hot", "embedding"),
            )
        if first.head is not other.head:
            names = (name, other.head.weight)
            shown = " and ".join(tensors.shown(name) for name in names)
            raise tensors.unsettled(f"{shown} may each be the head", "head", names)


def _looks(matrix: Matrix) -> list[int]:
    """For each name: 1 for that of an embedding, -1 for that of a head, 0 for neither."""
    return [_look(module_of(name)) for name in matrix.names]


def _look(name: str) -> int:
    if _OUTPUT_EMBEDDING_NAME.search(name):
        return -1
    if BEFORE_NAME.search(name):
        return 1
    if _HEAD_NAME.search(name):
        return -1
    return 1 if _EMBEDDING_NAME.search(name) else 0


def _words_look(matrix: Matrix) -> list[int]:
    """For each name: as `_look`, but by whole words, of which the last that tells counts."""
    return [_word_look(module_of(name)) for name in matrix.names]


def _word_look(name: str) -> int:
    if _OUTPUT_EMBEDDING_NAME.search(name):
        return -1
    for word in reversed(_WORD.findall(name)):
        if _EMBEDDING_WORD.search(word.lower()):
            return 1
        if _HEAD_WORD.search(word.lower()):
            return -1
    return 0

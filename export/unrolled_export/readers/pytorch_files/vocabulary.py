"""The vocabulary that a file of `torch.save` holds beside its model, recognised by structure.

A list of as many different texts as the network has tokens, a map between texts and all of the
ids 0, 1, 2 and so on, in one direction or both, or a text of that many different characters. A
map whose ids go up from 1 to the last has no padding, which is 0. Sets have no order and say
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.pickling.inert import Opaque
from unrolled_export.readers.pickling.numpy_arrays import NumpyArray
from unrolled_export.readers.pytorch_files.object_tree import children, walk
from unrolled_export.readers.pytorch_files.storage import StoredTensor
from unrolled_export.vocabulary import PADDING, as_id
from unrolled_export.vocabulary_text import FEWEST_CHARACTERS, distinct_characters

_TELLING = re.compile(
    r"token|char|voca?b|dict|itos|stoi|alphabet|letter|symbol|word|(idx|ix|int|id|index|unit)_?(2|to)"
    r"|(2|to)_?(idx|ix|int|id|index|unit)",
    re.IGNORECASE,
)
"""Names that a vocabulary is likely to have."""
_NAMES_OF_WEIGHTS = re.compile(r"_flat_weights.*|_all_weights|_parameters|_buffers|_modules")


@dataclass(frozen=True)
class FoundVocabulary:
    """A vocabulary, and where it is."""

    name: str
    """Keys and attributes, with dots between."""
    tokens: tuple[str, ...]
    """In id order, bytes that are not UTF-8 surrogate-escaped."""


def find_vocabulary(file: Path, tree: object, size: int) -> FoundVocabulary | None:
    """The vocabulary of `size` tokens; None where there is none.

    Raises CheckpointError where the file holds different ones.
    """
    found = list(_vocabularies(tree, size)) or list(_padded(tree, size))
    telling = [one for one in found if _TELLING.search(one.name)] or found
    if not telling:
        return None
    first = telling[0]
    for other in telling[1:]:
        if other.tokens != first.tokens:
            raise CheckpointError(
                file,
                f"holds different vocabularies of {size} tokens, {first.name} and {other.name}: "
                "add --vocab FILE",
            )
    return first


def _padded(tree: object, size: int) -> Iterator[FoundVocabulary]:
    """Those of maps that count from 1, as Keras does, with padding for 0."""
    for place in walk(tree):
        value = place.value.entries if isinstance(place.value, Opaque) else place.value
        if isinstance(value, dict) and len(value) == size - 1:
            for key, padding in ((0, PADDING), (PADDING, 0)):
                if tokens := _of_map({**value, key: padding}, size):
                    yield FoundVocabulary(place.name, tokens)


def _vocabularies(tree: object, size: int) -> Iterator[FoundVocabulary]:
    for place in walk(tree):
        if any(_NAMES_OF_WEIGHTS.fullmatch(part) for part in place.path[-1:]):
            continue
        if tokens := _tokens(place.value, size):
            yield FoundVocabulary(place.name, tokens)
        for name, value in _texts(place.value, size):
            yield FoundVocabulary(f"{place.name}.{name}".removeprefix(".."), value)


def _texts(value: object, size: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Texts of different characters directly in a map or object."""
    if size < FEWEST_CHARACTERS or not isinstance(value, (dict, Opaque)):
        return
    for name, text in children(value):
        if isinstance(text, str) and (tokens := distinct_characters(text, size)):
            yield name, tokens


def _tokens(value: object, size: int) -> tuple[str, ...] | None:
    """The vocabulary that a value is, None where it is none of this size."""
    if isinstance(value, NumpyArray):
        value = _listed(value)
    if isinstance(value, Opaque) and value.class_name.endswith("set"):
        return None
    if isinstance(value, Opaque):
        return _of_list(value.items, size) or _of_map(value.entries, size)
    if isinstance(value, dict):
        return _of_map(value, size)
    return _of_list(value, size) if isinstance(value, (list, tuple)) else None


def _listed(array: NumpyArray) -> list[object]:
    if array.items is not None:
        return array.items
    texts: list[object] = array.array.tolist() if _is_text(array) else []
    return texts


def _is_text(array: NumpyArray) -> bool:
    return array.array.dtype.kind in "US" and array.array.ndim == 1


def _of_list(values: Sequence[object], size: int) -> tuple[str, ...] | None:
    if len(values) != size or not all(isinstance(value, (str, bytes)) for value in values):
        return None
    tokens = tuple(_text(value) for value in values)
    return tokens if len(set(tokens)) == size else None


def _of_map(entries: Mapping[object, object], size: int) -> tuple[str, ...] | None:
    """A map from texts to ids, from ids to texts, or both in one."""
    if len(entries) == 2 * size:
        entries = _one_way(entries)
    if len(entries) != size:
        return None
    return _by_id(entries.items(), size) or _by_id(
        ((index, token) for token, index in entries.items()), size
    )


def _one_way(entries: Mapping[object, object]) -> Mapping[object, object]:
    """The ids by text of a map that has also the texts by id; none where these differ."""
    ids: dict[object, object] = {
        key: value for key, value in entries.items() if isinstance(key, (str, bytes))
    }
    is_two_way = all(isinstance(i, int) and entries.get(i) == key for key, i in ids.items())
    return ids if is_two_way else {}


def _by_id(pairs: Iterable[tuple[object, object]], size: int) -> tuple[str, ...] | None:
    tokens = {_id(index): token for index, token in pairs}
    return _of_list([tokens.get(index) for index in range(size)], size)


def _id(value: object) -> int | None:
    """An id, be it written as a text or as a tensor of one number; None for anything else."""
    if isinstance(value, NumpyArray) and value.items is None and value.array.shape == ():
        return as_id(value.array.item())
    # A damaged file may lack the data.
    if isinstance(value, StoredTensor) and value.shape == () and value.storage.data is not None:
        return as_id(value.load().item())
    return as_id(value)


def _text(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)

"""Vocabularies in pickles and files of torch.save: lists, maps, and the attributes of an object."""

from __future__ import annotations

import pickletools
from pathlib import Path

_FIRST = frozenset((b"(", b"c", b"]", b"}"))
"""How early pickles of containers and objects begin."""
_DEEPEST = 4


def is_pickle(content: bytes) -> bool:
    """Whether a file begins as those of torch.save and pickles of protocol 2 and later do, or is a
    pickle of an earlier one, which has no beginning of its own."""
    if content.startswith((b"\x80", b"PK\x03\x04")):
        return True
    if content[:1] not in _FIRST or content[-1:] != b".":
        return False
    try:
        *_, (_, _, end) = pickletools.genops(content)
    # Whatever the opcodes' decoders make of a text that is no pickle.
    except (ValueError, LookupError):
        return False
    return end == len(content) - 1


def read_pickled(path: Path, size: int | None, *, allow_pickle: bool) -> object:
    """The `size` tokens that a pickle holds anywhere, or else its list, tuple or map, or the
    attributes of its object.

    Raises CheckpointError where it is damaged or holds several vocabularies of this size, and
    PickleNeeded where it is an object of a class.
    """
    # Some readers read vocabulary files: this module must not need their package to be imported.
    from unrolled_export.readers.pytorch_files.torch_file import read_tree
    from unrolled_export.readers.pytorch_files.vocabulary import find_vocabulary

    tree = read_tree(path, allow_pickle)
    found = None if size is None else find_vocabulary(path, tree, size)
    return _plain(tree) if found is None else found.tokens


def _plain(value: object, depth: int = 0) -> object:
    """A value without the objects around its container, and around those directly in it."""
    from unrolled_export.readers.pickling.inert import Opaque
    from unrolled_export.readers.pickling.numpy_arrays import NumpyArray

    if isinstance(value, NumpyArray):
        return value.load().tolist() if value.items is None else value.items
    if isinstance(value, Opaque) and depth < _DEEPEST:
        return _plain(value.entries or value.state or value.items, depth + 1)
    if isinstance(value, dict):
        return {
            key: _plain(inner, depth + 1) if isinstance(inner, Opaque) else inner
            for key, inner in value.items()
        }
    return value

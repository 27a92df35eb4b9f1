"""Vocabularies in pickles: plain lists and maps, and the attributes of an object."""

from __future__ import annotations

import io
import pickletools
from pathlib import Path

_FIRST = frozenset((b"(", b"c", b"]", b"}"))
"""How early pickles of containers and objects begin."""
_DEEPEST = 4


def is_pickle(content: bytes) -> bool:
    """Whether a file begins as pickles of protocol 2 and later do, or is one of the earlier ones,
    which have no beginning of their own."""
    if content[:1] == b"\x80":
        return True
    if content[:1] not in _FIRST or content[-1:] != b".":
        return False
    try:
        *_, (_, _, end) = pickletools.genops(content)
    # Whatever the opcodes' decoders make of a text that is no pickle.
    except (ValueError, LookupError):
        return False
    return end == len(content) - 1


def read_pickled(content: bytes, path: Path, *, allow_pickle: bool) -> object:
    """The list, tuple or map of a pickle, or the attributes of its object.

    Raises CheckpointError where it is damaged, and PickleNeeded where it is an object of a class.
    """
    # Some readers read vocabulary files: this module must not need their package to be imported.
    from unrolled_export.readers.pickling.machine import load_pickle
    from unrolled_export.readers.pickling.names import Names

    names = Names(path, len(content), None)
    value = load_pickle(path, io.BytesIO(content), names)
    names.check_permitted(allow_pickle)
    return _plain(value)


def _plain(value: object, depth: int = 0) -> object:
    """A value without the object around its container."""
    from unrolled_export.readers.pickling.inert import Opaque
    from unrolled_export.readers.pickling.numpy_arrays import NumpyArray

    if isinstance(value, NumpyArray):
        return value.load().tolist() if value.items is None else value.items
    if isinstance(value, Opaque) and depth < _DEEPEST:
        return _plain(value.entries or value.state or value.items, depth + 1)
    return value

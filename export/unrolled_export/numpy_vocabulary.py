"""Vocabularies that NumPy saved as an array of texts: `numpy.save` of `vocab`.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
from pathlib import Path

from unrolled_export.errors import VocabularyError

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|])([US][0-9]{1,9})', 'fortran_order': (?:False|True), "
    rb"'shape': \(([0-9]{1,9}),\), \} *\n",
    re.DOTALL,
)
"""Of one dimension of texts, as every release writes it; version 1.0 of the format."""


def is_numpy(content: bytes) -> bool:
    """Whether a file begins as those of `numpy.save` do."""
    return content.startswith(_MAGIC)


def read_texts(content: bytes, path: Path) -> tuple[str, ...]:
    """The texts of an array. Raises VocabularyError where it is of anything else, or damaged."""
    # Some readers read vocabulary files: this module must not need their package to be imported.
    from unrolled_export.readers.pickling.numpy_arrays import NumpyType, array_of_parts

    header = _HEADER.match(content)
    if header is None:
        raise VocabularyError(f"{path}: not an array of texts in one dimension")
    order, code, count = header.groups()
    kind = NumpyType(code.decode(), ">" if order == b">" else "<")
    try:
        array = array_of_parts(content[header.end() :], kind, (int(count),), "C")
        return tuple(_text(text) for text in array.tolist())
    except (ValueError, TypeError) as error:
        raise VocabularyError(f"{path}: damaged or cut off ({error})") from error


def _text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text

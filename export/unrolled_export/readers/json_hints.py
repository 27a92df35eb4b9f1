"""What is said of a model in JSON: in `config.json` beside it, or in the header of safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from unrolled_export.readers.pytorch_files.pickled_modules import plain_values

_CONFIG = "config.json"
_LARGEST = 1 << 20
_LEVELS = 3
"""Of maps in one another."""


def config_hints(checkpoint: Path) -> dict[str, object]:
    """Plain values by path in the `config.json` beside a file; none where that is no such map."""
    file = checkpoint.parent / _CONFIG
    if not file.is_file() or file.stat().st_size > _LARGEST:
        return {}
    return dict(_flat(_parsed(file.read_bytes()), f"{_CONFIG}."))


def metadata_hints(metadata: Mapping[str, str]) -> dict[str, object]:
    """Plain values by path in the metadata of a safetensors file, which are texts, JSON perhaps."""
    parsed = {name: _parsed(text.encode()) for name, text in metadata.items()}
    values = {name: metadata[name] if value is None else value for name, value in parsed.items()}
    return dict(_flat(values, "metadata."))


def _parsed(content: bytes) -> object:
    """None where it is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _flat(value: object, path: str, levels: int = _LEVELS) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        return
    for name, plain in plain_values(value):
        yield f"{path}{name}", plain
    if levels > 1:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}{name}.", levels - 1)

"""A state dict in several safetensors files, as Hugging Face's tools split large ones.

`model.safetensors.index.json` has a `weight_map`, of every tensor's file:
https://huggingface.co/docs/transformers/main/en/models#sharded-checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.json_hints import config_hints
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.safetensors_ import read_tensors
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import read_state_dict
from unrolled_export.readers.tensors import Tensors


class ShardedFile:
    """The index of a state dict in several safetensors files, which lie beside it."""

    kind = "their .safetensors.index.json, where they are several"

    def accepts(self, path: Path) -> bool:
        return path.is_file() and path.name.endswith(".safetensors.index.json")

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        shards = shards_of(path)
        tensors = Tensors(path, _merged(path))
        reading = read_state_dict(tensors, settings, hints=config_hints(path))
        return Checkpoint(
            reading.network,
            (path, *shards),
            f"safetensors state dict in {len(shards)} files: {reading.text}",
            assumptions=reading.assumptions,
        )


def shards_of(index: Path) -> tuple[Path, ...]:
    """The files of an index, in order. Raises CheckpointError where it is none."""
    return tuple(index.parent / name for name in sorted(set(_weight_map(index).values())))


def _merged(index: Path) -> dict[str, NDArray[Any]]:
    """All tensors. Raises CheckpointError where a file or tensor is missing, or there twice."""
    places, arrays = _weight_map(index), dict[str, NDArray[Any]]()
    for shard in shards_of(index):
        if not shard.is_file():
            raise CheckpointError(shard, f"no such file, though {index.name} names it")
        found = read_tensors(shard).arrays()
        for name, place in places.items():
            if place == shard.name and name not in found:
                raise CheckpointError(shard, f"no tensor {name}, though {index.name} has it there")
        if twice := sorted(arrays.keys() & found.keys()):
            raise CheckpointError(shard, f"{twice[0]} is in another file of {index.name}, too")
        arrays |= found
    return arrays


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(index, f"not JSON ({error})") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
        raise CheckpointError(index, 'field "weight_map" is not a map of tensors and file names')
    if not places:
        raise CheckpointError(index, 'field "weight_map" is empty')
    return places


def _is_file_name(value: object) -> bool:
    """Of a file in the same folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value

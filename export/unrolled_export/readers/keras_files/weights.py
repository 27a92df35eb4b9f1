"""What a Keras file holds once it is read: weights by layer, and what it says of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from unrolled_export.readers.tensors import Tensors


@dataclass(frozen=True)
class WeightGroup:
    """The weights that one layer holds."""

    layer: str
    """The layer's name, for messages and for finding it in an architecture."""
    owner: str
    """What the names of its weights share: tells apart the layers of a nested model, which
    HDF5 files before Keras 3 keep in one group; in the layout of Keras 3, the layer's path."""
    weights: Mapping[str, str]
    """Names of tensors by role (`kernel`, `bias`, ...), or by position (`0`, `1`, ...) in the
    layout of Keras 3, which keeps no roles."""


@dataclass(frozen=True)
class KerasWeights:
    """A Keras file as read."""

    tensors: Tensors
    groups: tuple[WeightGroup, ...]
    """Of the layers that have weights."""
    is_positional: bool
    """Whether the layout is that of Keras 3 and of .keras files: weights by position and layers
    in no order. Otherwise layers are in the model's order."""
    weightless: tuple[str, ...]
    """Names of layers without weights; in the layout of Keras 3 their paths, which end in the names
    of their classes or of attributes."""
    last: str | None
    """Name of the last layer; None where the layout keeps no order."""
    version: str | None
    """Of the Keras that wrote it."""
    architecture: str | None
    """JSON."""


_KERAS_1 = re.compile(r"(.+)_([WUb](?:_[ifcozrh])?)")
_ROLES_OF_KERAS_1 = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}


def owner_and_role(name: str) -> tuple[str, str]:
    """What a weight's name says: `lstm_1/kernel:0` is the kernel of lstm_1, as are `lstm_1_W` and,
    for the input gate alone (role `kernel_i`), `lstm_1_W_i` in Keras 1."""
    owner, last = name.rpartition("/")[0], _last_part(name)
    if match := _KERAS_1.fullmatch(last):
        letter, _, gate = match[2].partition("_")
        role = _ROLES_OF_KERAS_1[letter]
        return f"{owner}/{match[1]}", f"{role}_{gate}" if gate else role
    return owner, re.sub(r"_[0-9]+$", "", last)


def is_named_by_keras_1(name: str) -> bool:
    """Whether a weight has a name such as only Keras 1 gives."""
    return _KERAS_1.fullmatch(_last_part(name)) is not None


def _last_part(name: str) -> str:
    """Without TensorFlow's `:0`."""
    return re.sub(r":[0-9]+$", "", name.rpartition("/")[2])


def version_of(metadata: bytes) -> str | None:
    """The version in a metadata.json. Raises ValueError where that is not one."""
    try:
        fields = json.loads(metadata)
    except RecursionError as error:
        raise ValueError("metadata.json is nested too deeply") from error
    version = fields.get("keras_version") if isinstance(fields, dict) else None
    if version is not None and not isinstance(version, str):
        raise ValueError("keras_version in metadata.json is not text")
    return version

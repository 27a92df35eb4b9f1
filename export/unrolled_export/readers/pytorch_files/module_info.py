"""What a pickled model tells beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A module of a pickled model."""

    class_name: str
    """Of its class, the last part: `LSTM`, `LayerNorm`, `CharRNN`."""
    attributes: Mapping[str, object]
    """Its plain attributes: numbers, strings, booleans, None and tuples of these."""


Modules = Mapping[str, Module]
"""By dotted path, "" the model itself, in order of registration; empty for a state dict."""

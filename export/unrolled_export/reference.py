"""The reference that exported graphs are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unrolled_export.network import Floats, Network


@dataclass(frozen=True)
class Reference:
    """An implementation of a network that shares no code with the graphs."""

    name: str
    """What computes it, with its version."""
    logprobs: Callable[[NDArray[Any]], Floats]
    """From tokens [B, T], fed in turn from the zero state, to natural log-probabilities of what
    follows each, [B, T, V]."""


def make_reference(network: Network) -> Reference:
    """PyTorch's modules where torch is installed, else NumPy."""
    try:
        from unrolled_export.reference_torch import torch_reference
    except ModuleNotFoundError:
        from unrolled_export.reference_numpy import numpy_reference

        return numpy_reference(network)
    return torch_reference(network)

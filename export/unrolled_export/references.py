"""Which reference a network is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from unrolled_export.network import Network
from unrolled_export.quantization import QuantizedWeight
from unrolled_export.reference import Reference
from unrolled_export.reference_numpy import NumpyReference


def make_reference(
    network: Network, quantized: Mapping[str, QuantizedWeight] | None = None
) -> Reference:
    """PyTorch's modules where torch is installed and has them, else NumPy.

    `quantized` are the 8-bit weights of an int8 export, by the names of `Network.arrays`.
    """
    numpy = NumpyReference(network, quantized)
    if quantized:
        return numpy
    try:
        from unrolled_export.reference_torch import TorchReference, has_torch_modules
    except ModuleNotFoundError:
        return numpy
    return TorchReference(network) if has_torch_modules(network) else numpy

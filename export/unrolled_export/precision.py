"""The precisions of an export, and what each does to a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import numpy as np

from unrolled_export.errors import PrecisionError
from unrolled_export.network import Cell, Dense, Floats, Layer, Network, Stage
from unrolled_export.quantization import QuantizedWeight, quantized_products


class Precision(StrEnum):
    """Arithmetic of the matrix products of `engine.onnx`."""

    FP32 = "fp32"
    FP16 = "fp16"
    """Weights rounded to 16 bits; on a CPU the products are in 32."""
    INT8 = "int8"
    """8-bit products where the input is a bounded hidden state, the others as in fp32."""


def quantized(network: Network, precision: Precision) -> Mapping[str, QuantizedWeight]:
    """The weights of 8-bit products, none but in int8.

    Raises PrecisionError where int8 would cover nothing.
    """
    if precision is not Precision.INT8:
        return {}
    products = quantized_products(network)
    if not products:
        raise PrecisionError(f"--precision int8: {_why_nothing_is_covered(network)}")
    return products


def _why_nothing_is_covered(network: Network) -> str:
    if network.cell is Cell.RNN_RELU:
        return "covers no product of this model: the state of a ReLU network has no bound"
    if any(layer.weight_hr is not None for layer in network.layers):
        return "covers no product of this model: a projected state has no bound"
    if network.initial is not None:
        return "covers no product of this model: its first state is not within [-1, 1]"
    return "covers no product of this model: none has a hidden state for its input"


def rounded(network: Network, precision: Precision) -> Network:
    """The network whose weights the exported graphs hold: in fp16 every matrix fits in 16 bits.

    Raises PrecisionError where a weight is too large for that.
    """
    if precision is not Precision.FP16:
        return network
    return replace(
        network,
        embedding=None if network.embedding is None else _half("embedding", network.embedding),
        layers=tuple(_layer(index, layer) for index, layer in enumerate(network.layers)),
        stages=tuple(_stage(index, stage) for index, stage in enumerate(network.stages)),
        head_weight=_half("head_weight", network.head_weight),
    )


def _layer(index: int, layer: Layer) -> Layer:
    hr = layer.weight_hr
    return replace(
        layer,
        weight_ih=_half(f"weight_ih_{index}", layer.weight_ih),
        weight_hh=_half(f"weight_hh_{index}", layer.weight_hh),
        weight_hr=None if hr is None else _half(f"weight_hr_{index}", hr),
    )


def _stage(index: int, stage: Stage) -> Stage:
    if isinstance(stage, Dense):
        return replace(stage, weight=_half(f"stage_weight_{index}", stage.weight))
    return stage


def _half(name: str, array: Floats) -> Floats:
    with np.errstate(over="ignore"):
        result = array.astype(np.float16).astype(np.float32)
    if not np.isfinite(result).all():
        raise PrecisionError(f"--precision fp16: {name} holds {np.abs(array).max():.3g}, too large")
    return result

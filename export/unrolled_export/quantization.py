"""8-bit products of bounded hidden states, exact and independent of what shares the batch.

The hidden state of an LSTM, a GRU and a tanh RNN stays within [-1, 1] once it starts there, so
one scale serves every state: q = round(127.5 h) + 128 as an unsigned byte, halves to even.
Weights get a scale for each output. The integer sum is exact in any order; a product is

    sum over n of (q_n - 128) w_mn  *  scale_m / 127.5

A product whose input is anything else (a ReLU or projected state, a norm's output) has no such
bound and stays in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Cell, Floats, Network

STATE_SCALE = np.float32(1 / 127.5)
ZERO_POINT = 128

_LARGEST = 127
_LARGEST_PAIR = 128


@dataclass(frozen=True)
class QuantizedWeight:
    """The weight of one product from N inputs to M outputs."""

    values: NDArray[np.int8]
    """[M, N]"""
    scales: Floats
    """[M]: what one step of a value is worth."""


def quantized_products(network: Network) -> dict[str, QuantizedWeight]:
    """The weights of all products that the scheme covers, by the names of `Network.arrays`."""
    covered = _covered(network)
    return {name: quantize(array) for name, array in network.arrays() if name in covered}


def _covered(network: Network) -> set[str]:
    if not _is_bounded(network):
        return set()
    # What a GRU's reset gate has passed is bounded as well, but is no state.
    whole = network.cell is not Cell.GRU or network.reset_after
    covered = {f"weight_hh_{index}" for index in range(len(network.layers)) if whole}
    covered |= {f"weight_ih_{k}" for k, layer in enumerate(network.layers) if k and not layer.norm}
    if not network.stages:
        covered.add("head_weight")
    return covered


def _is_bounded(network: Network) -> bool:
    """Whether every hidden state stays within [-1, 1]."""
    projects = any(layer.weight_hr is not None for layer in network.layers)
    starts = zip(network.states, network.initial or (), strict=False)
    within = all(state.kind == "c" or np.abs(start).max() <= 1 for state, start in starts)
    return network.cell is not Cell.RNN_RELU and not projects and within


def quantize(weight: Floats) -> QuantizedWeight:
    """Round a weight [M, N] to 8 bits, with the finest scale for every output that no CPU gets
    wrong.

    x86 processors without VNNI add the products of inputs 2k and 2k + 1 in 16 bits, saturating:
    exact while the two weights, where their signs agree, add up to no more than 128.
    """
    double = weight.astype(np.float64)
    largest = np.abs(double).max(axis=1)
    pairs = np.pad(double, ((0, 0), (0, double.shape[1] % 2))).reshape(len(double), -1, 2)
    pair = np.abs(pairs.sum(axis=2)).max(axis=1)
    # Two roundings may add one.
    scales = np.maximum(largest / _LARGEST, pair / (_LARGEST_PAIR - 1)).astype(np.float32)
    # A row of zeros has no scale, nor has one of weights too small for a float32 to hold theirs.
    scales = np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(1))
    values = np.rint(double / scales[:, None].astype(np.float64))
    return QuantizedWeight(values.astype(np.int8), scales)

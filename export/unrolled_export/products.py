"""The matrix products of a step, each computed the way its precision asks for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unrolled_export.graph_builder import MICROSOFT, GraphBuilder
from unrolled_export.network import Floats
from unrolled_export.quantization import STATE_SCALE, ZERO_POINT, QuantizedWeight


class Products:
    """Products of values [B, N] with weights [M, N], nodes of the graph `step`.

    Weights are constants of the graph around it.
    """

    def __init__(
        self, step: GraphBuilder, quantized: Mapping[str, QuantizedWeight], halves: bool
    ) -> None:
        """`quantized` names the products made in 8 bits; `halves` stores all weights in 16."""
        self.step = step
        self._quantized = quantized
        self._halves = halves
        self._bytes: dict[str, str] = {}

    def weight(self, array: Floats) -> str:
        """An array of weights as a constant."""
        return self.step.outer.half(array) if self._halves else self.step.outer.array(array)

    def biased(self, name: str, value: str, weight: Floats, bias: Floats) -> str:
        """value weight^T + bias [M]; `name` is the weight's in `Network.arrays`."""
        addend = self.step.outer.array(bias)
        if name in self._quantized:
            return self._in_bytes(name, value, [addend])
        return self.step.node("Gemm", [value, self.weight(weight.T), addend])

    def added(self, name: str, value: str, weight: Floats, addend: str) -> str:
        """value weight^T + addend [B, M]."""
        if name in self._quantized:
            return self.step.node("Add", [self._in_bytes(name, value, []), addend])
        return self.step.node("Gemm", [value, self.weight(weight.T), addend])

    def projected(self, value: str, weight: Floats, output: list[str]) -> str:
        """value weight^T [B, M], named `output`."""
        return self.step.node("MatMul", [value, self.weight(weight.T)], output)

    def logits(self, value: str, weight: Floats, bias: Floats) -> str:
        """The head's product [B, V]."""
        return self.biased("head_weight", value, weight, bias)

    def looked_up(self, table: Floats, tokens: str) -> str:
        """Rows of a table of products [V, M] by token, [B, M]."""
        return self.step.node("Gather", [self.step.outer.array(table), tokens], axis=0)

    def embedded(self, embedding: Floats, tokens: str) -> str:
        """Rows of an embedding [V, E] by token, [B, E]."""
        return self.step.node("Gather", [self.weight(embedding), tokens], axis=0)

    def wide(self, product: str) -> str:
        """A product in float32, which all of these are."""
        return product

    def _in_bytes(self, name: str, value: str, bias: list[str]) -> str:
        """The product of a hidden state with rounded weights (see `quantization`)."""
        outer, weight = self.step.outer, self._quantized[name]
        constants = [
            outer.array(weight.values.T, np.int8),
            self._state_scale,
            outer.array(weight.scales),
            self._zero_point,
            outer.array(0, np.int8),
        ]
        return self.step.node(
            "MatMulIntegerToFloat", [self._rounded(value), *constants, *bias], domain=MICROSOFT
        )

    def _rounded(self, value: str) -> str:
        """The hidden state as bytes, made once however many products read it."""
        if value not in self._bytes:
            inputs = [value, self._state_scale, self._zero_point]
            self._bytes[value] = self.step.node("QuantizeLinear", inputs)
        return self._bytes[value]

    @property
    def _state_scale(self) -> str:
        return self.step.outer.array(STATE_SCALE)

    @property
    def _zero_point(self) -> str:
        return self.step.outer.array(ZERO_POINT, np.uint8)

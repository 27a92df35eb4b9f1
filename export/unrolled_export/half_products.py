"""The matrix products of a step in float16, for devices that multiply it in hardware.

Weights and hidden states are rounded to 16 bits; what a product is added to, and the sum, are
rounded as well. Sums are taken in 32 bits, but where cuBLAS splits one into parts: those it may
round to 16. States, gates and all that follows the top layer stay in float32. The head's weights
fit in 16 bits and are kept in 32, multiplied in TF32, in which they are exact; the hidden state is
rounded to its 11 bits, which moves log-probabilities by some 1e-4 nats.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from unrolled_export.errors import PrecisionError
from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Floats
from unrolled_export.products import Products


class HalfProducts(Products):
    """Products of values [B, N] with weights [M, N]; those of one name are in 16 bits until
    `wide` widens them."""

    def __init__(self, step: GraphBuilder) -> None:
        super().__init__(step, {}, halves=False)
        self._narrow: dict[str, str] = {}
        """Of values, the same in float16."""
        self._wide: dict[str, str] = {}
        """Of values in float16, the same in float32; empty where nothing asked for it."""

    def weight(self, array: Floats) -> str:
        return self.step.outer.array(_rounded(array), np.float16)

    def biased(self, name: str, value: str, weight: Floats, bias: Floats) -> str:
        return self._product(value, weight, self.weight(bias))

    def added(self, name: str, value: str, weight: Floats, addend: str) -> str:
        return self.wide(self._product(value, weight, self._half(addend)))

    def projected(self, value: str, weight: Floats, output: list[str]) -> str:
        product = self.step.node("MatMul", [self._half(value), self.weight(weight.T)])
        return self.step.node("Cast", [product], output, to=TensorProto.FLOAT)

    def logits(self, value: str, weight: Floats, bias: Floats) -> str:
        array = self.step.outer.array
        return self.step.node("Gemm", [self.wide(value), array(weight.T), array(bias)])

    def looked_up(self, table: Floats, tokens: str) -> str:
        return self.embedded(table, tokens)

    def embedded(self, embedding: Floats, tokens: str) -> str:
        return self._in_half(self.step.node("Gather", [self.weight(embedding), tokens], axis=0))

    def wide(self, product: str) -> str:
        if product not in self._wide:
            return product
        if not self._wide[product]:
            self._wide[product] = self.step.node("Cast", [product], to=TensorProto.FLOAT)
        return self._wide[product]

    def _product(self, value: str, weight: Floats, addend: str) -> str:
        inputs = [self._half(value), self.weight(weight.T), addend]
        return self._in_half(self.step.node("Gemm", inputs))

    def _in_half(self, value: str) -> str:
        self._wide[value] = ""
        return value

    def _half(self, value: str) -> str:
        if value in self._wide:
            return value
        if value not in self._narrow:
            self._narrow[value] = self.step.node("Cast", [value], to=TensorProto.FLOAT16)
        return self._narrow[value]


def _rounded(array: Floats) -> Floats:
    with np.errstate(over="ignore"):
        result = array.astype(np.float16).astype(np.float32)
    if not np.isfinite(result).all():
        raise PrecisionError(f"--device cuda: fp16 cannot hold {np.abs(array).max():.3g}")
    return result

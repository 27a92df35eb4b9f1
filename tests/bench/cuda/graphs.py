"""The graphs of a subject: the exporter's, or with layers that cuDNN computes.

The latter is the other candidate for devices, kept here until both have been timed on one: a
step is a node for each layer. Its cells are rounded to 16 bits at every step, since all of
an operator's tensors have one type.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from unrolled_export.cells import Cells
from unrolled_export.device_graph import STEP, device_graphs, device_step, products
from unrolled_export.half_products import HalfProducts
from unrolled_export.network import Cell, Layer, Network
from unrolled_export.precision import Precision

from bench.cuda.models import Subject

ONNX_GATES = (0, 3, 1, 2)
"""Where the gates i, o, f, c of ONNX stand in PyTorch's order."""


def graphs(subject: Subject) -> dict[str, bytes]:
    """By file name."""
    network = as_network(subject)
    precision = Precision.FP16 if subject.fp16 else Precision.FP32
    made = device_graphs(network, precision)
    if subject.fused:
        step = device_step(network, products(precision), FusedCells)
        made[STEP] = step.SerializeToString(deterministic=True)
    return made


def as_network(subject: Subject) -> Network:
    """As the exporter reads it."""
    tensors = subject.weights()
    layers = tuple(
        Layer(
            tensors[f"rnn.weight_ih_l{index}"],
            tensors[f"rnn.weight_hh_l{index}"],
            tensors[f"rnn.bias_ih_l{index}"],
            tensors[f"rnn.bias_hh_l{index}"],
        )
        for index in range(subject.layers)
    )
    head = tensors["out.weight"], tensors["out.bias"]
    return Network(Cell.LSTM, tensors["embed.weight"], layers, *head, parameters=0)


class FusedCells(Cells):
    """Layers as nodes of the operator LSTM, each over one step."""

    def _layers(self) -> str:
        embedding = self._network.embedding
        if embedding is None:
            raise ValueError("a fused layer reads an embedding")
        value = self._products.embedded(embedding, self._fed)
        for index, layer in enumerate(self._network.layers):
            value = self._fused(index, layer, value)
        return value

    def _fused(self, index: int, layer: Layer, value: str) -> str:
        """Returns the next hidden state, [B, H] in float32."""
        step, one = self._step, self._step.integers([0])
        is_half = isinstance(self._products, HalfProducts)
        kind = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
        value = step.node("Cast", [value], to=kind)
        befores = [
            step.node("Unsqueeze", [step.node("Cast", [self._before(it, index)], to=kind), one])
            for it in "hc"
        ]
        biases = np.concatenate([_reordered(layer.bias_ih), _reordered(layer.bias_hh)])
        arrays = (_reordered(layer.weight_ih), _reordered(layer.weight_hh), biases)
        weights = [self._products.weight(array[None]) for array in arrays]
        inputs = [step.node("Unsqueeze", [value, one]), *weights, "", *befores]
        outputs = step.split_outputs("LSTM", inputs, 3, hidden_size=layer.hidden_size)
        nexts = [self._next(it, index) for it in "hc"]
        for made, name in zip(outputs[1:], nexts, strict=True):
            step.node("Cast", [step.node("Squeeze", [made, one])], name, to=TensorProto.FLOAT)
        return nexts[0][0]


def _reordered(array: np.ndarray) -> np.ndarray:
    blocks = np.split(array, 4)
    return np.concatenate([blocks[gate] for gate in ONNX_GATES])

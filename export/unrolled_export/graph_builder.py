"""Names, constants and nodes of an ONNX graph under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

from unrolled_export.network import Activation, Floats, Gate, LayerNorm

OPSET = 18
MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""
IR_VERSION = 9

_ACTIVATIONS = {
    Activation.RELU: "Relu",
    Activation.TANH: "Tanh",
    Activation.SIGMOID: "Sigmoid",
}


class GraphBuilder:
    """Collects nodes and constants; a subgraph's constants live in the outermost graph."""

    def __init__(self, name: str, outer: GraphBuilder | None = None) -> None:
        self.name = name
        self.outer = outer or self
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._uses_microsoft = False
        self._widened: dict[str, str] = {}
        self._count = 0

    def subgraph(self, name: str) -> GraphBuilder:
        """A graph inside this one, which sees everything that this one names."""
        return GraphBuilder(name, self.outer)

    def node(
        self, operator: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any
    ) -> str:
        """Append a node; returns the name of its first output, made up where none is given."""
        outputs = outputs or [self._fresh(operator)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        self.outer._uses_microsoft |= attributes.get("domain") == MICROSOFT
        return outputs[0]

    def split_outputs(
        self, operator: str, inputs: list[str], count: int, **attributes: Any
    ) -> list[str]:
        """Append a node of `count` outputs; returns their names."""
        outputs = [self._fresh(operator) for _ in range(count)]
        self.node(operator, inputs, outputs, **attributes)
        return outputs

    def split(self, value: str, sizes: list[int]) -> list[str]:
        """Parts of `value` along its last axis."""
        return self.split_outputs("Split", [value, self.integers(sizes)], len(sizes), axis=-1)

    def array(self, values: ArrayLike, kind: DTypeLike = np.float32) -> str:
        """A constant; equal ones share a name."""
        array = np.ascontiguousarray(values, dtype=kind).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        constants = self.outer._constants
        if key not in constants:
            constants[key] = numpy_helper.from_array(array, f"constant_{len(constants):03d}")
        return constants[key].name

    def half(self, values: Floats) -> str:
        """A constant of float32 that is stored in 16 bits, in which it has to fit."""
        array = self.array(values, np.float16)
        if array not in self._widened:
            self._widened[array] = self.node("Cast", [array], to=TensorProto.FLOAT)
        return self._widened[array]

    def normalised(self, norm: LayerNorm, value: str) -> str:
        """The layer normalisation of `value` over its last axis."""
        inputs = [value, self.outer.array(norm.weight), self.outer.array(norm.bias)]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon)

    def gate(self, gate: Gate, value: str) -> str:
        """The squashed value of a gate."""
        if gate is Gate.SIGMOID:
            return self.node("Sigmoid", [value])
        return self.node("HardSigmoid", [value], alpha=gate.slope, beta=0.5)

    def activation(self, activation: Activation, value: str) -> str:
        """What a dense stage makes of its product."""
        if activation is Activation.LINEAR:
            return value
        return self.node(_ACTIVATIONS[activation], [value])

    def double(self, value: str) -> str:
        """`value` in float64."""
        return self.node("Cast", [value], to=TensorProto.DOUBLE)

    def integers(self, values: ArrayLike, kind: DTypeLike = np.int64) -> str:
        """A constant of integers: int64, what shapes and axes are."""
        return self.array(values, kind)

    def floats(self, values: ArrayLike) -> str:
        """A constant of float32."""
        return self.array(values)

    def graph(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph as built so far."""
        constants = list(self._constants.values())
        return helper.make_graph(self._nodes, self.name, inputs, outputs, constants)

    def model(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The graph as a model file's content."""
        domains = [("", OPSET)] + ([(MICROSOFT, 1)] if self._uses_microsoft else [])
        return helper.make_model(
            self.graph(inputs, outputs),
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains],
            ir_version=IR_VERSION,
            producer_name="unrolled",
        )

    def _fresh(self, operator: str) -> str:
        self.outer._count += 1
        return f"{operator.lower()}_{self.outer._count}"


def tensor(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    """An input or output of a graph; a dimension with a name is free in every run."""
    return helper.make_tensor_value_info(name, kind, shape)

"""Names, constants and nodes of an ONNX graph under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import helper, numpy_helper

OPSET = 18
IR_VERSION = 9


class GraphBuilder:
    """Collects nodes and constants; a subgraph's constants live in the outermost graph."""

    def __init__(self, name: str, outer: GraphBuilder | None = None) -> None:
        self.name = name
        self.outer = outer or self
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
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
        return helper.make_model(
            self.graph(inputs, outputs),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="unrolled",
        )

    def _fresh(self, operator: str) -> str:
        self.outer._count += 1
        return f"{operator.lower()}_{self.outer._count}"

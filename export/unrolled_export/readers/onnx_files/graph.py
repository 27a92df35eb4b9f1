"""An ONNX graph: where its values come from, and the constants among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Floats

Array = NDArray[Any]

MOVING = (
    "Cast",
    "Dropout",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that move or select the elements of their first input, and change none."""

STANDARD = ("", "ai.onnx")
"""Both name the domain of ONNX's own operators."""

_FOLDED = ("Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators on constants that are computed here."""
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_LONGEST_PROBLEM = 500
"""Characters of a message."""
_LONGEST = 200
"""Nodes on a path of moved elements."""
_DEEPEST = 50
"""Nodes on a path of constants."""


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the node's operator is one of ONNX's own."""
    return node.domain in STANDARD


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant, and the initialisers that it is made of."""

    array: Array
    origins: frozenset[str]


class Graph:
    """The graph of a model. Every method raises CheckpointError."""

    def __init__(self, file: Path, model: onnx.ModelProto) -> None:
        self._file = file
        graph = model.graph
        if graph.sparse_initializer:
            raise self.error("has sparse initialisers, which are not read")
        self._initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._opset = max(
            (o.version for o in model.opset_import if o.domain in STANDARD), default=1
        )
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.output, *graph.value_info)
            if value.type.tensor_type.HasField("shape")
        }
        self._constants: dict[str, Constant | None] = {}
        self._used: set[str] = set()
        self.nodes = list(graph.node)
        self.outputs = [value.name for value in graph.output]
        self.inputs = {v.name: v for v in graph.input if v.name not in self._initialisers}
        self.files: list[Path] = []
        """Files of external data that were read."""

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value, None for an input or initialiser."""
        return self._producers.get(name)

    def constant(self, name: str) -> Constant | None:
        """The value where it is one, else None."""
        return self._constant(name, 0)

    def use(self, constant: Constant) -> None:
        """Count the initialisers that it is made of as used."""
        self._used |= constant.origins

    def size(self, constants: list[Constant]) -> int:
        """Numbers in the initialisers that constants are made of, each counted once."""
        origins = frozenset().union(*(constant.origins for constant in constants))
        loose = {constant for constant in constants if not constant.origins}
        return sum(math.prod(self._initialisers[name].dims) for name in origins) + sum(
            constant.array.size for constant in loose
        )

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Floats:
        """The constant as weights, which has to be of `shape`, if given."""
        constant = self.constant(name)
        if constant is None:
            raise self.error(f"{name!r} is not a constant, as weights are")
        array = constant.array
        if array.dtype.name not in _FLOATS:
            raise self.error(f"{name!r} holds {array.dtype}, where weights are float32 or the like")
        if shape is not None and array.shape != shape:
            raise self.error(f"{name!r} {list(array.shape)} should be {list(shape)}")
        # A float64 beyond float32's range becomes infinite, and is refused as such below.
        with np.errstate(over="ignore"):
            floats = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(floats).all():
            raise self.error(f"{name!r} holds NaN or infinite weights")
        self.use(constant)
        return floats

    def check_all_used(self, reading: str) -> None:
        """Refuse weights that `reading`, in words, does not use."""
        left = [
            f"{name!r} {list(tensor.dims)}"
            for name, tensor in self._initialisers.items()
            if name not in self._used and _is_weight(tensor)
        ]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise self.error(f"tensors left over: {', '.join(left[:3])}{more} (read as {reading})")

    def moved(self, name: str) -> str:
        """Where the elements of a value come from: not from a node of `MOVING`."""
        for _ in range(_LONGEST):
            node = self.producer(name)
            if node is None or not self._is_moving(node):
                return name
            name = self.read(node, 0)
        raise self.error("has a path of too many nodes")

    def _is_moving(self, node: onnx.NodeProto) -> bool:
        if not is_standard(node) or node.op_type not in MOVING:
            return False
        if node.op_type == "Gather":
            # With other indices it looks tokens up in a table.
            indices = self.constant(self.read(node, 1))
            return indices is not None and _is_ascending(indices.array)
        if node.op_type == "Slice" and len(node.input) > 4:
            # Negative steps turn a sequence round.
            steps = self.constant(node.input[4])
            return steps is not None and bool((steps.array > 0).all())
        return True

    def read(self, node: onnx.NodeProto, index: int) -> str:
        """The name of the node's input `index`, which has to be there."""
        if index >= len(node.input) or not node.input[index]:
            raise self.error(f"{self.shown(node)} has no input {index}")
        return node.input[index]

    def shown(self, node: onnx.NodeProto) -> str:
        """A node, for messages."""
        operator = node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"
        return ascii(f"{operator} {node.name or ' '.join(node.output)}")[1:-1]

    def attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """Numbers, strings and lists of them by name."""
        try:
            return {a.name: helper.get_attribute_value(a) for a in node.attribute}
        except ValueError as error:
            raise self.error(f"{self.shown(node)} has an attribute of no known type") from error

    def check_last_axis(self, node: onnx.NodeProto) -> None:
        """Refuse a softmax over another axis than the last: before opset 13 it is over all from
        its axis on, by default 1."""
        axis = self.attributes(node).get("axis", -1 if self._opset >= 13 else 1)
        names = (self.read(node, 0), *node.output[:1])
        rank = next((self._ranks[name] for name in names if name in self._ranks), None)
        if axis != -1 and (rank is None or axis != rank - 1):
            of = "an unknown number" if rank is None else rank
            raise self.error(
                f"{self.shown(node)} is over axis {axis} of {of}, where the last (-1) is served"
            )

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The elements of a tensor, from the file or from one beside it."""
        name = ascii(tensor.name)
        if min(tensor.dims, default=0) < 0:
            raise self.error(f"tensor {name} has a negative size")
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                return self._external(tensor, dtype)
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise self.error(f"tensor {name} {list(tensor.dims)} is not whole") from error

    def error(self, problem: str) -> CheckpointError:
        """An error that names this file. Names in the file may be of any length."""
        is_long = len(problem) > _LONGEST_PROBLEM
        return CheckpointError(self._file, problem[:_LONGEST_PROBLEM] + " ..." * is_long)

    def _constant(self, name: str, depth: int) -> Constant | None:
        if depth > _DEEPEST:
            raise self.error("has a path of too many nodes")
        if name not in self._constants:
            self._constants[name] = self._evaluated(name, depth)
        return self._constants[name]

    def _evaluated(self, name: str, depth: int) -> Constant | None:
        if name in self._initialisers:
            return Constant(self.array(self._initialisers[name]), frozenset({name}))
        node = self.producer(name)
        if node is None or not is_standard(node):
            return None
        if node.op_type == "Constant":
            return self._constant_node(node)
        if node.op_type not in _FOLDED or len(node.output) != 1:
            return None
        inputs = [self._constant(source, depth + 1) for source in node.input if source]
        known = [value for value in inputs if value is not None]
        return self._folded(node, known) if len(known) == len(inputs) else None

    def _constant_node(self, node: onnx.NodeProto) -> Constant:
        value = next(iter(self.attributes(node).values()), None)
        if isinstance(value, onnx.TensorProto):
            return Constant(self.array(value), frozenset())
        if isinstance(value, int | float):
            return Constant(
                np.array(value, np.int64 if isinstance(value, int) else np.float32), _NONE
            )
        if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
            whole = all(isinstance(item, int) for item in value)
            return Constant(np.array(value, np.int64 if whole else np.float32), _NONE)
        raise self.error(f"{self.shown(node)} holds no numbers")

    def _folded(self, node: onnx.NodeProto, inputs: list[Constant]) -> Constant:
        """The node's result. Only a Concat can be larger than its inputs."""
        size = sum(value.array.size for value in inputs)
        weights = sum(math.prod(tensor.dims) for tensor in self._initialisers.values())
        if node.op_type == "Concat" and size > weights + 2**20:
            raise self.error(f"{self.shown(node)} makes more weights than the file has")
        names = [name for name in node.input if name]
        feeds = {name: value.array for name, value in zip(names, inputs, strict=True)}
        try:
            results: Any = ReferenceEvaluator(node, opsets={"": self._opset}).run(None, feeds)
            result = np.asarray(results[0])
        # NumPy and the evaluator report what does not fit in many ways.
        except Exception as error:
            raise self.error(f"{self.shown(node)} does not fit its inputs") from error
        return Constant(result, frozenset().union(*(value.origins for value in inputs)))

    def _external(self, tensor: onnx.TensorProto, dtype: np.dtype[Any]) -> Array:
        name, entries = ascii(tensor.name), {e.key: e.value for e in tensor.external_data}
        file = self._beside(name, entries.get("location", ""))
        count = math.prod(tensor.dims)
        size, offset = count * dtype.itemsize, int(entries.get("offset", 0))
        if int(entries.get("length", size)) != size:
            raise self.error(f"tensor {name} {list(tensor.dims)} is not as long as its data")
        if not 0 <= offset <= file.stat().st_size - size:
            raise self.error(f"tensor {name} lies beyond the end of {file.name!r}")
        if file not in self.files:
            self.files.append(file)
        with file.open("rb") as stream:
            stream.seek(offset)
            return np.frombuffer(stream.read(size), dtype).reshape(tensor.dims)

    def _beside(self, name: str, location: str) -> Path:
        """The file of external data, which has to be in the model's folder."""
        folder = self._file.parent
        file = folder / location
        try:
            is_inside = file.resolve().is_relative_to(folder.resolve())
            is_file = is_inside and file.is_file()
        except (OSError, ValueError):
            is_inside, is_file = True, False
        if not is_inside:
            raise self.error(f"tensor {name} lies in {location!r}, outside the folder")
        if not is_file:
            raise self.error(f"tensor {name} lies in {location!r}, which is not there")
        return file


_NONE: frozenset[str] = frozenset()


def _is_ascending(indices: Array) -> bool:
    """Whether selecting these keeps the order. Indices below 0 count from the end."""
    flat = indices.reshape(-1)
    if flat.dtype.kind != "i" or len(flat) == 0:
        return False
    return bool((flat[1:] > flat[:-1]).all()) and bool(flat[0] < 0) == bool(flat[-1] < 0)


def _is_weight(tensor: onnx.TensorProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    is_float = tensor.data_type in (*floats, onnx.TensorProto.DOUBLE)
    return is_float and math.prod(tensor.dims) > 1

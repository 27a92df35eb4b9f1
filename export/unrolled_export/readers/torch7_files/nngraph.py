"""The graph of an nn.gModule as expressions of its inputs.

Every node is a number; equal expressions have the same number, whatever the order of sums and
products. Source of the layout: node.lua and gmodule.lua of nngraph. A node's data has `module`
and, in `mapindex`, the data of the nodes that it reads, in order.
"""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.torch7_files.nn_modules import check_dropout, kind_of
from unrolled_export.readers.torch7_files.t7_file import Storage, Table

_PASSED = ("Identity", "Contiguous", "Copy")
_FUNCTIONS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "LogSoftMax": "scores", "SoftMax": "scores"}
_ELEMENTWISE = ("sigmoid", "tanh")
_LONGEST_NAME = 200
_DEEPEST = 250
"""Nodes on a path; a layer has about ten."""

Expression = tuple[object, ...]


def module_list(file: Path, module: Table) -> list[tuple[str, Table]]:
    """The modules of a gModule by name: as annotated, else by their place.

    Raises CheckpointError where there are none.
    """
    nodes = module.get("forwardnodes")
    found: list[tuple[str, Table]] = []
    for index, node in enumerate(nodes.listed() if isinstance(nodes, Table) else (), 1):
        data = _table(node, "data")
        inner = _table(data, "module")
        if inner is not None:
            name = _annotation(data) or f"{kind_of(inner)}_{index}"
            found.append((name, inner))
    if not found:
        raise CheckpointError(file, "protos.rnn.forwardnodes has no modules")
    if len({name for name, _ in found}) < len(found):
        raise CheckpointError(file, "protos.rnn.forwardnodes has two modules of one name")
    return found


def _table(value: object, key: str) -> Table | None:
    inner = value.get(key) if isinstance(value, Table) else None
    return inner if isinstance(inner, Table) else None


def _annotation(data: Table | None) -> str | None:
    annotations = _table(data, "annotations")
    name = annotations.get("name") if annotations else None
    if isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST_NAME:
        return name
    return None


class Graph:
    """What a gModule computes."""

    def __init__(self, file: Path, inputs: list[object], modules: list[tuple[str, Table]]) -> None:
        self._file = file
        self._inputs = {data: index for index, data in enumerate(inputs)}
        self._names = {module: name for name, module in modules}
        self._numbers: dict[Expression, int] = {}
        self._expressions: list[Expression] = []
        self._known: dict[Table, int] = {}
        self.outputs: list[int] = []
        self.linears: dict[str, int] = {}
        """By name of an nn.Linear, what it reads."""
        self.first_input = self.input(0)
        """What the first layer reads: the token, one-hot or embedded."""
        self.embedding: str | None = None
        """The nn.LookupTable, where there is one."""

    @classmethod
    def of(cls, file: Path, module: Table, modules: list[tuple[str, Table]]) -> Graph | None:
        """The graph; None where the file does not say what is connected with what.

        Raises CheckpointError where a module is of no known class.
        """
        ends = [_table(_table(module, end), "data") for end in ("innode", "outnode")]
        inputs, outputs = (_table(data, "mapindex") for data in ends)
        if inputs is None or outputs is None:
            return None
        graph = cls(file, list(inputs.listed()), modules)
        graph.outputs = [graph._read(data, 0) for data in outputs.listed()]
        if len(graph.outputs) < 2 or len(graph.outputs) != len(graph._inputs):
            raise CheckpointError(
                file, "protos.rnn has not as many inputs as outputs: states and a token"
            )
        return graph

    def input(self, index: int) -> int:
        """Input `index` of the graph."""
        return self._make("input", index)

    def linear(self, name: str) -> int:
        """The output of an nn.Linear."""
        return self._make("linear", name, self.linears[name])

    def apply(self, function: str, inner: int) -> int:
        """A function of every element, or of a row."""
        return self._make(function, inner)

    def add(self, *terms: int) -> int:
        return self._make("add", *sorted(terms))

    def multiply(self, *terms: int) -> int:
        """The product element by element."""
        return self._make("multiply", *sorted(terms))

    def one_minus(self, inner: int) -> int:
        return self._make("plus", 1, self._make("times", -1, inner))

    def block(self, start: int, size: int, inner: int) -> int:
        """`size` columns from `start`, counted from 0."""
        match self._expressions[inner]:
            case ("block", int(before), _, int(whole)):
                return self.block(before + start, size, whole)
            case (str(function), int(argument)) if function in _ELEMENTWISE:
                return self.apply(function, self.block(start, size, argument))
        return self._make("block", start, size, inner)

    def fed_by(self, inner: int) -> list[str]:
        """Names of the nn.Linear modules that read an expression."""
        return [name for name, read in self.linears.items() if read == inner]

    def linear_under(self, scores: int) -> str | None:
        """The nn.Linear that makes the scores, None where something else does."""
        expression = self._expressions[scores]
        if expression[0] == "scores" and isinstance(expression[1], int):
            expression = self._expressions[expression[1]]
        return str(expression[1]) if expression[0] == "linear" else None

    def _make(self, *expression: object) -> int:
        if expression not in self._numbers:
            self._numbers[expression] = len(self._expressions)
            self._expressions.append(expression)
        return self._numbers[expression]

    def _read(self, data: object, depth: int) -> int:
        """The expression of a node."""
        if not isinstance(data, Table) or depth > _DEEPEST:
            raise self._error("is no graph of modules")
        if data in self._inputs:
            return self.input(self._inputs[data])
        if data not in self._known:
            read = _table(data, "mapindex")
            inner = [self._read(source, depth + 1) for source in (read.listed() if read else ())]
            if not inner:
                raise self._error("has a node that reads nothing")
            self._known[data] = self._node(data, inner)
        return self._known[data]

    def _node(self, data: Table, inner: list[int]) -> int:
        module = _table(data, "module")
        if module is not None:
            name = self._names.get(module)
            if name is None:
                raise self._error(f"has a {module.class_name} that forwardnodes does not list")
            return self._module(name, module, inner)
        index = data.get("selectindex")
        return inner[0] if index is None else self._selected(index, inner[0])

    def _module(self, name: str, module: Table, inner: list[int]) -> int:
        kind = kind_of(module)
        if kind in ("CAddTable", "CMulTable") and len(inner) == 2:
            return self.add(*inner) if kind == "CAddTable" else self.multiply(*inner)
        if len(inner) > 1:
            raise self._error(f"has {name}, a {module.class_name} of {len(inner)} inputs")
        if kind in _PASSED:
            return inner[0]
        if kind == "Dropout":
            check_dropout(self._file, name, module)
            return inner[0]
        if kind in _FUNCTIONS:
            return self.apply(_FUNCTIONS[kind], inner[0])
        if kind in ("Linear", "LinearNB"):
            self.linears[name] = inner[0]
            return self.linear(name)
        if kind in ("OneHot", "LookupTable"):
            return self._embedded(name, kind, inner[0])
        return self._shaped(name, kind, module, inner[0])

    def _shaped(self, name: str, kind: str, module: Table, inner: int) -> int:
        """A module that selects or arranges, or makes 1 - x."""
        if kind == "Narrow" and module.get("dimension") == 2:
            start, size = module.get("index"), module.get("length")
            if isinstance(start, int) and isinstance(size, int):
                return self.block(start - 1, size, inner)
        if kind in ("Reshape", "View") and isinstance(shape := module.get("size"), Storage):
            return self._make("reshape", *shape.elements.tolist(), inner)
        if kind == "SplitTable" and module.get("dimension") == 2:
            return self._make("split", inner)
        if kind == "MulConstant":
            return self._make("times", module.get("constant_scalar"), inner)
        if kind == "AddConstant":
            return self._make("plus", module.get("constant_scalar"), inner)
        if kind == "BatchNormalization":
            raise self._error(f"has {name}, batch normalisation inside the recurrence: not read")
        raise self._error(f"has {name}, a {module.class_name}, which is not read")

    def _selected(self, index: object, inner: int) -> int:
        """Output `index` of a split(reshape(gates, size, x)): a block of x."""
        match self._expressions[inner]:
            case ("split", int(shaped)):
                match self._expressions[shaped]:
                    case ("reshape", int(), int(size), int(whole)) if isinstance(index, int):
                        return self.block((index - 1) * size, size, whole)
        raise self._error("splits something other than the gates of a layer")

    def _embedded(self, name: str, kind: str, inner: int) -> int:
        if inner != self.input(0) or self.first_input != self.input(0):
            raise self._error(f"has {name}, which does not read the token alone")
        self.embedding = name if kind == "LookupTable" else None
        self.first_input = self._make(kind, name, inner)
        return self.first_input

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self._file, f"protos.rnn {problem}")

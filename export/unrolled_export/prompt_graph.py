"""The prompt graph: K tokens of B rows that are told, up to the states they lead to.

It gives the same bits as K steps of the engine's graph and does less: nothing is drawn, so there
is no head and no sampling, and a layer's input product is made of all K tokens at once, which
reads its weights once. Only the recurrent products remain a step each (Appleyard et al.,
Optimizing Performance of Recurrent Neural Networks on GPUs, 2016, section 3.2).

Inputs: `fed` int32 [K, B], the tokens in the order in which they are fed, and the states float32
[B, H], named as in the manifest. Outputs: the next states.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from unrolled_export.cells import Cells
from unrolled_export.graph_builder import GraphBuilder, tensor
from unrolled_export.network import Network
from unrolled_export.precision import Precision, quantized
from unrolled_export.products import Products
from unrolled_export.quantization import QuantizedWeight


def prompt_graph(
    network: Network,
    precision: Precision = Precision.FP32,
    in_bytes: Mapping[str, QuantizedWeight] | None = None,
) -> onnx.ModelProto:
    """Build the graph, with the same products as `step_graph` of the same parameters."""
    graph = GraphBuilder("prompt")
    if in_bytes is None:
        in_bytes = quantized(network, precision)
    _Layers(graph, network, in_bytes, precision is Precision.FP16).append()
    states = network.states
    inputs = [
        tensor("fed", TensorProto.INT32, ["K", "B"]),
        *(tensor(state.input, TensorProto.FLOAT, ["B", state.size]) for state in states),
    ]
    outputs = [tensor(state.output, TensorProto.FLOAT, ["B", state.size]) for state in states]
    return graph.model(inputs, outputs)


class _Layers:
    """Nodes of all layers, one behind the other, each over all K tokens."""

    def __init__(
        self,
        graph: GraphBuilder,
        network: Network,
        in_bytes: Mapping[str, QuantizedWeight],
        halves: bool,
    ) -> None:
        self._graph, self._network = graph, network
        self._in_bytes, self._halves = in_bytes, halves

    def append(self) -> None:
        graph = self._graph
        tokens = graph.node("Reshape", ["fed", graph.integers([-1])])
        products = Products(graph, self._in_bytes, self._halves)
        outside = Cells(products, self._network, tokens)
        below = ""
        for index, layer in enumerate(self._network.layers):
            inputs = outside.inputs(index, below)
            by_step = self._split_steps(inputs, len(layer.weight_ih))
            output = self._scan(index, by_step)
            below = graph.node("Reshape", [output, graph.integers([-1, layer.output_size])])

    def _split_steps(self, value: str, size: int) -> str:
        """[K * B, size] as [K, B, size]."""
        graph = self._graph
        shape = graph.node("Concat", [graph.node("Shape", ["fed"]), graph.integers([size])], axis=0)
        return graph.node("Reshape", [value, shape])

    def _scan(self, index: int, inputs: str) -> str:
        """A layer's recurrence over `inputs` [K, B, G*H]; the name of its outputs [K, B, O]."""
        step = self._graph.subgraph(f"layer_{index}")
        products = Products(step, self._in_bytes, self._halves)
        output = Cells(products, self._network, "", "step_").recurrence(index, "step_inputs")
        step.node("Identity", [output], ["step_output"])
        states = self._network.states_of(index)
        layer = self._network.layers[index]
        body = step.graph(
            [
                *(tensor(f"step_{s.input}", TensorProto.FLOAT, ["B", s.size]) for s in states),
                tensor("step_inputs", TensorProto.FLOAT, ["B", len(layer.weight_ih)]),
            ],
            [
                *(tensor(f"step_{s.output}", TensorProto.FLOAT, ["B", s.size]) for s in states),
                tensor("step_output", TensorProto.FLOAT, ["B", layer.output_size]),
            ],
        )
        outputs = f"outputs_{index}"
        self._graph.node(
            "Scan",
            [*(state.input for state in states), inputs],
            [*(state.output for state in states), outputs],
            body=body,
            num_scan_inputs=1,
        )
        return outputs

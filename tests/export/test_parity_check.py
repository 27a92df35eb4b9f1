"""The check that ends every export finds graphs that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.checkpoints import letters, refusal, save, state_dict
from unrolled_export import building
from unrolled_export.errors import GraphError, ParityError
from unrolled_export.network import Cell, Layer, Network
from unrolled_export.parity import check_parity
from unrolled_export.portable_graph import portable_graph
from unrolled_export.reference import initial_states
from unrolled_export.reference_numpy import NumpyReference
from unrolled_export.reference_torch import TorchReference
from unrolled_export.runtime import Graph
from unrolled_export.step_graph import step_graph

Edit = Callable[[onnx.ModelProto], None]


def network(cell: Cell = Cell.GRU, scale: float = 0.3, hidden: int = 6) -> Network:
    random = np.random.default_rng(3)

    def array(*shape: int) -> np.ndarray:
        return random.normal(0, scale, shape).astype(np.float32)

    rows = cell.gates * hidden
    sizes = (5, hidden, hidden)
    layers = tuple(
        Layer(array(rows, size), array(rows, hidden), array(rows), array(rows)) for size in sizes
    )
    return Network(cell, array(7, 5), layers, array(7, hidden), array(7), 0)


def graphs(model: Network) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return portable_graph(model), step_graph(model)


def check(model: Network, portable: onnx.ModelProto, engine: onnx.ModelProto) -> str:
    """What the check says against the graphs; empty where it says nothing."""
    try:
        check_parity(model, portable.SerializeToString(), engine.SerializeToString())
    except ParityError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("cell", Cell)
def test_true_graphs_pass(cell: Cell) -> None:
    model = network(cell)
    portable, engine = (graph.SerializeToString() for graph in graphs(model))
    assert check_parity(model, portable, engine).reference.startswith("torch ")


def assert_references_agree(model: Network) -> None:
    """In two chunks, the second with the state that the first left."""
    tokens = np.random.default_rng(0).integers(0, 7, (3, 50))
    ours, theirs = NumpyReference(model), TorchReference(model)
    our_states = their_states = initial_states(model, 3)
    for chunk in (tokens[:, :20], tokens[:, 20:]):
        ours_said, our_states = ours.advance(chunk, our_states)
        theirs_said, their_states = theirs.advance(chunk, their_states)
        np.testing.assert_allclose(ours_said, theirs_said, atol=1e-5)
        for name in (state.input for state in model.states):
            np.testing.assert_allclose(our_states[name], their_states[name], atol=1e-5)


@pytest.mark.parametrize("cell", Cell)
def test_references_agree(cell: Cell) -> None:
    assert_references_agree(network(cell))


def test_references_agree_on_one_hot_input() -> None:
    model = network()
    weight_ih = np.random.default_rng(4).normal(0, 0.5, (18, 7)).astype(np.float32)
    first = replace(model.layers[0], weight_ih=weight_ih)
    assert_references_agree(replace(model, embedding=None, layers=(first, *model.layers[1:])))


def test_a_chaotic_network_passes_with_states_of_the_reference() -> None:
    model = network(Cell.RNN_TANH, scale=0.2, hidden=64)
    portable, engine = (graph.SerializeToString() for graph in graphs(model))
    parity = check_parity(model, portable, engine)
    assert parity.reference.endswith(", state taken every 8 steps")
    assert parity.max_abs_logprob_error <= 1e-4


def test_a_wrong_graph_of_a_chaotic_network() -> None:
    model = network(Cell.RNN_TANH, scale=0.2, hidden=64)
    portable, engine = graphs(model)
    forget_the_state(portable)
    assert check(model, portable, engine).startswith("model.onnx, in chunks of odd sizes: ")


def reset_before_the_product(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "linear_before_reset":
                attribute.i = 0


def nudge_head_bias(graph: onnx.ModelProto) -> None:
    (tensor,) = (t for t in graph.graph.initializer if list(t.dims) == [7])
    array = numpy_helper.to_array(tensor).copy()
    array[2] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def forget_the_state(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        for index, name in enumerate(node.output):
            if name == "next_h_01":
                node.output[index] = "unused"
    graph.graph.node.add(op_type="Identity", input=["h_01"], output=["next_h_01"])


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (reset_before_the_product, "model.onnx, in one chunk: a log-probability differs"),
        (nudge_head_bias, "model.onnx, in one chunk: a log-probability differs"),
        (forget_the_state, "model.onnx, in chunks of odd sizes: a log-probability differs"),
    ],
)
def test_a_wrong_portable_graph(edit: Edit, expected: str) -> None:
    model = network()
    portable, engine = graphs(model)
    edit(portable)
    assert check(model, portable, engine).startswith(expected)


def test_a_wrong_graph_of_the_engine() -> None:
    model = network()
    portable, engine = graphs(model)
    nudge_head_bias(engine)
    said = check(model, portable, engine)
    assert re.fullmatch(
        r"engine\.onnx, one row, one step a run: a log-probability differs from torch \S+ by "
        r"\d\.\de-0\d nats at step \d+ of row 0, which starts above the last layer, whose "
        r"states agree; 1e-04 is tolerated",
        said,
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_at_which_a_mismatch_starts(layer: int) -> None:
    model = network(Cell.LSTM)
    layers = list(model.layers)
    weight_hh = layers[layer].weight_hh.copy()
    weight_hh[0] += 0.5
    layers[layer] = replace(layers[layer], weight_hh=weight_hh)
    other = replace(model, layers=tuple(layers))
    said = check(model, portable_graph(model), step_graph(other))
    assert f"which starts at layer {layer} (h_0{layer}, step 1)" in said


def greedy_takes_the_least_likely(graph: onnx.ModelProto) -> None:
    (scan,) = (node for node in graph.graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    for node in body.node:
        if node.op_type == "ArgMax":
            node.op_type = "ArgMin"


def test_a_wrong_greedy_choice() -> None:
    model = network()
    portable, engine = graphs(model)
    greedy_takes_the_least_likely(engine)
    assert check(model, portable, engine).startswith("engine.onnx, greedily: chose token")


def test_rows_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an activation scale taken over the whole batch: right within the tolerance only."""
    model = network()
    portable, engine = graphs(model)
    (logprobs,) = (value for value in engine.graph.output if value.name == "logprobs")
    logprobs.name = "seen_logprobs"
    nodes = onnx.helper
    engine.graph.node.extend(
        [
            nodes.make_node("ReduceMax", ["logprobs"], ["largest"], keepdims=0),
            nodes.make_node("Mul", ["largest", "least"], ["nudge"]),
            nodes.make_node("Sub", ["logprobs", "nudge"], ["seen_logprobs"]),
        ]
    )
    engine.graph.initializer.append(numpy_helper.from_array(np.array(1e-5, np.float32), "least"))
    run = Graph.run

    def renamed(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = run(graph, feeds)
        return {name.removeprefix("seen_"): value for name, value in outputs.items()}

    monkeypatch.setattr(Graph, "run", renamed)
    said = check(model, portable, engine)
    assert said.startswith("engine.onnx: row 0 has other bits with three rows, eight steps a run")


def test_a_network_that_overflows() -> None:
    model = network(Cell.RNN_RELU, scale=30.0)
    assert check(model, *graphs(model)).endswith("log-probabilities are not finite")


def test_a_graph_that_onnxruntime_refuses() -> None:
    with pytest.raises(GraphError, match=r"^model\.onnx: onnxruntime refuses it: .*$"):
        Graph("model.onnx", b"nonsense")


def test_a_failed_check_fails_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(model: Network, halves: bool) -> onnx.ModelProto:
        graph = portable_graph(model, halves)
        reset_before_the_product(graph)
        return graph

    monkeypatch.setattr(building, "portable_graph", wrong)
    arguments = save(tmp_path, state_dict("gru"), letters(5))
    assert "model.onnx, in one chunk" in refusal(arguments, tmp_path / "models", capsys)

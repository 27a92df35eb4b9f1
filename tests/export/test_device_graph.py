"""The graphs for a device, run on the CPU; and what of them a CUDA device can run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, shape_inference
from onnx.reference import ReferenceEvaluator
from support.models import RECIPES, build, export
from support.networks import (
    V,
    Weights,
    expected_logprobs,
    network,
    of_size,
    session,
    some_tokens,
    starts,
)
from support.oracle import Draw
from unrolled_export.device_check import check_device
from unrolled_export.device_graph import FILTERS, ROWS, STEP, device_graphs
from unrolled_export.errors import ParityError, PrecisionError
from unrolled_export.network import Activation, Cell, Gate, Network, Stage
from unrolled_export.precision import Precision, rounded
from unrolled_export.runners import EngineRunner
from unrolled_export.step_graph import step_graph

FLOATS = ("float16", "float", "double")
NUMBERS = (*FLOATS, "int32", "int64")
ANY = (*NUMBERS, "bool")
CUDA_KERNELS = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), NUMBERS),
    **dict.fromkeys(("And", "Or"), ("bool",)),
    **dict.fromkeys(("Cast", "Equal", "Gather", "Reshape", "Slice", "Split", "Unsqueeze"), ANY),
    **dict.fromkeys(("Floor", "Gemm", "LayerNormalization", "LogSoftmax", "MatMul"), FLOATS),
    **dict.fromkeys(("GatherElements", "ScatterElements"), ANY),
    **dict.fromkeys(("GreaterOrEqual", "Less", "LessOrEqual"), NUMBERS),
    **dict.fromkeys(("HardSigmoid", "Relu", "Sigmoid", "Softmax", "Tanh"), FLOATS),
    "Pad": (*FLOATS, "bool"),
    "ReduceSum": NUMBERS,
    "TopK": NUMBERS,
    "Where": NUMBERS,
}
"""Types that the CUDA provider of onnxruntime 1.31 has kernels for: docs/OperatorKernels.md there,
those of the operators that may be used. CumSum and ArgMax are not: too slow, or by way of cuDNN."""

LARGEST_UNIFORM = 1 - 2.0**-52


def stages(weights: Weights, size: int) -> tuple[Stage, ...]:
    return (weights.norm(size), weights.dense(size, 9, Activation.RELU))


NETWORKS: dict[str, Callable[[], Network]] = {
    **{cell.value: partial(network, cell) for cell in Cell},
    "one-hot": lambda: network(Cell.LSTM, embedding=None),
    "norms and stages": lambda: network(Cell.LSTM, norms=True, stages=stages),
    "projections": lambda: network(Cell.LSTM, projections=(4, 3)),
    "reset before": lambda: network(Cell.GRU, reset_after=False),
    "hard": lambda: network(Cell.LSTM, gate=Gate.HARD_SIGMOID_FIFTH),
    "hard, reset before": lambda: network(
        Cell.GRU, gate=Gate.HARD_SIGMOID_SIXTH, reset_after=False
    ),
}
PRECISIONS = (Precision.FP32, Precision.FP16)


def graphs_of(model: Network, precision: Precision = Precision.FP32) -> dict[str, bytes]:
    return device_graphs(rounded(model, precision), precision)


def run(graph: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds), strict=True))


# --- What a device can run ---------------------------------------------------------------------


def nodes_and_types(content: bytes) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every node, and the type of its first input that can have several."""
    model = shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    graph = model.graph
    types = {it.name: it.type.tensor_type.elem_type for it in (*graph.input, *graph.value_info)}
    types |= {it.name: it.type.tensor_type.elem_type for it in graph.output}
    types |= {it.name: it.data_type for it in graph.initializer}
    for node in graph.node:
        first = node.input[1] if node.op_type == "Where" else node.input[0]
        yield node, TensorProto.DataType.Name(types[first]).lower()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*NETWORKS, "300 tokens"])
def test_every_node_has_a_kernel_on_cuda_and_none_controls_the_flow(
    name: str, precision: Precision
) -> None:
    model = of_size(300) if name == "300 tokens" else NETWORKS[name]()
    for content in graphs_of(model, precision).values():
        for node, kind in nodes_and_types(content):
            assert node.domain == ""
            assert kind in CUDA_KERNELS[node.op_type], node
            assert not any(it.HasField("g") or it.graphs for it in node.attribute), node


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_network_gives_the_same_bytes(precision: Precision) -> None:
    assert graphs_of(network(Cell.LSTM), precision) == graphs_of(network(Cell.LSTM), precision)


# --- The step ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_compute_what_the_network_says(name: str) -> None:
    model, tokens = NETWORKS[name](), some_tokens(3, 13)
    graph, states = session(graphs_of(model)[STEP]), starts(model, 3)
    expected = expected_logprobs(model, tokens[:, :-1])
    for step in range(tokens.shape[1] - 1):
        made = run(graph, step_feeds(tokens[:, step], tokens[:, step + 1], states))
        assert made["token"].tolist() == tokens[:, step + 1].tolist()
        np.testing.assert_allclose(made["logprobs"], expected[:, step], rtol=0, atol=1e-4)
        chosen = made["logprobs"][np.arange(3), tokens[:, step + 1]]
        assert made["logprob"][:, 0].tolist() == chosen.tolist()
        states = {name: made[f"next_{name}"] for name in states}


def step_feeds(
    pending: NDArray[Any], told: NDArray[Any], states: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    return {
        "pending": pending.astype(np.int32),
        "told": told.astype(np.int32),
        "uniforms": np.zeros(len(pending)),
        "divisor": np.ones(len(pending), np.float32),
        **states,
    }


def test_fp16_products_are_rounded_where_they_are_said_to_be() -> None:
    """Against the equations in NumPy, with the roundings written out."""
    model = rounded(network(Cell.LSTM, sizes=(32, 24)), Precision.FP16)
    random = np.random.default_rng(3)
    states = {
        state.input: np.tanh(random.normal(size=(64, state.size))).astype(np.float32)
        for state in model.states
    }
    tokens = random.integers(0, V, 64)
    made = evaluated(graphs_of(model, Precision.FP16)[STEP], step_feeds(tokens, tokens, states))
    assert model.embedding is not None
    below: NDArray[Any] = np.zeros(0)
    for index, layer in enumerate(model.layers):
        h, c = (states[state.input] for state in model.states_of(index))
        bias = layer.bias_ih.astype(np.float64) + layer.bias_hh
        if index == 0:
            inputs = half(model.embedding[tokens].astype(np.float64) @ layer.weight_ih.T + bias)
        else:
            inputs = half(half(half(below) @ layer.weight_ih.T) + half(bias))
        # The evaluator rounds a product before it adds to it; cuBLAS rounds the sum alone.
        gates = half(half(half(h) @ layer.weight_hh.T) + inputs)
        i, f, g, o = np.split(gates, 4, axis=1)
        cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        below = sigmoid(o) * np.tanh(cell)
        for kind, expected in (("h", below), ("c", cell)):
            difference = np.abs(made[f"next_{kind}_{index:02d}"] - expected)
            # Where a sum lies between two numbers of float16, either may be the nearer one.
            assert (difference < 1e-6).mean() > 0.9
            assert difference.max() < 2e-3
    logits = below @ model.head_weight.T + model.head_bias
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(made["logprobs"], expected, rtol=0, atol=5e-3)


def evaluated(content: bytes, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Outputs by ONNX's own evaluator: onnxruntime leaves roundings out on CPUs, where it makes
    products of float16 in float32."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(content))
    names = evaluator.output_names
    return dict(zip(names, evaluator.run(names, feeds), strict=True))


def half(values: NDArray[Any]) -> NDArray[np.float64]:
    rounded_values: NDArray[np.float64] = values.astype(np.float32).astype(np.float16).astype(float)
    return rounded_values


def sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = 1 / (1 + np.exp(-values))
    return result


# --- Draws -------------------------------------------------------------------------------------


def sampling(how: Draw, numbers: NDArray[np.float64]) -> dict[str, Any]:
    """The inputs of a draw, as whoever runs the graphs prepares them."""
    rows = len(numbers)
    return {
        "uniforms": np.zeros(rows) if how.temperature == 0 else numbers,
        "divisor": np.full(rows, how.temperature or 1e-30, np.float32),
    }


def filtering(how: Draw, rows: int) -> dict[str, Any]:
    return {
        "top_k": np.full(rows, how.top_k, np.int32),
        "top_p": np.full(rows, how.top_p, np.float32),
        "min_p": np.full(rows, how.min_p, np.float32),
    }


def assert_drawn(
    how: Draw, logprobs: NDArray[Any], numbers: NDArray[np.float64], tokens: NDArray[Any]
) -> None:
    for row, number, token in zip(logprobs, numbers, tokens, strict=True):
        expected, margin = how.token(row, float(number))
        assert token == expected or margin < 1e-6


@pytest.mark.parametrize("temperature", [0, 0.01, 1, 50])
@pytest.mark.parametrize("vocabulary", [2, 96, 256, 257, 1500])
def test_a_step_draws_from_the_distribution(vocabulary: int, temperature: float) -> None:
    rows, random = 200, np.random.default_rng(7)
    model, how = of_size(vocabulary), Draw(temperature=temperature)
    tokens, numbers = random.integers(0, vocabulary, rows), random.random(rows)
    feeds = step_feeds(tokens, np.full(rows, -1), starts(model, rows)) | sampling(how, numbers)
    made = run(session(graphs_of(model)[STEP]), feeds)
    assert_drawn(how, made["logprobs"], numbers, made["token"])
    assert made["logprob"][:, 0].tolist() == (
        made["logprobs"][np.arange(rows), made["token"]].tolist()
    )


@pytest.mark.parametrize(
    "how",
    [
        Draw(top_k=1),
        Draw(top_k=7, temperature=3),
        Draw(top_p=0.4),
        Draw(min_p=0.2, temperature=2),
        Draw(top_k=20, top_p=0.9, min_p=0.01, temperature=1.5),
        Draw(top_k=3, temperature=0),
        Draw(),
    ],
)
@pytest.mark.parametrize("vocabulary", [5, 96, 300])
def test_filters_draw_from_what_they_keep(vocabulary: int, how: Draw) -> None:
    rows, random = 200, np.random.default_rng(8)
    logits = random.normal(0, 3, (rows, vocabulary))
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    numbers = random.random(rows)
    feeds = {"logprobs": logprobs, "told": np.full(rows, -1, np.int32), **filtering(how, rows)}
    made = run(session(graphs_of(of_size(vocabulary))[FILTERS]), feeds | sampling(how, numbers))
    assert_drawn(how, logprobs, numbers, made["token"])
    assert made["logprob"][:, 0].tolist() == logprobs[np.arange(rows), made["token"]].tolist()


def test_told_tokens_pass_the_filters() -> None:
    logprobs = np.log(np.full((3, 5), 0.2, np.float32))
    told = np.array([4, -1, 0], np.int32)
    feeds = {"logprobs": logprobs, "told": told, **filtering(Draw(top_k=1), 3)}
    made = run(session(graphs_of(of_size(5))[FILTERS]), feeds | sampling(Draw(), np.zeros(3)))
    assert made["token"][[0, 2]].tolist() == [4, 0]


@pytest.mark.parametrize("vocabulary", [7, 300])
def test_a_row_that_is_no_number_draws_some_token(vocabulary: int) -> None:
    logprobs = np.full((3, vocabulary), -np.log(vocabulary), np.float32)
    logprobs[1] = np.nan
    feeds = {"logprobs": logprobs, "told": np.full(3, -1, np.int32)}
    feeds |= filtering(Draw(top_k=3), 3) | sampling(Draw(), np.full(3, 0.9))
    tokens = run(session(graphs_of(of_size(vocabulary))[FILTERS]), feeds)["token"]
    assert tokens[[0, 2]].tolist() == [2, 2]
    assert 0 <= tokens[1] < vocabulary


@pytest.mark.parametrize("number", [0.0, LARGEST_UNIFORM])
@pytest.mark.parametrize("vocabulary", [7, 300])
def test_the_ends_of_the_range_draw_the_first_and_the_last_that_is_kept(
    vocabulary: int, number: float
) -> None:
    """Behind a distribution whose ends are dropped: nothing before it, nothing beyond it."""
    rows, random = 500, np.random.default_rng(9)
    logprobs = np.full((rows, vocabulary), -60, np.float32)
    kept = np.arange(2, vocabulary - 2)
    logprobs[:, kept] = np.log(random.dirichlet(np.ones(len(kept)), rows)).clip(-20)
    numbers = np.full(rows, number)
    feeds = {"logprobs": logprobs, "told": np.full(rows, -1, np.int32)}
    feeds |= filtering(Draw(top_k=len(kept)), rows) | sampling(Draw(), numbers)
    tokens = run(session(graphs_of(of_size(vocabulary))[FILTERS]), feeds)["token"]
    assert set(tokens.tolist()) == {int(kept[0] if number == 0 else kept[-1])}


def test_greedy_takes_the_first_of_the_likeliest_however_little_they_are_ahead() -> None:
    logprobs = np.log(np.full((3, 300), 1 / 300, np.float32))
    logprobs[1, 200] = np.nextafter(logprobs[1, 0], np.float32(0))
    logprobs[2, 100:102] += np.float32(1e-6)
    feeds = {"logprobs": logprobs, "told": np.full(3, -1, np.int32), **filtering(Draw(), 3)}
    feeds |= sampling(Draw(temperature=0), np.full(3, 0.9))
    tokens = run(session(graphs_of(of_size(300))[FILTERS]), feeds)["token"]
    assert tokens.tolist() == [0, 200, 100]


# --- Rows --------------------------------------------------------------------------------------


def test_rows_are_copied_from_where_they_are() -> None:
    model, random = network(Cell.LSTM), np.random.default_rng(4)
    sets = {
        f"{place}_{state.input}": random.normal(size=(rows, state.size)).astype(np.float32)
        for place, rows in (("now", 5), ("before", 5), ("fresh", 2))
        for state in model.states
    }
    sets["before_h_00"][3] = np.nan
    source, index = np.array([0, 2, 1, 0, 2], np.int32), np.array([4, 1, 0, 0, 0], np.int32)
    names = ("now", "before", "fresh")
    rows = {
        f"{name}_row": np.where(source == place, index, 0).astype(np.int32)
        for place, name in enumerate(names)
    }
    made = run(session(graphs_of(model)[ROWS]), {"source": source, **rows, **sets})
    for state in model.states:
        expected = [
            sets[f"{names[place]}_{state.input}"][row]
            for place, row in zip(source, index, strict=True)
        ]
        assert made[state.input].tolist() == np.stack(expected).tolist()


# --- Exports -----------------------------------------------------------------------------------


def test_an_export_for_a_device_has_the_same_fingerprint(tmp_path: Path) -> None:
    recipe = RECIPES[0]
    for flags in ((), ("--device", "cuda")):
        export(build(recipe), recipe, tmp_path, tmp_path / "models", flags)
    versions = [tmp_path / "models" / recipe.name / version for version in "12"]
    plain, other = (json.loads((it / "manifest.json").read_text()) for it in versions)
    assert plain["fingerprint"] == other["fingerprint"]
    files = [{file["name"]: file["sha256"] for file in it["files"]} for it in (plain, other)]
    assert files[1].keys() - files[0].keys() == {STEP, FILTERS, ROWS}
    assert files[0].items() <= files[1].items()


def test_int8_has_no_graphs_for_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--device", "cuda", "--precision", "int8")
    with pytest.raises(RuntimeError, match="exited with 1"):
        export(build(RECIPES[0]), RECIPES[0], tmp_path, tmp_path / "models", flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("--device cuda: int8 .* --precision fp16", line)
    assert not (tmp_path / "models").exists()


def test_products_that_do_not_fit_in_fp16_are_refused() -> None:
    model = network(Cell.LSTM)
    model.layers[0].bias_ih[:] = 70_000
    with pytest.raises(PrecisionError, match="fp16 cannot hold 7e\\+04"):
        device_graphs(model, Precision.FP16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_check_finds_a_step_of_another_network(precision: Precision) -> None:
    model = rounded(network(Cell.LSTM), precision)
    content = step_graph(model, precision).SerializeToString()
    engine = EngineRunner(model.state_names, V, content)
    assert check_device(model, precision, graphs_of(model, precision)[STEP], engine) < 0.01
    other = graphs_of(network(Cell.LSTM, seed=6), precision)[STEP]
    with pytest.raises(ParityError, match=r"device\.onnx: log-probabilities differ"):
        check_device(model, precision, other, engine)

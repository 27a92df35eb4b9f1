"""Exports in 16 and 8 bits: what they compute, what they refuse, and that sessions stay exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.calls import SECONDS, Stubs, connected
from support.checkpoints import convert, letters, read_manifest, refusal, save, state_dict
from support.models import CHARACTERS, Recipe
from support.models import build as build_torch
from support.networks import (
    V,
    expected_logprobs,
    network,
    run_engine,
    run_portable,
    session,
    some_tokens,
    starts,
)
from support.oracle import Draw, LoneRun, LoneSequence
from support.server import running_server
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled_export import coverage, speed
from unrolled_export.__main__ import main
from unrolled_export.building import build
from unrolled_export.errors import PrecisionError
from unrolled_export.graph_builder import GraphBuilder
from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.precision import Precision, quantized
from unrolled_export.products import Products
from unrolled_export.quantization import QuantizedWeight, quantize, quantized_products
from unrolled_export.readers import Settings, read_checkpoint
from unrolled_export.reference import initial_states
from unrolled_export.repository import ENGINE, PORTABLE
from unrolled_export.runners import DRAW

Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
BUNDLED = [ROOT / "export" / "models" / name for name in ("shakespeare-lstm", "shakespeare-gru")]
PUBLISHED = ROOT.parent / "shared" / "models"
BOUNDED = (Cell.RNN_TANH, Cell.LSTM, Cell.GRU)


@pytest.fixture(autouse=True)
def _quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an export measures is not of interest here."""
    monkeypatch.setattr(speed, "SECONDS", 0.001)


# --- Rounding to 8 bits ---------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-1, 1, width=32),
    )
)
@example(np.zeros((3, 5), np.float32))
@example(np.full((1, 2), 1e-44, np.float32))
@example(np.full((2, 7), -1, np.float32))
@example(np.array([[127, 1], [1, 127], [-127, -1]], np.float32))
def test_rounded_weights(weight: Floats) -> None:
    rounded = quantize(weight)
    values, scales = rounded.values.astype(np.float64), rounded.scales.astype(np.float64)
    assert rounded.scales.dtype == np.float32
    assert (scales > 0).all()
    assert np.abs(values).max() <= 127
    errors = np.abs(values * scales[:, None] - weight)
    assert (errors <= scales[:, None] * (0.5 + 1e-5)).all()
    firsts, seconds = values[:, 0::2], values[:, 1::2]
    firsts = firsts[:, : seconds.shape[1]]
    assert (np.abs(firsts + seconds)[firsts * seconds > 0] <= 128).all()


# --- Exact products -------------------------------------------------------------------------------


def product_graph(weight: QuantizedWeight) -> onnxruntime.InferenceSession:
    """`product` = `states` times the rounded weight [M, N], as in a step."""
    outputs, inputs = weight.values.shape
    graph = GraphBuilder("product")
    products = Products(graph, {"weight": weight}, halves=False)
    zeros = np.zeros(outputs, np.float32)
    name = products.biased("weight", "states", np.zeros((outputs, inputs), np.float32), zeros)
    value = helper.make_tensor_value_info
    model = graph.model(
        [value("states", TensorProto.FLOAT, ["B", inputs])],
        [value(name, TensorProto.FLOAT, ["B", outputs])],
    )
    return session(model.SerializeToString())


def steps_of(states: Floats) -> NDArray[np.int64]:
    """States as whole steps of 1/127.5, after ONNX's definition of QuantizeLinear."""
    steps = np.rint(states / np.float32(1 / 127.5)) + 128
    whole: NDArray[np.int64] = np.clip(steps, 0, 255).astype(np.int64) - 128
    return whole


def whole_products(weight: QuantizedWeight, states: Floats) -> NDArray[np.int64]:
    """What the graph summed up, from what it returns."""
    (found,) = product_graph(weight).run(None, {"states": states})
    units = found.astype(np.float64) / weight.scales * 127.5
    whole = np.rint(units)
    # Below 2**21 a float32 tells every whole number from its neighbours.
    assert np.abs(units - whole).max() < 0.25
    result: NDArray[np.int64] = whole.astype(np.int64)
    return result


def hard_states(size: int) -> Floats:
    """Bounds and signs in every arrangement that matters to sums of pairs, and random ones."""
    ones = np.ones(size, np.float32)
    signs = ones.copy()
    signs[1::2] = -1
    random = np.random.default_rng(0).uniform(-1, 1, (4, size)).astype(np.float32)
    return np.stack([ones, -ones, signs, -signs, 0 * ones, *random])


def hard_weights(size: int) -> Floats:
    """Rows of one sign at the maximum, of pairs as unequal as can be, and random ones."""
    ones = np.ones(size, np.float32)
    unequal = ones / 127
    unequal[::2] = 1
    random = np.random.default_rng(1).normal(0, 0.3, (5, size)).astype(np.float32)
    return np.stack([ones, -ones, unequal, -unequal, *random]) * np.float32(1 / size)


@pytest.mark.parametrize("size", [1, 2, 7, 33, 64, 65, 130])
def test_products_of_8_bits_are_exact(size: int) -> None:
    states, weight = hard_states(size), quantize(hard_weights(size))
    expected = steps_of(states) @ weight.values.astype(np.int64).T
    np.testing.assert_array_equal(whole_products(weight, states), expected)


def cpu_flags() -> set[str]:
    """Of the first processor; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.skipif(
    "avx2" not in cpu_flags() or bool(cpu_flags() & {"avx512_vnni", "avx_vnni"}),
    reason="this processor multiplies bytes without saturation (or does not say)",
)
def test_without_the_rule_of_pairs_products_saturate() -> None:
    weight = QuantizedWeight(np.full((1, 64), 127, np.int8), np.ones(1, np.float32))
    states = np.ones((1, 64), np.float32)
    assert whole_products(weight, states) != 64 * 127 * 127


def one_layer(cell: Cell, weight_hh: Floats) -> Network:
    """Of zeros, but for the weights of the hidden state."""
    rows, size = weight_hh.shape
    biases = np.zeros(rows, np.float32)
    layer = Layer(np.zeros((rows, V), np.float32), weight_hh, biases, biases)
    zeros = np.zeros((V, size), np.float32)
    return Network(cell, None, (layer,), zeros, np.zeros(V, np.float32), 0)


@pytest.mark.parametrize("size", [7, 64])
def test_a_step_of_an_rnn_is_exact(size: int) -> None:
    square = np.resize(hard_weights(size), (size, size))
    states = hard_states(size)
    found = stepped(one_layer(Cell.RNN_TANH, square), {"h_00": states})["h_00"]
    np.testing.assert_allclose(found, np.tanh(in_bytes(square, states)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found, np.tanh(states @ square.T), rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [7, 64])
def test_a_step_of_an_lstm_is_exact(size: int) -> None:
    rows = np.resize(hard_weights(size), (4 * size, size))
    h, c = hard_states(size), hard_states(size)[::-1]
    found = stepped(one_layer(Cell.LSTM, rows), {"h_00": h, "c_00": c})
    i, f, g, o = np.split(in_bytes(rows, h), 4, axis=1)
    cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(found["c_00"], cell, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["h_00"], sigmoid(o) * np.tanh(cell), rtol=0, atol=1e-6)


def stepped(model: Network, states: dict[str, Floats]) -> dict[str, Floats]:
    """The states after one step."""
    engine = session(build(model, Precision.INT8).graphs[ENGINE])
    return run_engine(engine, np.zeros((len(states["h_00"]), 2), np.int64), states)[1]


def in_bytes(weight: Floats, states: Floats) -> NDArray[np.float64]:
    """The product in whole numbers, scaled."""
    rounded = quantize(weight)
    whole = steps_of(states) @ rounded.values.astype(np.int64).T
    return whole * rounded.scales.astype(np.float64) / 127.5


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


# --- The batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
@pytest.mark.parametrize("cell", BOUNDED)
def test_a_row_has_the_same_bits_whatever_shares_its_runs(cell: Cell, precision: Precision) -> None:
    model = network(cell, sizes=(35, 33))
    engine = session(build(model, precision).graphs[ENGINE])
    row = some_tokens(1, 17, seed=8)
    alone = bits_of_row(engine, model, row, 0, 1)
    for rows in (2, 7, 64):
        others = some_tokens(rows, 17, seed=rows)
        for place in {0, rows // 2, rows - 1}:
            others[place] = row[0]
            for steps in (1, 8):
                assert bits_of_row(engine, model, others, place, steps) == alone


def bits_of_row(
    engine: onnxruntime.InferenceSession,
    model: Network,
    tokens: NDArray[np.int64],
    place: int,
    steps: int,
) -> list[bytes]:
    """Log-probabilities by step and last states of one row, in runs of `steps`."""
    states, found = starts(model, len(tokens)), []
    for start in range(0, tokens.shape[1] - 1, steps):
        window = tokens[:, start : start + steps + 1]
        logprobs, states = run_engine(engine, window, states)
        found += [step.tobytes() for step in logprobs[place]]
    return [*found, *(state[place].tobytes() for state in states.values())]


# --- Perplexity -----------------------------------------------------------------------------------


def published() -> list[Path]:
    if not PUBLISHED.is_dir():
        return []
    folders = (path for path in PUBLISHED.iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith("refuse"))


def change_of_perplexity(path: Path, rows: int, count: int) -> float:
    """Of int8 over fp32, on `rows` texts of `count` tokens that the model in fp32 draws."""
    model = read_checkpoint(path, Settings(allow_pickle=True)).network
    built = build(model, Precision.INT8)
    states = initial_states(model, rows)
    first, told = np.arange(rows) % model.vocabulary_size, np.full((rows, count), DRAW)
    drawn = built.base.draw(first, told, states, greedy=False)
    text, nats = np.column_stack([first, drawn]), []
    for engine in (built.base, built.engine):
        logprobs, _ = engine.advance(text, states)
        chosen = np.take_along_axis(logprobs, text[:, 1:, None], axis=2)
        nats.append(-chosen.mean(dtype=np.float64))
    return math.exp(nats[1] - nats[0]) - 1


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_perplexity_of_bundled_models_in_8_bits(path: Path) -> None:
    assert abs(change_of_perplexity(path, 1, 3000)) <= 0.002


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published models beside the repository")
@pytest.mark.parametrize("path", published(), ids=lambda path: path.name)
def test_perplexity_of_published_models_in_8_bits(path: Path) -> None:
    """On short texts: most of them write molecules and names, and repeat themselves after one."""
    assert abs(change_of_perplexity(path, 30, 100)) <= 0.002


# --- What is covered, and what is refused ---------------------------------------------------------


def types_of(graph: bytes) -> list[str]:
    """Operators of the engine's step."""
    (scan,) = (node for node in onnx.load_from_string(graph).graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    return [node.op_type for node in body.node]


COVERED: dict[str, tuple[Network, set[str]]] = {
    "rnn": (
        network(Cell.RNN_TANH),
        {"weight_hh_0", "weight_ih_1", "weight_hh_1", "head_weight"},
    ),
    "lstm norms": (network(Cell.LSTM, norms=True), {"weight_hh_0", "weight_hh_1", "head_weight"}),
    "lstm stages": (
        network(Cell.LSTM, stages=lambda weights, size: [weights.norm(size)]),
        {"weight_hh_0", "weight_ih_1", "weight_hh_1"},
    ),
    "gru before": (network(Cell.GRU, reset_after=False), {"weight_ih_1", "head_weight"}),
    "gru initial": (
        network(Cell.GRU, sizes=(7,), initial=True),
        {"weight_hh_0", "head_weight"},
    ),
}


@pytest.mark.parametrize("name", COVERED)
def test_products_that_8_bits_cover(name: str) -> None:
    model, covered = COVERED[name]
    assert quantized_products(model).keys() == covered
    built = build(model, Precision.INT8)
    assert types_of(built.graphs[ENGINE]).count("MatMulIntegerToFloat") == len(covered)
    tokens = some_tokens(2, 40)
    found, _ = run_engine(session(built.graphs[ENGINE]), tokens, starts(model, 2))
    wanted = expected_logprobs(model, tokens[:, :-1])
    assert 1e-5 < np.abs(found - wanted).max() < 0.2
    portable, _ = run_portable(session(built.graphs[PORTABLE]), tokens, starts(model, 2))
    assert portable.dtype == np.float32
    assert b"MatMulIntegerToFloat" not in built.graphs[PORTABLE]


def test_the_report_names_the_products(tmp_path: Path, capsys: Capture) -> None:
    tensors = state_dict("lstm", layers=2)
    tensors |= {"norm.weight": np.ones(4, np.float32), "norm.bias": np.zeros(4, np.float32)}
    arguments = [*save(tmp_path, tensors, letters(5)), "--set", "norm_epsilon=1e-05"]
    text = tmp_path / "text.txt"
    text.write_text("abcde" * 30)
    options = ["--precision", "int8", "--evaluate", str(text)]
    folder = convert([*arguments, *options], tmp_path / "models")
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "int8 in 8 bits: weight_hh_0, weight_ih_1, weight_hh_1; in fp32: weight_ih_0, "
        "head_weight engine.onnx" in printed
    )
    assert "speed over fp32, measured in turns in one thread: " in printed
    assert "greedy choices agree at" in printed
    assert types_of((folder / ENGINE).read_bytes()).count("MatMulIntegerToFloat") == 3
    manifest = read_manifest(folder)
    assert manifest.precision == model_pb2.PRECISION_INT8
    assert "state taken every step" in manifest.parity.reference


REFUSED: dict[str, tuple[Callable[[], Network], str]] = {
    "relu": (
        lambda: network(Cell.RNN_RELU),
        "covers no product of this model: the state of a ReLU network has no bound",
    ),
    "projected": (
        lambda: network(Cell.LSTM, projections=(None, 3)),
        "covers no product of this model: a projected state has no bound",
    ),
    "initial": (
        lambda: replace(
            network(Cell.GRU, sizes=(3,)), initial=(np.array([0, -1.5, 0], np.float32),)
        ),
        "covers no product of this model: its first state is not within [-1, 1]",
    ),
    "nothing": (
        lambda: network(
            Cell.GRU, sizes=(3,), reset_after=False, stages=lambda weights, size: [weights.norm(3)]
        ),
        "covers no product of this model: none has a hidden state for its input",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_8_bits_do_not_cover(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(PrecisionError) as caught:
        build(make(), Precision.INT8)
    assert str(caught.value) == f"--precision int8: {reason}"


def test_a_large_first_cell_state_does_not_matter() -> None:
    model = network(Cell.LSTM, sizes=(3,))
    starting = (np.zeros(3, np.float32), np.full(3, 7, np.float32))
    assert quantized_products(replace(model, initial=starting))


def test_a_relu_network_is_refused_and_nothing_written(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*save(tmp_path, state_dict("rnn"), letters(5)), "--set", "nonlinearity=relu"]
    line = refusal([*arguments, "--precision", "int8"], tmp_path / "models", capsys)
    assert line == f"unrolled-export: --precision int8: {REFUSED['relu'][1]}"


# --- 16 bits --------------------------------------------------------------------------------------


def halved(model: Network) -> Network:
    """All matrices rounded to 16 bits."""

    def half(array: Floats) -> Floats:
        return array.astype(np.float16).astype(np.float32)

    layers = tuple(
        replace(
            layer,
            weight_ih=half(layer.weight_ih),
            weight_hh=half(layer.weight_hh),
            weight_hr=None if layer.weight_hr is None else half(layer.weight_hr),
        )
        for layer in model.layers
    )
    embedding = None if model.embedding is None else half(model.embedding)
    return replace(model, embedding=embedding, layers=layers, head_weight=half(model.head_weight))


FP16: dict[str, Network] = {
    **{str(cell): network(cell) for cell in Cell},
    "one-hot": network(Cell.LSTM, embedding=None),
    "projected": network(Cell.LSTM, projections=(4, 3), norms=True),
    "gru before": network(Cell.GRU, reset_after=False, initial=True),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", FP16)
def test_16_bits_compute_what_rounded_weights_do(name: str) -> None:
    model, tokens = FP16[name], some_tokens(3, 41)
    wanted = expected_logprobs(halved(model), tokens[:, :-1])
    graphs = build(model, Precision.FP16).graphs
    engine, _ = run_engine(session(graphs[ENGINE]), tokens, starts(model, 3))
    np.testing.assert_allclose(engine, wanted, rtol=0, atol=1e-5)
    logits, _ = run_portable(session(graphs[PORTABLE]), tokens[:, :-1], starts(model, 3))
    portable = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(portable, wanted, rtol=0, atol=1e-5)
    assert np.abs(expected_logprobs(model, tokens[:, :-1]) - wanted).max() > 1e-5


def matrices(graph: bytes, kind: int) -> list[tuple[int, ...]]:
    """Shapes of all constants of one type that are more than a row, sorted."""
    tensors = onnx.load_from_string(graph).graph.initializer
    shapes = [
        tuple(n for n in tensor.dims if n > 1) for tensor in tensors if tensor.data_type == kind
    ]
    return sorted(shape for shape in shapes if len(shape) > 1)


def test_weights_of_16_bits_take_16_bits_in_the_file() -> None:
    graphs = build(network(Cell.LSTM, sizes=(7, 6)), Precision.FP16).graphs
    layers = [(28, 5), (28, 7), (24, 7), (24, 6)]
    portable = sorted([(V, 5), *layers, (6, V)])
    assert matrices(graphs[PORTABLE], TensorProto.FLOAT16) == portable
    assert matrices(graphs[PORTABLE], TensorProto.FLOAT) == []
    engine = sorted([*(shape[::-1] for shape in layers[1:]), (6, V)])
    assert matrices(graphs[ENGINE], TensorProto.FLOAT16) == engine
    # The table of the first layer's products is made of rounded weights, and not rounded itself.
    assert matrices(graphs[ENGINE], TensorProto.FLOAT) == [(V, 28)]


@pytest.mark.parametrize("tensor", ["embedding", "weight_hh_0", "head_weight"])
def test_a_weight_too_large_for_16_bits(tensor: str) -> None:
    model = network(Cell.LSTM, sizes=(4,))
    dict(model.arrays())[tensor][1, 2] = -70000
    with pytest.raises(PrecisionError) as caught:
        build(model, Precision.FP16)
    assert str(caught.value) == f"--precision fp16: {tensor} holds 7e+04, too large"


def test_the_largest_number_of_16_bits_is_not_too_large() -> None:
    model = network(Cell.LSTM, sizes=(4,))
    model.head_weight[0, 0] = 65504
    assert build(model, Precision.FP16).graphs


def test_a_weight_too_large_for_16_bits_fails_the_export(tmp_path: Path, capsys: Capture) -> None:
    tensors = state_dict("gru")
    tensors["head.weight"][0, 0] = 65536
    arguments = [*save(tmp_path, tensors, letters(5)), "--precision", "fp16"]
    line = refusal(arguments, tmp_path / "models", capsys)
    assert line == "unrolled-export: --precision fp16: head_weight holds 6.55e+04, too large"


# --- Served ---------------------------------------------------------------------------------------

COUNT = 40
NAMES = ("lstm-int8", "lstm-fp16", "gru-int8", "gru-fp16")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of small models in other precisions."""
    work, models = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speed, "SECONDS", 0.001)
        for name in NAMES:
            cell, precision = name.split("-")
            torch_model = build_torch(Recipe(cell, cell, 24, 2, 8))
            arrays = {key: value.numpy() for key, value in torch_model.state_dict().items()}
            arguments = [*save(work, arrays, list(CHARACTERS)), "--output", str(models)]
            assert main(["convert", *arguments, "--name", name, "--precision", precision]) == 0
    return models


@pytest.fixture(scope="module")
def stubs(models: Path) -> Iterator[Stubs]:
    with running_server(models) as server, connected(server.address) as stubs:
        yield stubs


def completed(stubs: Stubs, model: str, cuts: list[int]) -> tuple[str, list[float]]:
    """The text of turns of so many tokens each in one session, and its log-probabilities."""
    session, text, logprobs = stubs.create(model, seed=9), "", list[float]()
    for place, count in enumerate(cuts):
        request = CompleteRequest(session=session, max_tokens=count, logprobs=0)
        if place == 0:
            request.prompt = "Once"
        response = stubs.completions.Complete(request, timeout=SECONDS)
        text += response.text
        logprobs += [item.logprob for item in response.logprobs]
    return text, logprobs


@pytest.mark.parametrize("name", NAMES)
def test_a_session_is_exact_in_every_precision(stubs: Stubs, models: Path, name: str) -> None:
    sequence = LoneSequence(LoneRun(models / name / "1"), 9, None)
    for character in "Once":
        sequence.tell(CHARACTERS.index(character))
    drawn = [sequence.draw(Draw()) for _ in range(COUNT)]
    text = "".join(CHARACTERS[token] for token, _ in drawn)
    expected = (text, [logprob for _, logprob in drawn])
    for cuts in ([COUNT], [13, COUNT - 13], [1, 1, COUNT - 2]):
        assert completed(stubs, name, cuts) == expected


# --- Products that do not bear the rounding -------------------------------------------------------


def test_a_product_that_costs_too_much_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_checkpoint(BUNDLED[1], Settings()).network

    def coarse(network: Network, precision: Precision) -> dict[str, QuantizedWeight]:
        products = dict(quantized(network, precision))
        weight = products["weight_hh_1"]
        products["weight_hh_1"] = replace(weight, scales=weight.scales * np.float32(1.5))
        return products

    monkeypatch.setattr(coverage, "quantized", coarse)
    built = build(model, Precision.INT8)
    assert list(built.products) == ["weight_hh_0", "weight_ih_1", "head_weight"]


def test_a_network_of_which_no_product_bears_the_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(coverage, "LIMIT", -1.0)
    arguments = [*save(tmp_path, state_dict(), letters(5)), "--precision", "int8"]
    line = refusal(arguments, tmp_path / "models", capsys)
    assert "--precision int8: covers no product of this model: rounding " in line


def test_the_manifest_names_the_products_in_bytes(tmp_path: Path) -> None:
    arguments = [*save(tmp_path, state_dict(hidden=24), letters(5)), "--precision", "int8"]
    manifest = read_manifest(convert(arguments, tmp_path / "models"))
    assert list(manifest.quantized_weights) == ["weight_hh_0", "head_weight"]
    assert manifest.fingerprint == fingerprint(manifest)
    del manifest.quantized_weights[:]
    assert manifest.fingerprint != fingerprint(manifest)

"""`config.pbtxt` against the schema that Triton publishes, and against the graph it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from support.checkpoints import convert, letters, read_manifest, save, state_dict
from support.networks import V, network
from unrolled_export.building import build
from unrolled_export.network import Cell, Network
from unrolled_export.precision import Precision
from unrolled_export.repository import Repository
from unrolled_export.triton import triton_files

schema = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient has Triton's schema"
)

TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}

NETWORKS: dict[str, Network] = {
    "gru": network(Cell.GRU, sizes=(7,)),
    "lstm": network(Cell.LSTM, sizes=(7, 6, 8), projections=(None, None, None)),
    "rnn initial": network(Cell.RNN_TANH, initial=True),
    "lstm projected initial": network(Cell.LSTM, projections=(4, 3), initial=True),
    "twelve layers": network(Cell.LSTM, sizes=range(2, 14), projections=(None,) * 12),
}


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture
def folder(model: Network, tmp_path: Path) -> Path:
    """The model's folder."""
    files = build(model, Precision.FP32).graphs
    return Repository(tmp_path).add("name", 1, files, triton_files("name", model)).parent


def read_config(folder: Path) -> Any:
    """Raises ParseError where the schema does not have a field or value."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def tensors(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Types and sizes by name, of a configuration's inputs or outputs."""
    return {value.name: (type_name(value.data_type), list(value.dims)) for value in values}


def type_name(number: int) -> str:
    return str(schema.DataType.Name(number))


def of_graph(values: Any) -> dict[str, tuple[str, list[int]]]:
    """The same as onnxruntime has it, whose first size is the batch's."""
    assert all(value.shape[0] == "B" for value in values)
    sizes = {v.name: [-1 if isinstance(n, str) else n for n in v.shape[1:]] for v in values}
    return {value.name: (TYPES[value.type], sizes[value.name]) for value in values}


def test_the_configuration_is_that_of_the_graph(folder: Path) -> None:
    config = read_config(folder)
    assert config.name == folder.name
    assert config.platform == "onnxruntime_onnx"
    assert config.backend == ""
    assert config.max_batch_size > 0
    # What the folder of every version has.
    assert config.default_model_filename == "model.onnx"
    graph = onnxruntime.InferenceSession(folder / "1" / config.default_model_filename)
    states = config.sequence_batching.state
    befores = {s.input_name: (type_name(s.data_type), list(s.dims)) for s in states}
    afters = {s.output_name: (type_name(s.data_type), list(s.dims)) for s in states}
    assert tensors(config.input) | befores == of_graph(graph.get_inputs())
    assert tensors(config.output) | afters == of_graph(graph.get_outputs())
    assert tensors(config.input) == {"tokens": ("TYPE_INT64", [-1])}
    assert tensors(config.output) == {"logits": ("TYPE_FP32", [-1, V])}


def test_states_are_paired_as_triton_pairs_them(folder: Path, model: Network) -> None:
    batching = read_config(folder).sequence_batching
    pairs = [(state.input_name, state.output_name) for state in batching.state]
    assert len(pairs) == len(model.states)
    befores, afters = zip(*pairs, strict=True)
    # It sorts both lists of names, and takes them for each other's.
    assert set(zip(sorted(befores), sorted(afters), strict=True)) == set(pairs)
    assert all(after == f"next_{before}" for before, after in pairs)


def test_sequences_outlive_a_reader(folder: Path) -> None:
    config = read_config(folder)
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    assert batching.oldest.max_candidate_sequences >= config.max_batch_size
    assert batching.max_sequence_idle_microseconds >= 60_000_000
    assert not batching.control_input


def test_first_states(folder: Path, model: Network) -> None:
    states = read_config(folder).sequence_batching.state
    names, files = set(), set()
    expected = dict(zip((s.input for s in model.states), model.initial or (), strict=False))
    for state in states:
        (initial,) = state.initial_state
        names.add(initial.name)
        assert (initial.data_type, initial.dims) == (state.data_type, state.dims)
        if not expected:
            assert initial.WhichOneof("state_data") == "zero_data"
            assert initial.zero_data
            continue
        assert initial.WhichOneof("state_data") == "data_file"
        files.add(initial.data_file)
        # Where Triton looks for it.
        content = (folder / "initial_state" / initial.data_file).read_bytes()
        assert len(content) == 4 * int(np.prod(initial.dims))
        assert np.frombuffer(content, "<f4").tolist() == expected[state.input_name].tolist()
    assert len(names) == len(states)
    found = {path.name for path in folder.glob("initial_state/*")}
    assert found == files


def test_an_export_has_a_configuration(tmp_path: Path) -> None:
    arrays = state_dict("lstm", layers=2)
    named = {
        name.replace("embedding", "char_emb")
        .replace("rnn", "charlstm.lstm")
        .replace("head", "decoder"): array
        for name, array in arrays.items()
    }
    first = np.linspace(-0.5, 0.5, 8, dtype=np.float32).reshape(2, 1, 4)
    named |= {"charlstm_h_init": first, "charlstm_c_init": 2 * first}
    options = ["--name", "learned.first-state"]
    folder = convert([*save(tmp_path, named, letters(5)), *options], tmp_path / "models")
    config = read_config(folder.parent)
    assert config.name == folder.parent.name == "learned.first-state"
    starts = {state.input: list(state.initial) for state in read_manifest(folder).states}
    for state in config.sequence_batching.state:
        file = folder.parent / "initial_state" / state.initial_state[0].data_file
        assert np.frombuffer(file.read_bytes(), "<f4").tolist() == starts[state.input_name]
    assert starts["c_01"] == (2 * first[1, 0]).tolist()

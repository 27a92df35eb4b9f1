"""Which tensors are taken for what, where names and shapes leave room for doubt."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import support.recognition as recognition
import torch
from hypothesis import given
from hypothesis import settings as examples
from numpy.typing import DTypeLike
from support.checkpoints import Arrays, convert, letters, read_manifest, refusal, save, state_dict
from support.recognition import StateDict, modules_of, randomise, trained
from torch import nn
from torch.nn.utils import parametrizations, prune
from unrolled.v1 import model_pb2
from unrolled_export.errors import CheckpointError, ExportError, SettingError, SettingNeeded
from unrolled_export.network import Activation, Dense, LayerNorm, Network
from unrolled_export.readers import Settings, read_checkpoint
from unrolled_export.readers.pytorch_files.module_info import Module
from unrolled_export.readers.state_dicts.torch_classes import is_known, refuse_unread_classes
from unrolled_export.readers.tensors import Tensors

Capture = pytest.CaptureFixture[str]


def read(folder: Path, arrays: Arrays, *settings: str) -> Network:
    return read_checkpoint(Path(save(folder, arrays)[0]), Settings(settings)).network


def tied(names: tuple[str, ...], vocabulary: int = 6) -> Arrays:
    """A state dict of tied weights, which it holds under each of `names`."""
    arrays = state_dict("gru", vocabulary, embedding=4, hidden=4)
    weights, bias = arrays.pop("head.weight"), arrays.pop("head.bias")
    del arrays["embedding.weight"]
    return {**arrays, **dict.fromkeys(names, weights), "decoder.bias": bias}


@pytest.mark.parametrize(
    "names",
    [("encoder.weight", "decoder.weight"), ("encoder.weight",), ("decoder.weight",)],
)
def test_tied_weights_count_once(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = tied(names)
    network = read(tmp_path, arrays)
    assert network.embedding is not None
    np.testing.assert_array_equal(network.embedding, network.head_weight)
    np.testing.assert_array_equal(network.head_bias, arrays["decoder.bias"])
    assert network.parameters == 6 * 4 + 6 + 2 * (12 * 4 + 12)


@pytest.mark.parametrize("layers", [1, 3])
def test_wrappers_around_the_model(layers: int, tmp_path: Path) -> None:
    arrays = {f"_orig_mod.module.{name}": a for name, a in state_dict(layers=layers).items()}
    assert len(read(tmp_path, arrays).layers) == layers


def test_a_bias_tells_the_head_from_the_embedding(tmp_path: Path) -> None:
    arrays = state_dict(vocabulary=6, embedding=4)
    first, second = arrays.pop("embedding.weight"), arrays.pop("head.weight")
    bias = arrays.pop("head.bias")
    network = read(tmp_path, {**arrays, "a.weight": second, "b.weight": first, "a.bias": bias})
    np.testing.assert_array_equal(network.head_weight, second)


def unnamed() -> Arrays:
    arrays = state_dict(vocabulary=6, embedding=4)
    del arrays["head.bias"]
    first, second = arrays.pop("embedding.weight"), arrays.pop("head.weight")
    return {**arrays, "a.weight": first, "b.weight": second}


def test_two_tensors_that_may_be_the_head(tmp_path: Path, capsys: Capture) -> None:
    line = refusal(save(tmp_path, unnamed(), letters(6)), tmp_path / "models", capsys)
    assert "b.weight [6, 4] and a.weight [6, 4] may each be the head" in line
    assert "add --set head=b.weight or --set head=a.weight" in line


@pytest.mark.parametrize("head", ["a.weight", "b.weight"])
def test_the_user_names_the_head(head: str, tmp_path: Path) -> None:
    network = read(tmp_path, unnamed(), f"head={head}")
    np.testing.assert_array_equal(network.head_weight, unnamed()[head])


def test_one_tensor_that_may_be_tied_or_for_one_hot_input(tmp_path: Path, capsys: Capture) -> None:
    arguments = save(tmp_path, tied(("decoder.weight",), vocabulary=4), letters(4))
    line = refusal(arguments, tmp_path / "models", capsys)
    assert "decoder.weight [4, 4] may be the head of a model with one-hot input or tied" in line
    assert "--set input=one-hot or --set input=embedding" in line


@pytest.mark.parametrize("form", ["one-hot", "embedding"])
def test_the_user_says_what_the_input_is(form: str, tmp_path: Path) -> None:
    network = read(tmp_path, tied(("decoder.weight",), vocabulary=4), f"input={form}")
    assert (network.embedding is None) == (form == "one-hot")


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_floats_of_other_widths(kind: DTypeLike, tmp_path: Path) -> None:
    arrays = {name: array.astype(kind) for name, array in state_dict().items()}
    network = read(tmp_path, arrays)
    assert network.head_weight.dtype == np.float32
    np.testing.assert_array_equal(network.head_weight, arrays["head.weight"].astype(np.float32))


def test_bfloat16_of_pytorch(tmp_path: Path) -> None:
    tensors = {name: torch.tensor(a, dtype=torch.bfloat16) for name, a in state_dict().items()}
    torch.save(tensors, tmp_path / "model.pt")
    network = read_checkpoint(tmp_path / "model.pt", Settings()).network
    expected = tensors["head.weight"].float().numpy()
    np.testing.assert_array_equal(network.head_weight, expected)


def test_a_file_of_an_old_torch_under_another_suffix(tmp_path: Path) -> None:
    tensors = {name: torch.tensor(array) for name, array in state_dict().items()}
    torch.save(tensors, tmp_path / "model.dat", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "model.dat", Settings()).network.vocabulary_size == 5


@pytest.mark.parametrize(
    ("said", "options", "start", "end"),
    [
        ({}, [], None, []),
        ({"start_token": "\n", "end_tokens": ["\n", "b"]}, [], 0, [0, 1]),
        ({"start_token": "\n", "end_tokens": ["b"]}, ["--end-token", "#2"], 0, [2]),
        ({"start_token": "\n"}, ["--start-token", "b"], 1, []),
    ],
)
def test_a_folder_of_our_own(
    said: dict[str, object], options: list[str], start: int | None, end: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "hello-1.2"
    folder.mkdir()
    save(folder, state_dict("rnn"))
    description = {
        "format": "unrolled-checkpoint/1",
        "cell": "rnn_relu",
        "characters": list("\nbcde"),
    }
    (folder / "model.json").write_text(json.dumps(description | said))
    exported = convert([str(folder), *options], tmp_path / "models")
    assert exported == tmp_path / "models" / "hello-1.2" / "1"
    manifest = read_manifest(exported)
    assert manifest.cell == model_pb2.CELL_RNN_RELU
    vocabulary = manifest.vocabulary
    assert vocabulary.HasField("start_token") == (start is not None)
    assert vocabulary.start_token == (start or 0)
    assert list(vocabulary.end_tokens) == end


V, E, H = 11, 6, 7


def model(**parts: nn.Module) -> nn.Module:
    """A model of parts in the order of their registration; it cannot be run."""
    whole = nn.Module()
    for name, part in parts.items():
        whole.add_module(name, part)
    randomise(whole)
    return whole


def usual(**more: nn.Module) -> nn.Module:
    """An embedding, an LSTM and a head of widths that tell them apart, and `more`."""
    parts = {"embed": nn.Embedding(V, E), "rnn": nn.LSTM(E, H), "fc": nn.Linear(H, V)}
    return model(**parts, **more)


def square(**more: nn.Module) -> nn.Module:
    """As `usual`, but what the LSTM reads is as wide as what it puts out."""
    embed, rnn = nn.Embedding(V, H), nn.LSTM(H, H)
    return model(embed=embed, **more, rnn=rnn, fc=nn.Linear(H, V))


def list_of(*modules: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(modules)


QUESTIONS: dict[str, tuple[Callable[[], nn.Module], list[str], str, tuple[str, ...], str]] = {
    "nonlinearity": (
        lambda: model(embed=nn.Embedding(V, E), rnn=nn.RNNCell(E, H), fc=nn.Linear(H, V)),
        [],
        "nonlinearity",
        ("tanh", "relu"),
        "rnn.weight_ih belongs to a plain RNN",
    ),
    "epsilon": (
        lambda: usual(norm=nn.LayerNorm(H)),
        [],
        "norm_epsilon",
        ("1e-05", "1e-03"),
        "the epsilon of the normalisation norm",
    ),
    "place of a norm": (
        lambda: square(norm=nn.LayerNorm(H)),
        [],
        "norm",
        ("before", "after"),
        "norm may normalise what the recurrent layers read or what they put out",
    ),
    "norms of a list": (
        lambda: square(
            rnns=list_of(nn.LSTM(H, H), nn.LSTM(H, H)),
            norms=list_of(nn.LayerNorm(H), nn.LayerNorm(H)),
        ),
        [],
        "order",
        (),
        "more than one order",
    ),
    "place of a linear stage": (
        lambda: square(mix=nn.Linear(H, H)),
        [],
        "order",
        ("rnn,mix", "mix,rnn"),
        "more than one order",
    ),
    "places of two linear stages": (
        lambda: model(
            embed=nn.Embedding(V, H),
            rnn=nn.LSTM(H, H),
            z=nn.Linear(H, H),
            a=nn.Linear(H, H),
            fc=nn.Linear(H, V),
        ),
        [],
        "order",
        ("rnn,z,a", "rnn,a,z", "z,rnn,a", "a,rnn,z"),
        "or --set order=a,rnn,z or 2 more",
    ),
    "order of modules": (
        lambda: square(again=nn.LSTM(H, H)),
        [],
        "order",
        ("again,rnn", "rnn,again"),
        "more than one order",
    ),
    "activation before the head": (
        lambda: model(
            embed=nn.Embedding(V, E), rnn=nn.LSTM(E, H), fc1=nn.Linear(H, 5), fc2=nn.Linear(5, V)
        ),
        [],
        "head_activation",
        ("linear", "relu", "tanh"),
        "an activation may follow fc1, which the file does not tell",
    ),
    "activation before the recurrent layers": (
        lambda: model(
            embed=nn.Embedding(V, E), mix=nn.Linear(E, 5), rnn=nn.LSTM(5, H), fc=nn.Linear(H, V)
        ),
        [],
        "input_activation",
        ("linear", "relu", "tanh"),
        "an activation may follow mix, which the file does not tell",
    ),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_what_is_asked_for(case: str) -> None:
    make, settings, key, choices, expected = QUESTIONS[case]
    with pytest.raises(SettingNeeded) as caught:
        recognition.read(make().state_dict(), *settings)
    assert caught.value.key == key
    assert not choices or caught.value.choices == choices
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_may_tell_it_all() -> None:
    whole = square(norm=nn.LayerNorm(H, eps=0.25))
    network = recognition.read(whole.state_dict(), modules=modules_of(whole)).network
    # Registered before the LSTM, it is folded into the embedding.
    assert network.stages == ()
    whole = square(rnns=nn.LSTM(H, H), norm=nn.LayerNorm(H, eps=0.25), dense=nn.Linear(H, H))
    del whole.rnn
    reading = recognition.read(
        whole.state_dict(), "head_activation=relu", modules=modules_of(whole)
    )
    norm, dense = reading.network.stages
    assert isinstance(norm, LayerNorm)
    assert norm.epsilon == 0.25
    assert isinstance(dense, Dense)
    assert dense.activation is Activation.RELU
    assert "the parts follow one another as rnns, norm, dense" in reading.assumptions


def test_the_place_of_a_list_does_not_tell_what_runs_between_its_parts() -> None:
    parts = {"norm": nn.LayerNorm(H), "rnns": list_of(nn.LSTM(H, H), nn.LSTM(H, H))}
    whole = model(embed=nn.Embedding(V, H), **parts, fc=nn.Linear(H, V))
    with pytest.raises(SettingNeeded) as caught:
        recognition.read(whole.state_dict(), modules=modules_of(whole))
    assert set(caught.value.choices) == {
        "norm,rnns.0,rnns.1",
        "rnns.0,norm,rnns.1",
        "rnns.0,rnns.1,norm",
    }


@pytest.mark.parametrize(("place", "stages"), [("before", 0), ("after", 1)])
def test_the_user_says_where_a_norm_is(place: str, stages: int) -> None:
    tensors = square(norm=nn.LayerNorm(H)).state_dict()
    network = recognition.read(tensors, f"norm={place}", "norm_epsilon=1e-3").network
    assert len(network.stages) == stages


def test_the_user_says_what_is_in_no_order() -> None:
    tensors = square(norm=nn.LayerNorm(H), again=nn.LSTM(H, H)).state_dict()
    settings = ["order=rnn,norm,again", "norm_epsilon=1e-3"]
    first, second = recognition.read(tensors, *settings).network.layers
    assert (first.norm is None, second.norm is None) == (True, False)
    np.testing.assert_array_equal(second.weight_hh, tensors["again.weight_hh_l0"].numpy())
    with pytest.raises(SettingError, match="the widths allow"):
        recognition.read(tensors, "order=norm,rnn", "norm_epsilon=1e-3")


ACTIVATIONS: dict[str, tuple[nn.Module, list[Activation]]] = {
    "relu first": (nn.Sequential(nn.ReLU(), nn.Linear(H, V)), [Activation.RELU]),
    "between": (
        nn.Sequential(nn.Linear(H, 5), nn.Dropout(), nn.Tanh(), nn.Linear(5, V)),
        [Activation.TANH],
    ),
    "none between": (nn.Sequential(nn.Linear(H, 5), nn.Linear(5, V)), [Activation.LINEAR]),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_of_a_sequence(case: str) -> None:
    head, expected = ACTIVATIONS[case]
    whole = model(embed=nn.Embedding(V, E), rnn=nn.LSTM(E, H), head=head)
    network = recognition.read(whole.state_dict(), modules=modules_of(whole)).network
    found = [stage.activation for stage in network.stages if isinstance(stage, Dense)]
    assert found == expected


def test_an_activation_somewhere_is_asked_for() -> None:
    whole = usual(relu=nn.ReLU())
    tensors, modules = whole.state_dict(), modules_of(whole)
    with pytest.raises(SettingNeeded, match=r"module relu \(ReLU\) may be applied") as caught:
        recognition.read(tensors, modules=modules)
    assert caught.value.choices == ("linear", "relu")
    linear = recognition.read(tensors, "head_activation=linear", modules=modules)
    assert linear.network.stages == ()
    (stage,) = recognition.read(tensors, "head_activation=relu", modules=modules).network.stages
    assert isinstance(stage, Dense)
    np.testing.assert_array_equal(stage.weight, np.eye(H))


def test_an_activation_after_the_embedding() -> None:
    tensors = usual().state_dict()
    reading = recognition.read(tensors, "input_activation=relu")
    expected = torch.relu(tensors["embed.weight"])
    np.testing.assert_array_equal(reading.network.embedding, expected.numpy())
    assert "embedding embed.weight with relu" in reading.text


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attention": (lambda: usual(attn=nn.Linear(H, H)), "of an attention over all steps"),
    "convolution": (lambda: usual(conv1=nn.Conv1d(E, E, 3)), "of a convolution"),
    "adaptive softmax": (
        lambda: usual(loss=nn.AdaptiveLogSoftmaxWithLoss(H, V, [5])),
        "adaptive softmax",
    ),
    "bidirectional": (
        lambda: model(
            embed=nn.Embedding(V, E),
            rnn=nn.GRU(E, H, bidirectional=True),
            fc=nn.Linear(2 * H, V),
        ),
        "reads a text from its end as well",
    ),
    "cells of two kinds": (
        lambda: square(again=nn.GRU(H, H)),
        "layers of different kinds",
    ),
    "no mean": (lambda: usual(norm=nn.RMSNorm(H)), "module norm (RMSNorm) is of a class"),
    "of groups": (lambda: usual(norm=nn.GroupNorm(1, H)), "module norm (GroupNorm) is of a class"),
    "rescaled embeddings": (
        lambda: model(embed=nn.Embedding(V, E, max_norm=1), rnn=nn.LSTM(E, H), fc=nn.Linear(H, V)),
        "max_norm=1",
    ),
    "an activation of another kind": (
        lambda: model(
            embed=nn.Embedding(V, E),
            rnn=nn.LSTM(E, H),
            head=nn.Sequential(nn.Linear(H, 5), nn.GELU(), nn.Linear(5, V)),
        ),
        "module head.1 (GELU) is applied to the output of head.0",
    ),
    "two models": (
        lambda: model(one=usual(), other=usual()),
        "holds 2 models of the same shapes, one.* and other.*: for the first, add --set",
    ),
}


@pytest.mark.parametrize("name", ["rnn_bw", "Backward_rnn", "rtl_rnn", "r2l"])
def test_a_module_that_reads_from_the_end(name: str) -> None:
    parts = {"embed": nn.Embedding(V, E), name: nn.LSTM(E, H), "fc": nn.Linear(H, V)}
    with pytest.raises(CheckpointError, match=f"{name}.weight_ih_l0 is named as one that reads"):
        recognition.read(model(**parts).state_dict())


@pytest.mark.parametrize(
    ("one", "other"),
    [("fwd", "rev"), ("l2r", "r2l"), ("ltr_rnn", "rtl_rnn"), ("lstm", "lstm_reversed")],
)
def test_two_modules_of_which_one_reads_from_the_end(one: str, other: str) -> None:
    parts = {one: nn.LSTM(H, H), other: nn.LSTM(H, H)}
    whole = model(embed=nn.Embedding(V, H), **parts, fc=nn.Linear(H, V))
    with pytest.raises(CheckpointError, match=f"{other}.weight_ih_l0 is named as one that reads"):
        recognition.read(whole.state_dict(), f"order={one},{other}")


def test_words_that_begin_alike_are_no_direction() -> None:
    parts = {"embed": nn.Embedding(V, E), "revised": nn.LSTM(E, H), "fc": nn.Linear(H, V)}
    assert "lstm revised.*" in recognition.read(model(**parts).state_dict()).text


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_served(case: str) -> None:
    make, expected = REFUSED[case]
    whole = make()
    with pytest.raises(CheckpointError) as caught:
        recognition.read(whole.state_dict(), modules=modules_of(whole))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


INSIDE: dict[str, tuple[StateDict, str]] = {
    "a norm in the cell": (
        {"rnn.ln_c.weight": torch.ones(H), "rnn.ln_c.bias": torch.ones(H)},
        "of a normalisation inside the cells",
    ),
    "initial states of a batch": (
        {"h0": torch.ones(1, 4, H)},
        "h0 [1, 4, 7] is not the initial state of one sequence: where it only is what the last "
        "batch left, add --set ignore=h0",
    ),
    "an attention": (
        {f"{name}.weight": torch.ones(H, H) for name in ("query", "key", "value")},
        "query.weight [7, 7], of an attention",
    ),
    "a mogrifier": (
        {f"mogrifier_list.{index}.weight": torch.full((H, H), index) for index in range(5)},
        "mogrifier_list.0.weight [7, 7], of a mogrifier",
    ),
    "a first state of a picture": (
        {"init_h.weight": torch.ones(H, H), "init_h.bias": torch.ones(H)},
        "init_h.weight [7, 7], of a first state that is made of something else",
    ),
    "initial states of other layers": (
        {"h0": torch.ones(2, 1, H)},
        "h0 [2, 1, 7] should be the initial h of layers of [7] units",
    ),
    "a mask": ({"mask": torch.ones(5, 5) > 0}, "tensors left over: mask [5, 5]"),
    "a vector": ({"scale": torch.ones(H)}, "tensors left over: scale [7]"),
    "negative variances": (
        {
            "bn.running_mean": torch.zeros(H),
            "bn.running_var": -torch.ones(H),
        },
        "bn.running_var holds negative variances",
    ),
    "statistics of another size": (
        {"bn.running_mean": torch.zeros(H), "bn.running_var": torch.ones(3)},
        "bn.running_var [3] should be [7], to fit bn.running_mean [7]",
    ),
    "numbers that grow too large": (
        {"bn.running_mean": torch.full((H,), 3e38), "bn.running_var": torch.zeros(H)},
        "leave the range of float32",
    ),
    "more matrices than a language model has": (
        {f"x{index}.weight": torch.full((H, H), index) for index in range(25)},
        "27 matrices",
    ),
    "an endless name": ({"a" * 501: torch.ones(H)}, "and so on, which is too long"),
    "matrices in any order": (
        {f"x{chr(97 + index)}.weight": torch.full((H, H), index) for index in range(20)},
        "in too many orders",
    ),
}


@pytest.mark.parametrize("case", INSIDE)
def test_tensors_beside_a_model(case: str) -> None:
    more, expected = INSIDE[case]
    with pytest.raises(CheckpointError) as caught:
        recognition.read({**usual().state_dict(), **more}, "norm_epsilon=1e-5")
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["ln_c", "c_norm", "ln_h", "norm_hx", "layernorm_cell", "h_ln"])
def test_a_norm_of_what_a_cell_carries(name: str) -> None:
    parts = {"cell": nn.LSTMCell(E, H), name: nn.LayerNorm(H)}
    whole = model(embed=nn.Embedding(V, E), rnn=model(**parts), fc=nn.Linear(H, V))
    with pytest.raises(CheckpointError, match=f"rnn.{name}.weight .*a normalisation inside"):
        recognition.read(whole.state_dict(), modules=modules_of(whole))


@pytest.mark.parametrize("name", ["norm", "ln_f", "ln_head", "head_norm"])
def test_a_norm_behind_a_cell(name: str) -> None:
    parts = {"cell": nn.LSTMCell(E, H), name: nn.LayerNorm(H)}
    whole = model(embed=nn.Embedding(V, E), **parts, fc=nn.Linear(H, V))
    assumptions = recognition.read(whole.state_dict(), "norm_epsilon=1e-5").assumptions
    assert f"{name} normalises what the cells put out, not the state they carry" in assumptions


def test_a_model_that_is_saved_twice_counts_once() -> None:
    tensors = usual().state_dict()
    twice = {**tensors, **{f"model.{name}": tensor for name, tensor in tensors.items()}}
    reading = recognition.read(twice)
    assert reading.network.parameters == recognition.read(tensors).network.parameters
    assert "without model.rnn.weight_ih_l0 and 6 more (repeated)" in reading.text


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_one_bias_alone(missing: str) -> None:
    tensors = usual().state_dict()
    del tensors[f"rnn.{missing}_l0"]
    reading = recognition.read(tensors)
    assert "the bias that rnn lacks is zero" in reading.assumptions
    assert not getattr(reading.network.layers[0], missing).any()
    assert reading.network.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_a_linear_map_of_one_hot_tokens_is_an_embedding() -> None:
    tensors = model(mix=nn.Linear(V, E), rnn=nn.LSTM(E, H), fc=nn.Linear(H, V)).state_dict()
    network = recognition.read(tensors, "input_activation=relu").network
    assert network.embedding is not None
    expected = torch.relu(tensors["mix.weight"].T + tensors["mix.bias"])
    np.testing.assert_allclose(network.embedding, expected.numpy(), rtol=1e-6)


def outcome(tensors: StateDict) -> str:
    """What was read or why not, in words."""
    try:
        return recognition.read(tensors).text
    except ExportError as error:
        return str(error)


NAMES = (
    "embed.weight",
    "fc.weight",
    "fc.bias",
    "mix.weight",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
    "h0",
    "c_init",
    *(f"rnn.{field}_l0" for field in ("weight_ih", "weight_hh", "bias_ih", "weight_hr")),
    "rnn.weight_hh_l0_raw",
    "rnn.weight_ih_l1",
    "cell.weight_ih",
    "cell.weight_hh",
    *(f"mix.weight_{end}" for end in ("g", "v", "u", "orig", "mask")),
    "loss.weight",
)
SHAPES = st.lists(st.sampled_from((0, 1, 2, 4, 6, 8)), max_size=3).map(tuple)


@examples(max_examples=300)
@given(shapes=st.dictionaries(st.sampled_from(NAMES), SHAPES), seed=st.integers(0, 9))
def test_tensors_of_any_shape_are_read_or_refused(
    shapes: dict[str, tuple[int, ...]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    good = {"embed.weight": (6, 2), "fc.weight": (6, 2), "rnn.weight_ih_l0": (8, 2)}
    wanted = {**good, "rnn.weight_hh_l0": (8, 2), **shapes}
    tensors = {
        name: torch.from_numpy(np.asarray(random.normal(size=shape), np.float32))
        for name, shape in wanted.items()
    }
    assert "\n" not in outcome(tensors)


def test_weights_are_compared_whole() -> None:
    one = np.zeros((3, 2), np.float32)
    other = one.copy()
    other[2, 1] = 1
    tensors = Tensors(Path("model.pt"), {"a": one, "b": other, "c": one.copy()})
    assert tensors.same("a", "c")
    assert not tensors.same("a", "b")


CLAIMS: dict[str, tuple[dict[str, object], str]] = {
    "a norm": ({"params.layer_normalization": True}, "layer_normalization=True, but no tensors"),
    "a norm in use": ({"use_layer_norm": 1}, "use_layer_norm=1, but no tensors are of a layer"),
    "a batch norm": ({"batch_norm": True}, "batch_norm=True, but no tensors are of a batch norm"),
    "a residual": ({"use_residual": True}, "use_residual=True: it adds earlier values"),
    "skips": ({"skip_connections": True}, "skip_connections=True: it adds earlier values"),
    "an attention": ({"attention": "bahdanau"}, "attention=bahdanau: it attends to all steps"),
    "both directions": ({"bidirectional": 1}, "bidirectional=1: it reads a text from its end"),
    "scaled": ({"scale_embedding": True}, "scale_embedding=True: it multiplies embeddings"),
    "scaled by a number": ({"embed_scale": 2.5}, "embed_scale=2.5: it multiplies embeddings"),
    "zoneout": ({"zoneout": 0.1}, "zoneout=0.1: it has cells that compute something else"),
    "a clipped cell": ({"cell_clip": 3.0}, "cell_clip=3.0: it has cells that compute"),
    "hard gates": ({"recurrent_activation": "hard_sigmoid"}, "hard_sigmoid: it has cells"),
    "scaled scores": ({"logit_scale": 2.0}, "logit_scale=2.0: it multiplies the scores"),
    "a highway": ({"use_highway": True}, "use_highway=True: it has highway layers"),
    "from its end": ({"is_forward": False}, "is_forward=False: it reads a text from its end"),
    "reversed": ({"go_backwards": True}, "go_backwards=True: it reads a text from its end"),
    "two directions": ({"num_directions": 2}, "num_directions=2: it reads a text from its end as"),
    "a norm of a kind": ({"norm": "layer"}, "norm=layer, but no tensors are of a layer norm"),
    "a norm in short": ({"use_bn": True}, "use_bn=True, but no tensors are of a batch norm"),
    "a last activation": ({"final_activation": "relu"}, "--set head_activation=relu"),
    "where it is said": ({"config.json.skip": True}, "skip=True: it adds earlier"),
    "units": ({"hidden_size": 99}, "hidden_size=99, but the recurrent layers have 7 units"),
    "layers": ({"n_layers": 3}, "n_layers=3, but the recurrent layers found are 1"),
    "a cell": ({"rnn_type": "GRU"}, "rnn_type=GRU, but the tensors are those of the cell lstm"),
    "an activation": ({"activation": "relu"}, "--set head_activation=relu"),
    "a function": ({"activation": "torch.nn.functional.gelu"}, "functional.gelu, which this"),
}


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("pickled", [False, True])
def test_claims_that_the_tensors_do_not_bear_out(case: str, pickled: bool) -> None:
    claims, expected = CLAIMS[case]
    whole = usual()
    for key, value in claims.items():
        setattr(whole, key.rpartition(".")[2], value)
    modules = modules_of(whole) if pickled else {}
    with pytest.raises(CheckpointError) as caught:
        recognition.read(whole.state_dict(), modules=modules, hints={} if pickled else claims)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "claims",
    [
        {"hidden_size": H, "num_layers": 1, "bidirectional": False, "dropout": 0.5, "lr": 1e-3},
        {"layer_norm": False, "attention": None, "residual": 0, "embed_scale": 1.0},
        {"rnn_type": "LSTM", "activation": "tanh", "use_attention": "none"},
        {"zoneout": 0.0, "grad_clip": 5.0, "logit_scale": 1.0, "norm": "none", "num_directions": 1},
        {"reset_after": False, "recurrent_activation": "sigmoid", "is_forward": True},
    ],
)
def test_claims_that_agree(claims: dict[str, object]) -> None:
    tensors = usual().state_dict()
    assert recognition.read(tensors, hints=claims).text == recognition.read(tensors).text


def test_a_gru_whose_reset_gate_comes_first() -> None:
    tensors = model(embed=nn.Embedding(V, E), rnn=nn.GRU(E, H), fc=nn.Linear(H, V)).state_dict()
    with pytest.raises(CheckpointError, match=r"args has reset_after=False: it has cells"):
        recognition.read(tensors, hints={"args.reset_after": False})
    recognition.read(tensors, hints={"args.reset_after": True})


@pytest.mark.parametrize("place", ["", "part"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ResidualLSTM", "adds earlier values to later ones"),
        ("SkipRNN", "adds earlier values to later ones"),
        ("HighwayNet", "has highway layers"),
        ("ZoneoutLM", "has cells that compute something else"),
        ("BackwardLM", "reads a text from its end"),
        ("Seq2Seq", "reads another text than it continues"),
        ("MyAttnLM", "attends to all steps"),
    ],
)
def test_classes_whose_names_tell(name: str, expected: str, place: str) -> None:
    whole = usual()
    modules = {**modules_of(whole), place: Module(f"model.{name}", {})}
    with pytest.raises(CheckpointError) as caught:
        recognition.read(whole.state_dict(), modules=modules)
    shown = f"module part ({name})" if place else f"the {name}"
    assert f"{shown} is called as one that {expected}" in str(caught.value)
    recognition.read(whole.state_dict())


def test_claims_of_parts_that_were_found() -> None:
    parts = usual(norm=nn.LayerNorm(H), bn=nn.BatchNorm1d(E))
    claims = {"layer_norm": True, "use_batch_norm": True, "activation": "relu"}
    settings = ["norm_epsilon=1e-5", "head_activation=relu"]
    text = recognition.read(parts.state_dict(), *settings, hints=claims).text
    assert "layer norm norm" in text


READ_CLASSES = {
    *("Linear", "Embedding", "LayerNorm", "BatchNorm1d", "Identity", "Sequential", "DataParallel"),
    *("ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Softmax", "LogSoftmax"),
    *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
}
BASES = {"Module", "RNNBase", "RNNCellBase", "Container"}


def test_every_class_of_torch_is_read_inert_or_refused() -> None:
    classes = {name for name, kind in vars(nn).items() if isinstance(kind, type)}
    for name in {name for name in classes if issubclass(getattr(nn, name), nn.Module)} - BASES:
        modules = {"": Module("Net", {}), "part": Module(f"torch.nn.modules.{name}", {})}
        is_refused = False
        try:
            refuse_unread_classes(Tensors(Path("model.pt"), {}), modules)
        except CheckpointError as error:
            is_refused = f"module part ({name}) is of a class" in str(error)
        is_inert = "Dropout" in name or "Loss" in name.removesuffix("WithLoss")
        is_activation = getattr(nn, name).__module__.endswith("activation")
        if name in READ_CLASSES or is_inert:
            assert is_known(modules["part"], is_empty=False)
            assert not is_refused
        elif not (is_activation and is_known(modules["part"], is_empty=False)):
            assert is_refused, name


@pytest.mark.parametrize("kind", [nn.Flatten, nn.Unflatten, nn.EmbeddingBag, nn.InstanceNorm1d])
def test_modules_that_are_not_read(kind: type[nn.Module]) -> None:
    whole = usual()
    modules = {**modules_of(whole), "part": Module(kind.__name__, {})}
    with pytest.raises(CheckpointError, match=rf"part \({kind.__name__}\) is of a class"):
        recognition.read(whole.state_dict(), modules=modules)


def test_a_softmax_belongs_behind_the_head() -> None:
    behind = usual(softmax=nn.LogSoftmax(-1))
    recognition.read(behind.state_dict(), modules=modules_of(behind))
    parts = {"embed": nn.Embedding(V, E), "rnn": nn.LSTM(E, H)}
    before = [
        model(**parts, softmax=nn.Softmax(-1), fc=nn.Linear(H, V)),
        model(**parts, head=nn.Sequential(nn.Softmax(-1), nn.Linear(H, V))),
    ]
    for whole in before:
        with pytest.raises(CheckpointError, match=r"\(Softmax\) is not behind the head"):
            recognition.read(whole.state_dict(), modules=modules_of(whole))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder", "decoder"),
        ("enc.rnn", "dec.rnn"),
        ("encoder_rnn", "decoder_rnn"),
        ("src", "tgt"),
    ],
)
def test_an_encoder_and_a_decoder(one: str, other: str) -> None:
    rnns = {one.replace(".", "_"): nn.LSTM(H, H), other.replace(".", "_"): nn.LSTM(H, H)}
    whole = model(embed=nn.Embedding(V, H), **rnns, fc=nn.Linear(H, V))
    tensors = {
        name.replace(one.replace(".", "_"), one).replace(other.replace(".", "_"), other): tensor
        for name, tensor in whole.state_dict().items()
    }
    with pytest.raises(CheckpointError, match=f"{one} and {other} are the encoder and the decoder"):
        recognition.read(tensors, f"order={one},{other}")


class MyLSTM(nn.LSTM):
    """It may compute anything."""


class Wrapper(nn.Module):
    """Holds another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MyLSTM(E, H)


class Odd(nn.Module):
    """Has neither weights nor modules."""


class Net(nn.Module):
    """A model of classes that nothing is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, E)
        self.rnn = Wrapper()
        self.odd = Odd()
        self.fc = nn.Linear(H, V)
        randomise(self)


def test_what_is_assumed_of_classes() -> None:
    whole = Net()
    reading = recognition.read(whole.state_dict(), modules=modules_of(whole))
    nothing = "nothing without weights (an activation, a norm) between"
    assert reading.assumptions == (
        f"{nothing} embed and rnn.inner (else --set input_activation=relu)",
        f"{nothing} rnn.inner and fc (else --set head_activation=relu)",
        "MyLSTM computes as nn.LSTM",
        "Net, Wrapper are taken to apply their modules one after another and nothing else",
        "Odd is taken to change nothing",
    )


UNSEEN: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    "nothing between": (
        usual,
        [],
        [
            "embed and rnn (else --set input_activation=relu)",
            "rnn and fc (else --set head_activation=relu)",
        ],
    ),
    "what one setting tells": (
        usual,
        ["head_activation=linear"],
        ["embed and rnn (else --set input_activation=relu)"],
    ),
    "what both settings tell": (
        usual,
        ["head_activation=tanh", "input_activation=linear"],
        [],
    ),
    "a norm after": (
        lambda: usual(norm=nn.LayerNorm(H)),
        ["norm_epsilon=1e-5"],
        [
            "embed and rnn (else --set input_activation=relu)",
            "rnn and norm (else --set head_activation.rnn=relu)",
            "norm and fc (else --set head_activation=relu)",
        ],
    ),
    "a norm before": (
        lambda: usual(norm=nn.LayerNorm(E)),
        ["norm_epsilon=1e-5", "input_activation=linear", "head_activation=linear"],
        ["norm and rnn (else --set input_activation.norm=relu)"],
    ),
    "a linear stage before": (
        lambda: model(
            embed=nn.Embedding(V, E), mix=nn.Linear(E, 5), rnn=nn.LSTM(5, H), fc=nn.Linear(H, V)
        ),
        ["input_activation=relu"],
        [
            "embed and mix (else --set input_activation.embed=relu)",
            "rnn and fc (else --set head_activation=relu)",
        ],
    ),
    "two modules": (
        lambda: model(
            embed=nn.Embedding(V, E),
            rnns=list_of(nn.LSTM(E, 5), nn.LSTM(5, H)),
            fc=nn.Linear(H, V),
        ),
        ["input_activation=linear", "head_activation=linear"],
        ["the recurrent modules"],
    ),
    "what settings of parts tell": (
        lambda: usual(norm=nn.LayerNorm(H)),
        ["norm_epsilon=1e-5", "input_activation.embed=relu", "head_activation.rnn=linear"],
        ["norm and fc (else --set head_activation=relu)"],
    ),
    "one-hot input": (
        lambda: model(rnn=nn.LSTM(V, H), fc=nn.Linear(H, V)),
        [],
        ["rnn and fc (else --set head_activation=relu)"],
    ),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_tensors_alone_cannot_show(case: str) -> None:
    make, settings, places = UNSEEN[case]
    start = "nothing without weights (an activation, a norm) between"
    tensors = make().state_dict()
    assumptions = recognition.read(tensors, *settings).assumptions
    assert [phrase for phrase in assumptions if phrase.startswith(start)] == [
        f"{start} {place}" for place in places
    ]


class Activated(nn.Module):
    """PyTorch's tutorial of sequence to sequence applies such functions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.out = nn.Embedding(V, H), nn.GRU(H, H), nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values, _ = self.gru(torch.relu(self.embedding(tokens)))
        logits: torch.Tensor = self.out(torch.tanh(values))
        return logits


def test_settings_for_what_tensors_cannot_show() -> None:
    whole = Activated()
    reading = recognition.read(whole.state_dict(), "input_activation=relu", "head_activation=tanh")
    tokens = recognition.ids(V)
    with torch.inference_mode():
        expected = whole(tokens).log_softmax(-1)
    found = recognition.logprobs(reading.network, tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


GAPS: dict[str, nn.Sequential] = {
    "before the head": nn.Sequential(nn.ReLU(), nn.Linear(H, V)),
    "after a linear stage": nn.Sequential(
        nn.Linear(H, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, V)
    ),
    "after a batch norm": nn.Sequential(
        nn.Linear(H, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, V)
    ),
    "between two norms": nn.Sequential(
        nn.LayerNorm(H), nn.Linear(H, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, V)
    ),
}


@pytest.mark.parametrize("case", GAPS)
def test_numbers_that_prove_a_module_without_weights(case: str) -> None:
    whole = model(embed=nn.Embedding(V, E), rnn=nn.LSTM(E, H), fc=GAPS[case]).eval()
    tensors = whole.state_dict()
    with pytest.raises(SettingNeeded, match="stands behind a module without weights") as caught:
        recognition.read(tensors, "norm_epsilon=1e-5")
    assert caught.value.key == "head_activation"
    assert caught.value.choices == ("relu", "linear", "tanh")
    settings = ["head_activation=relu", *(["norm_epsilon=1e-5"] if "norm" in case else [])]
    network = recognition.read(tensors, *settings).network
    tokens = recognition.ids(V)
    with torch.inference_mode():
        values, _ = whole.get_submodule("rnn")(whole.get_submodule("embed")(tokens))
        expected = whole.get_submodule("fc")(values).log_softmax(-1)
    torch.testing.assert_close(recognition.logprobs(network, tokens), expected, rtol=0, atol=1e-4)


def test_what_training_keeps_is_set_aside() -> None:
    more = {
        "criterion.weight": torch.ones(V),
        "loss_fn.smoothing": torch.tensor(0.5),
        "val_accuracy.correct": torch.tensor([3.0]),
        "train_acc.total": torch.tensor(3.0),
    }
    reading = recognition.read({**usual().state_dict(), **more})
    assert "without criterion.weight and 3 more (of a loss or metric)" in reading.text
    with pytest.raises(CheckpointError, match=r"tensors left over: criterion.weight \[2, 3\]"):
        recognition.read({**usual().state_dict(), "criterion.weight": torch.ones(2, 3)})


ALL: Any = None  # PyTorch takes it, though its stubs say int.
PARAMETRIZED: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": partial(parametrizations.weight_norm, dim=1),
    "weight norm of all": partial(parametrizations.weight_norm, dim=ALL),
    "weight norm of old": nn.utils.weight_norm,
    "weight norm of columns of old": partial(nn.utils.weight_norm, dim=1),
    "weight norm of all of old": partial(nn.utils.weight_norm, dim=ALL),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm of old": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", PARAMETRIZED)
@pytest.mark.parametrize(("part", "weight"), [("fc", "weight"), ("rnn", "weight_hh_l0")])
def test_parametrized_weights(case: str, part: str, weight: str) -> None:
    whole = usual()
    owner = whole.get_submodule(part)
    PARAMETRIZED[case](owner, weight)
    if case.startswith("weight norm") and not case.endswith("of old"):
        owner.get_parameter(f"parametrizations.{weight}.original0").data.mul_(1.5)
    tensors = whole.eval().state_dict()
    reading = recognition.read(tensors)
    assert f"{part}.{weight} computed from what normalises it" in reading.text
    network = reading.network
    if case.endswith("of old"):
        for hook in owner._forward_pre_hooks.values():
            hook(owner, ())
    expected = getattr(owner, weight).detach().numpy()
    found = network.head_weight if part == "fc" else network.layers[0].weight_hh
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "weight"), [("fc", "weight"), ("fc", "bias"), ("rnn", "weight_hh_l0")]
)
def test_pruned_weights(part: str, weight: str) -> None:
    whole = usual()
    owner = whole.get_submodule(part)
    prune.random_unstructured(owner, weight, 0.4)  # type: ignore[no-untyped-call]
    reading = recognition.read(whole.state_dict())
    assert f"{part}.{weight} as it was pruned" in reading.text
    assert reading.network.parameters == trained(usual())
    layer = reading.network.layers[0]
    found = {
        "weight": reading.network.head_weight,
        "bias": reading.network.head_bias,
        "weight_hh_l0": layer.weight_hh,
    }[weight]
    expected = getattr(owner, weight).detach().numpy()
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"fc.weight_g": torch.ones(H), "fc.weight_v": torch.ones(V, H)},
            "fc.weight_g [7] should be [11, 1], [1, 7] or [], to fit fc.weight_v [11, 7]",
        ),
        (
            {"fc.weight_orig": torch.ones(V, H), "fc.weight_mask": torch.ones(H, V)},
            "fc.weight_mask [7, 11] should be [11, 7], to fit fc.weight_orig [11, 7]",
        ),
    ],
)
def test_parts_of_a_weight_that_do_not_fit(more: StateDict, expected: str) -> None:
    tensors = {name: it for name, it in usual().state_dict().items() if name != "fc.weight"}
    with pytest.raises(CheckpointError) as caught:
        recognition.read({**tensors, **more})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["fc.parametrizations.weight.0._u", "fc.parametrizations.weight.0._v"]
)
def test_a_spectral_norm_without_its_vectors(missing: str) -> None:
    whole = usual()
    parametrizations.spectral_norm(whole.get_submodule("fc"))
    tensors = dict(whole.state_dict())
    del tensors[missing]
    with pytest.raises(CheckpointError, match=r"fc.weight is computed from these by other than"):
        recognition.read(tensors)


def test_a_weight_beside_its_parts() -> None:
    more = {"fc.weight_g": torch.ones(V, 1), "fc.weight_v": torch.ones(V, H)}
    with pytest.raises(CheckpointError, match=r"holds both fc.weight and fc.weight_g"):
        recognition.read({**usual().state_dict(), **more})


@pytest.mark.parametrize("setting", [[], ["order=rnn,again"]])
def test_nothing_is_asked_where_a_tensor_is_left_over_anyhow(setting: list[str]) -> None:
    whole = square(again=nn.LSTM(H, H), other=nn.Embedding(V, H))
    with pytest.raises(CheckpointError, match=r"tensors left over: other.weight") as caught:
        recognition.read(whole.state_dict(), *setting)
    assert not isinstance(caught.value, SettingNeeded)


def test_nothing_is_asked_of_an_order_that_leaves_a_bias_over() -> None:
    # A head that is stored as [H, V], which is not read.
    tensors = {
        **model(embed=nn.Embedding(V, H), rnn=nn.LSTM(H, H)).state_dict(),
        "out": torch.ones(H, V),
        "out_bias": torch.ones(V),
    }
    with pytest.raises(CheckpointError, match=r"tensors left over: out_bias \[11\]") as caught:
        recognition.read(tensors)
    assert not isinstance(caught.value, SettingNeeded)


@pytest.mark.parametrize("bias", [True, False])
def test_more_tokens_to_read_than_to_write(bias: bool) -> None:
    parts = {"embed": nn.Embedding(V + 1, H), "rnn": nn.LSTM(H, H)}
    tensors = model(**parts, fc=nn.Linear(H, V, bias=bias)).state_dict()
    for setting in ([], ["head=fc.weight"], ["head=embed.weight"]):
        with pytest.raises(CheckpointError) as caught:
            recognition.read(tensors, *setting)
        assert str(caught.value) == (
            "model.pt: embed.weight [12, 7] would be the embedding and fc.weight [11, 7] the head, "
            "but 12 tokens to read and 11 to write are not served"
        )


def test_a_head_that_there_is_not() -> None:
    with pytest.raises(SettingError, match="--set head=fc: no matrix of the file is called so"):
        recognition.read(usual().state_dict(), "head=fc")


@pytest.mark.parametrize("path", ["criterion", "loss_fn.decoder"])
def test_a_head_that_a_loss_owns(path: str) -> None:
    tensors = usual().state_dict()
    moved = {name.replace("fc.", f"{path}."): tensor for name, tensor in tensors.items()}
    reading = recognition.read(moved)
    assert reading.text.endswith(f"head {path}.weight and {path}.bias")
    np.testing.assert_array_equal(reading.network.head_bias, tensors["fc.bias"].numpy())


def test_an_epsilon_that_the_model_tells_too() -> None:
    whole = usual(norm=nn.LayerNorm(H, eps=0.25))
    tensors, modules = whole.state_dict(), modules_of(whole)
    recognition.read(tensors, "norm_epsilon=0.25", modules=modules)
    with pytest.raises(SettingError, match=r"norm_epsilon=0.001: module norm has eps=0.25"):
        recognition.read(tensors, "norm_epsilon=1e-3", modules=modules)

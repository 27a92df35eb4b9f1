"""Tensors that the user says the output does not depend on.

Every model is run in PyTorch, and the network that is read has to give the same log-probabilities.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
import torch
from support.recognition import StateDict, ids, logprobs, modules_of, randomise, read
from torch import Tensor, nn
from unrolled_export.errors import CheckpointError, ExportError, SettingError, SettingNeeded
from unrolled_export.network import Network

V, E, H = 11, 6, 7


class Model(nn.Module):
    """A language model, and beside it whatever training needed."""

    def __init__(self, **beside: nn.Module) -> None:
        super().__init__()
        self.embed, self.rnn, self.fc = nn.Embedding(V, E), nn.LSTM(E, H, 2), nn.Linear(H, V)
        for name, module in beside.items():
            self.add_module(name, module)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.rnn(self.embed(tokens))[0])
        return logits


class Holder(nn.Module):
    """Holds a tensor."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_buffer(name, torch.zeros(shape))


def check(model: Model, network: Network) -> None:
    tokens = ids(V)
    with torch.inference_mode():
        expected = model(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


BESIDE: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a value head": (lambda: nn.Linear(H, 1), "beside.*", "beside.weight, beside.bias"),
    "a state": (lambda: Holder("hidden", 2, 1, H), "beside.hidden", "beside.hidden"),
    "a number": (lambda: Holder("log_sigma", 1), "beside.log_sigma", "beside.log_sigma"),
    "a second embedding": (lambda: nn.Embedding(V, E), "beside.weight", "beside.weight"),
    "another model": (
        lambda: nn.Sequential(nn.Linear(H, 3), nn.Linear(3, 3), nn.Linear(3, 1)),
        "beside.*",
        "beside.0.weight, beside.0.bias, beside.1.weight and 3 more",
    ),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", BESIDE)
def test_what_the_output_does_not_depend_on(case: str, pickled: bool) -> None:
    make, pattern, names = BESIDE[case]
    model = Model(beside=make())
    modules = modules_of(model) if pickled else {}
    with pytest.raises(CheckpointError, match="tensors left over: beside"):
        read(model.state_dict(), modules=modules)
    reading = read(model.state_dict(), f"ignore={pattern}", modules=modules)
    check(model, reading.network)
    assert reading.assumptions[0] == f"the output does not depend on {names} (ignored)"
    assert "beside" not in reading.text
    assert reading.network.parameters == sum(
        tensor.numel() for name, tensor in model.state_dict().items() if "beside" not in name
    )


@pytest.mark.parametrize("case", BESIDE)
def test_the_error_names_a_setting_that_works(case: str) -> None:
    model = Model(beside=BESIDE[case][0]())
    with pytest.raises(CheckpointError) as caught:
        read(model.state_dict())
    assert not isinstance(caught.value, SettingNeeded)
    option, setting = shlex.split(str(caught.value).rpartition("add ")[2])
    assert option == "--set"
    check(model, read(model.state_dict(), setting).network)


def test_several_patterns() -> None:
    model = Model(value=nn.Linear(H, 1), other=Holder("log_sigma", 1))
    check(model, read(model.state_dict(), "ignore=value.?e*,value.bias,*sigma").network)


def test_names_that_are_patterns() -> None:
    model = Model()
    tensors = {**model.state_dict(), "a[b]": torch.ones(3), "c,d": torch.ones(3)}
    check(model, read(tensors, "ignore=a[b],c?d").network)


def test_an_ignored_norm_of_a_pickled_model_is_not_there() -> None:
    model = Model(norm=nn.LayerNorm(H))
    reading = read(model.state_dict(), "ignore=norm.*", modules=modules_of(model))
    assert reading.network.stages == ()


REFUSED: dict[str, tuple[StateDict, str, str]] = {
    "no tensor": ({}, "fc.*,value", "--set ignore=value: no tensor is called so"),
    "an empty pattern": ({}, "fc.bias,", "--set ignore=: no tensor is called so"),
    "a bias": ({}, "fc.bias", "fc.bias belongs to fc, which is read"),
    "biases of a layer": ({}, "rnn.bias_hh*", "rnn.bias_hh_l0 belongs to rnn, which is read"),
    "a layer": ({}, "rnn.*_l1", "rnn.weight_ih_l1 belongs to rnn, which is read"),
    "a direction": (
        {f"rnn.{name}_l0_reverse": torch.ones(4 * H, H) for name in ("weight_ih", "weight_hh")},
        "*_reverse",
        "rnn.weight_ih_l0_reverse belongs to rnn, which is read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_ignored(case: str) -> None:
    more, pattern, expected = REFUSED[case]
    with pytest.raises(SettingError) as caught:
        read({**Model().state_dict(), **more}, f"ignore={pattern}")
    assert expected in str(caught.value)


BESIDE_IT: dict[str, Callable[[str, Tensor], tuple[str, Tensor]]] = {
    "an average": lambda name, tensor: (f"ema.{name}", tensor * 0.9),
    "a flat average": lambda name, tensor: (f"model_ema.{name.replace('.', '')}", tensor * 0.9),
}


@pytest.mark.parametrize("case", BESIDE_IT)
@pytest.mark.parametrize("start", ["model.", "net.model."])
def test_a_model_and_its_average(start: str, case: str) -> None:
    model = Model()
    averages = [BESIDE_IT[case](*item) for item in model.state_dict().items()]
    outer = start.removesuffix("model.")
    tensors = {f"{start}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{outer}{name}": tensor for name, tensor in averages}
    prefix = outer + averages[0][0].partition(".")[0]
    with pytest.raises(CheckpointError, match="holds 2 models of the same shapes") as caught:
        read(tensors)
    assert f"{start}* and {prefix}.*" in str(caught.value)
    _, setting = shlex.split(str(caught.value).rpartition("add ")[2])
    assert setting == f"ignore={prefix}.*"
    check(model, read(tensors, setting).network)


def test_an_ensemble() -> None:
    members = {f"{index}.": Model() for index in range(3)}
    for index, member in enumerate(members.values()):
        randomise(member, seed=index)
    tensors = {
        prefix + name: tensor
        for prefix, member in members.items()
        for name, tensor in member.state_dict().items()
    }
    with pytest.raises(CheckpointError, match="holds 3 models of the same shapes") as caught:
        read(tensors)
    _, setting = shlex.split(str(caught.value).rpartition("add ")[2])
    check(members["0."], read(tensors, setting).network)
    check(members["2."], read(tensors, "ignore=0.*,1.*").network)


@pytest.mark.parametrize(
    ("cell", "name", "shape"),
    [
        (nn.LSTM(E, H), "rnn.bias", (4 * H,)),
        (nn.LSTM(E, H), "rnn.b", (4 * H,)),
        (nn.LSTM(E, H), "rnn.weight_ch_l0", (3 * H, H)),
        (nn.GRU(E, H), "rnn.bias", (3 * H,)),
        (nn.RNN(E, H), "rnn.bias", (H,)),
    ],
)
def test_a_cell_of_another_kind(cell: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    model = Model()
    model.add_module("rnn", cell)
    settings = ["nonlinearity=tanh"] if isinstance(cell, nn.RNN) else []
    tensors = {**model.state_dict(), name: torch.ones(shape)}
    with pytest.raises(CheckpointError, match=f"{name} .* is of the gates of rnn") as caught:
        read(tensors, *settings)
    assert "--set" not in str(caught.value)
    with pytest.raises(ExportError, match=f"{name} .*(is of the gates of|belongs to) rnn"):
        read(tensors, *settings, f"ignore={name}")


def test_no_remedy_is_named_that_is_refused() -> None:
    tensors = {**Model().state_dict(), "fc.weight_scale": torch.ones(3, 3, 3)}
    with pytest.raises(CheckpointError, match=r"left over: fc\.weight_scale") as caught:
        read(tensors)
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("fc.*", "found embed.weight"), ("*", "no recurrent layer"), ("*_ih_*", "no tensor rnn.")],
)
def test_what_is_ignored_is_not_there(pattern: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        read(Model().state_dict(), f"ignore={pattern}")

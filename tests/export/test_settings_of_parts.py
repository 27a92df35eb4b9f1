"""Settings that tell of one part of a network alone.

The model is run in PyTorch, and the network that is read has to give the same log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.recognition import ids, logprobs, modules_of, randomise, read
from torch import Tensor, nn
from unrolled_export.errors import SettingError, SettingNeeded
from unrolled_export.network import Network

V, E, H = 11, 6, 7


class Model(nn.Module):
    """Another function after every part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(V, 5), nn.Linear(5, E)
        self.ln_in = nn.LayerNorm(E, eps=1e-2)
        self.rnn = nn.GRU(E, H)
        self.ln_out = nn.LayerNorm(H, eps=1e-1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(H, 8), nn.Linear(8, 9), nn.Linear(9, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values = torch.relu(self.mix(torch.tanh(self.embed(tokens))))
        values = self.rnn(torch.sigmoid(self.ln_in(values)))[0]
        values = torch.relu(self.ln_out(torch.sigmoid(values)))
        logits: Tensor = self.fc3(self.fc2(torch.tanh(self.fc1(values))))
        return logits


EPSILONS = ["norm_epsilon.ln_in=1e-2", "norm_epsilon.ln_out=1e-1"]
INPUTS = [
    "input_activation.embed=tanh",
    "input_activation.mix=relu",
    "input_activation.ln_in=sigmoid",
]
HEADS = [
    "head_activation.rnn=sigmoid",
    "head_activation.ln_out=relu",
    "head_activation.fc1=tanh",
    "head_activation.fc2=linear",
]


def check(network: Network) -> None:
    tokens = ids(V)
    with torch.inference_mode():
        expected = Model()(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


def test_every_part_alone() -> None:
    check(read(Model().state_dict(), *EPSILONS, *INPUTS, *HEADS).network)


def test_a_part_is_told_apart_from_all() -> None:
    everything = [
        *("norm_epsilon=1e-1", "norm_epsilon.ln_in=1e-2"),
        *("input_activation=relu", "input_activation.embed=tanh", "input_activation.ln_in=sigmoid"),
        *("head_activation=tanh", "head_activation.fc2=linear"),
        *("head_activation.rnn=sigmoid", "head_activation.ln_out=relu"),
    ]
    check(read(Model().state_dict(), *everything).network)


def test_the_others_are_asked_for_by_name() -> None:
    with pytest.raises(SettingNeeded, match="an activation may follow fc2,") as caught:
        read(Model().state_dict(), *INPUTS, "head_activation.fc1=tanh")
    assert caught.value.key == "head_activation.fc2"
    with pytest.raises(SettingNeeded, match="epsilon of the normalisation ln_out"):
        read(Model().state_dict(), *INPUTS, *HEADS, "norm_epsilon.ln_in=1e-2")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("head_activation.fc3=relu", "head_activation.fc3: not a setting of this checkpoint"),
        ("head_activation.fc1=sin", "head_activation.fc1=sin: not one of linear"),
        ("norm_epsilon.fc1=1e-3", "norm_epsilon.fc1: not a setting of this checkpoint"),
        ("norm_epsilon.ln_out=x", "norm_epsilon.ln_out=x: not a positive number"),
    ],
)
def test_settings_of_no_part(setting: str, expected: str) -> None:
    others = [
        pair
        for pair in (*EPSILONS, *INPUTS, *HEADS)
        if pair.partition("=")[0] != setting.partition("=")[0]
    ]
    with pytest.raises(SettingError, match=expected):
        read(Model().state_dict(), *others, setting)


def test_what_a_module_tells_is_not_told_again() -> None:
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Embedding(V, E), nn.Tanh())
    model.rnn, model.fc = nn.GRU(E, H), nn.Linear(H, V)
    randomise(model)
    modules = modules_of(model)
    network = read(model.state_dict(), modules=modules).network
    assert network.embedding is not None
    expected = torch.tanh(model.state_dict()["encoder.0.weight"]).numpy()
    np.testing.assert_allclose(network.embedding, expected, rtol=1e-6)
    for key in ("input_activation", "input_activation.encoder.0"):
        with pytest.raises(SettingError, match=f"{key}: not a setting"):
            read(model.state_dict(), f"{key}=relu", modules=modules)


def test_one_hot_tokens_have_no_activation_of_their_own() -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(V, H), "fc": nn.Linear(H, V)})
    with pytest.raises(SettingError, match="input_activation: not a setting"):
        read(model.state_dict(), "input_activation=relu")


class Normed(nn.Module):
    """A function that is a module stands behind one of the parts, which no pickle tells."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(V, E), nn.GRU(E, H)
        self.relu = nn.ReLU()
        self.fc1, self.bn1, self.fc2 = nn.Linear(H, 5), nn.BatchNorm1d(5), nn.Linear(5, V)
        self.place = place
        randomise(self)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values = self.rnn(self.embed(tokens))[0]
        for name in ("rnn", "fc1", "bn1"):
            values = values if name == "rnn" else self.get_submodule(name)(values)
            values = self.relu(values) if name == self.place else values
        logits: torch.Tensor = self.fc2(values)
        return logits


@pytest.mark.parametrize("place", ["bn1", "fc1", "rnn"])
def test_an_activation_among_norms_is_asked_for_part_by_part(place: str) -> None:
    model = Normed(place).eval()
    modules, settings = modules_of(model), list[str]()
    for part in ("bn1", "fc1", "rnn"):
        with pytest.raises(SettingNeeded, match=r"module relu \(ReLU\) may be applied") as caught:
            read(model.state_dict(), *settings, modules=modules)
        assert caught.value.key == f"head_activation.{part}"
        assert set(caught.value.choices) == {"relu", "linear"}
        settings.append(f"head_activation.{part}={'relu' if part == place else 'linear'}")
        if part == place:
            break
    network = read(model.state_dict(), *settings, modules=modules).network
    tokens = ids(V)
    with torch.inference_mode():
        expected = model(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("place", ["bn1", "fc1"])
def test_what_follows_a_stage_or_the_norm_behind_it_is_asked_for_by_name(place: str) -> None:
    model, settings = Normed(place).eval(), ["norm_epsilon=1e-5"]
    for part in ("fc1", "bn1"):
        with pytest.raises(SettingNeeded, match=f"an activation may follow {part}") as caught:
            read(model.state_dict(), *settings)
        assert caught.value.key == f"head_activation.{part}"
        settings.append(f"head_activation.{part}={'relu' if part == place else 'linear'}")
        if part == place:
            break
    network, tokens = read(model.state_dict(), *settings).network, ids(V)
    with torch.inference_mode():
        expected = model(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


class Bent(nn.Module):
    """A function of a model's own."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(values)


BENT: dict[str, Callable[[], list[nn.Module]]] = {
    "head_activation.head.0": lambda: [nn.Linear(H, 8), Bent(), nn.LayerNorm(8), nn.Linear(8, V)],
    "head_activation": lambda: [nn.LayerNorm(H), Bent(), nn.Dropout(), nn.Linear(H, V)],
}


@pytest.mark.parametrize("key", BENT)
def test_a_class_of_its_own_in_a_sequence_may_be_an_activation(key: str) -> None:
    embed, rnn, head = nn.Embedding(V, E), nn.GRU(E, H), nn.Sequential(*BENT[key]())
    model = nn.ModuleDict({"embed": embed, "rnn": rnn, "head": head}).eval()
    randomise(model)
    with pytest.raises(SettingNeeded, match=r"module head.1 \(Bent\) may be an act") as caught:
        read(model.state_dict(), modules=modules_of(model))
    assert caught.value.key == key
    reading, tokens = read(model.state_dict(), f"{key}=relu", modules=modules_of(model)), ids(V)
    assert not any("Bent" in assumed for assumed in reading.assumptions)
    with torch.inference_mode():
        expected = head(rnn(embed(tokens))[0]).log_softmax(-1)
    torch.testing.assert_close(logprobs(reading.network, tokens), expected, rtol=0, atol=1e-4)

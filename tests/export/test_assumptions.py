"""What a reading takes for granted, where a model does something else.

Every model is run in PyTorch: the network that is read from it differs, and `assumed` says in what.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recognition import ids, logprobs, modules_of, randomise, read
from torch import Tensor, nn
from torch.nn import functional
from unrolled_export.errors import CheckpointError, SettingError, SettingNeeded
from unrolled_export.readers.pytorch_files.module_info import Module
from unrolled_export.readers.pytorch_files.module_tree import find_model
from unrolled_export.readers.pytorch_files.torch_file import read_tree
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import Reading, read_state_dict
from unrolled_export.readers.tensors import Tensors

V, H = 11, 6
APPLIED = "is taken to apply its modules one after another and nothing else"
UNSEEN = "no residual connections, gates or scalings"


def is_right(model: nn.Module, reading: Reading) -> bool:
    tokens = ids(V)
    with torch.inference_mode():
        expected = model.eval()(tokens).log_softmax(-1)
    return torch.allclose(logprobs(reading.network, tokens), expected, rtol=0, atol=1e-4)


class Usual(nn.Module):
    """An embedding, a layer and a head."""

    def __init__(self, rnn: nn.Module | None = None, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, H) if embed is None else embed
        self.rnn = nn.GRU(H, H) if rnn is None else rnn
        self.fc = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.rnn(self.embed(tokens))[0])
        return logits


class Summed(Usual):
    """What the layer reads is added to what it puts out."""

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.embed(tokens)
        logits: Tensor = self.fc(self.rnn(values)[0] + values)
        return logits


GRU = type("GRU", (Summed,), {})
CharDropout = type("CharDropout", (Summed,), {})
ModelWithLoss = type("ModelWithLoss", (Summed,), {})
NetDP = type("NetDP", (Summed,), {})


@pytest.mark.parametrize("kind", [GRU, CharDropout, ModelWithLoss, NetDP])
def test_a_model_whose_class_is_called_like_a_known_one(kind: type[nn.Module]) -> None:
    model = kind()
    reading = read(model.state_dict(), modules=modules_of(model))
    assert not is_right(model, reading)
    name = "the model's own GRU" if kind is GRU else kind.__name__
    assert f"{name} {APPLIED}" in reading.assumptions


class LSTMCell(nn.Module):
    """Its gates are in another order than PyTorch's; runs over a text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.zeros(4 * H, H)) for _ in range(2))
        self.bias_ih, self.bias_hh = (nn.Parameter(torch.zeros(4 * H)) for _ in range(2))

    def forward(self, values: Tensor) -> tuple[Tensor]:
        hidden = cell = torch.zeros(H)
        outputs = []
        for value in values:
            gates = functional.linear(value, self.weight_ih, self.bias_ih)
            gates = gates + functional.linear(hidden, self.weight_hh, self.bias_hh)
            i, f, o, g = gates.chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return (torch.stack(outputs),)


class Embedding(nn.Embedding):
    """Scales what it looks up."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


PARTS: dict[str, tuple[Callable[[], Usual], str]] = {
    "a cell": (
        lambda: Usual(LSTMCell()),
        "the model's own LSTMCell computes as nn.LSTMCell",
    ),
    "an embedding": (
        lambda: Usual(embed=Embedding(V, H)),
        "the model's own Embedding computes as nn.Embedding",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_part_whose_class_is_called_like_one_of_pytorch(case: str) -> None:
    make, phrase = PARTS[case]
    model = make()
    reading = read(model.state_dict(), modules=modules_of(model))
    assert not is_right(model, reading)
    assert phrase in reading.assumptions


@pytest.mark.parametrize(
    ("name", "settings"), [("ReLU", ["head_activation=relu"]), ("Softmax", [])]
)
def test_a_function_whose_class_is_called_like_one_of_pytorch(
    name: str, settings: list[str]
) -> None:
    model = Usual()
    modules = {**modules_of(model), "part": Module(f"model.{name}", {})}
    reading = read(model.state_dict(), *settings, modules=modules)
    assert f"the model's own {name} computes as nn.{name}" in reading.assumptions


def test_classes_of_torchscript_are_those_of_pytorch() -> None:
    mangled = Module("__torch__.torch.nn.modules.linear.___torch_mangle_3.Linear", {})
    assert mangled.torch_class == mangled.class_name == "Linear"
    assert Module("__torch__.model.Linear", {}).torch_class is None


def test_a_cell_of_a_state_dict() -> None:
    model = Usual(LSTMCell())
    reading = read(model.state_dict())
    assert not is_right(model, reading)
    assert "the cells compute as nn.LSTMCell (gates i, f, g, o)" in reading.assumptions
    assert not any("cells" in phrase for phrase in read(Usual().state_dict()).assumptions)


def test_a_sum_in_a_state_dict() -> None:
    model = Summed()
    reading = read(model.state_dict())
    assert not is_right(model, reading)
    assert UNSEEN in reading.assumptions


class Parallel(nn.Module):
    """Two layers that read the same and whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.rnns = nn.ModuleList([nn.GRU(H, H), nn.GRU(H, H)])
        self.fc = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        one, other = (rnn(self.embed(tokens))[0] for rnn in self.rnns)
        logits: Tensor = self.fc(one + other)
        return logits


class Learned(Usual):
    """Its first states are learned, and go through functions."""

    def __init__(self, rnn: nn.RNNBase, **shown: Callable[[Tensor], Tensor]) -> None:
        super().__init__(rnn)
        self.first = nn.ParameterDict({name: torch.ones(1, H) for name in shown})
        self.shown = shown
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        states: list[Any] = [shown(self.first[name]) for name, shown in self.shown.items()]
        if isinstance(self.rnn, nn.LSTM):
            states = [(states[0], states[-1])]
        logits: Tensor = self.fc(self.rnn(self.embed(tokens), *states)[0])
        return logits


def _as_it_is(state: Tensor) -> Tensor:
    return state


FIRST: dict[str, tuple[Callable[[], Learned], bool, str]] = {
    "for h and c": (
        lambda: Learned(nn.LSTM(H, H), h0=_as_it_is),
        False,
        "the first state is first.h0 unchanged, and that of c is zero",
    ),
    "for both": (
        lambda: Learned(nn.LSTM(H, H), h0=_as_it_is, c0=_as_it_is),
        True,
        "the first state is first.h0 and first.c0 unchanged",
    ),
    "through a function": (
        lambda: Learned(nn.GRU(H, H), init_hidden=torch.tanh),
        False,
        "the first state is first.init_hidden unchanged",
    ),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", FIRST)
def test_learned_first_states(case: str, pickled: bool) -> None:
    make, right, phrase = FIRST[case]
    model = make()
    reading = read(model.state_dict(), modules=modules_of(model) if pickled else None)
    assert is_right(model, reading) == right
    assert phrase in reading.assumptions


class Repeated(nn.Module):
    """One layer, applied several times."""

    def __init__(self, rnn: nn.Module, *names: str, times: int) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(V, H), nn.Linear(H, V)
        self.rnns = nn.ModuleDict(dict.fromkeys(names, rnn))
        self.rnn, self.times = [rnn], times
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.embed(tokens)
        for _ in range(self.times):
            values = self.rnn[0](values)[0]
        logits: Tensor = self.fc(values)
        return logits


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("rnn", [nn.LSTM(H, H), nn.GRU(H, H, 2)])
def test_layers_that_share_their_weights(rnn: nn.Module, pickled: bool) -> None:
    model = Repeated(rnn, "0", "1", "2", times=3)
    modules = {
        path: Module(f"torch.nn.{type(module).__name__}", {})
        for path, module in model.named_modules(remove_duplicate=False)
    }
    reading = read(model.state_dict(), modules=modules if pickled else None)
    assert is_right(model, reading)
    assert reading.network.parameters == sum(it.numel() for it in model.parameters())


def test_a_layer_under_another_name() -> None:
    model = Repeated(nn.LSTM(H, H), "one", "other", times=1)
    reading = read(model.state_dict())
    assert is_right(model, reading)
    phrase = "rnns.other is rnns.one under another name, no further layer"
    assert phrase in reading.assumptions
    again = Repeated(nn.LSTM(H, H), "one", "other", times=2)
    assert not is_right(again, read(again.state_dict()))


HEADLESS = {
    "a state dict": {"embed.weight": "embed.weight"},
    "fastai's encoder": {"embed.weight": "encoder.weight", "copy": "encoder_dp.emb.weight"},
}


@pytest.mark.parametrize("case", HEADLESS)
def test_a_file_without_a_head(case: str) -> None:
    model, names = Usual(), HEADLESS[case]
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "rnn" in name}
    tensors |= dict.fromkeys(names.values(), model.embed.weight.data)
    reading = read(tensors)
    assert not is_right(model, reading)
    weight = names["embed.weight"]
    phrase = f"the file has no head of its own: it is {weight} again, without bias"
    assert phrase in reading.assumptions
    for key in ("tied", "tie_weights", "args.share_decoder_input_output_embed"):
        with pytest.raises(
            CheckpointError, match=f"=False, but the file has no head beside {weight}"
        ):
            read(tensors, hints={key: False})


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_that_shares_the_weights_of_the_embedding(bias: bool) -> None:
    model = Usual()
    model.fc = nn.Linear(H, V, bias=bias)
    randomise(model)
    model.fc.weight = model.get_parameter("embed.weight")
    reading = read(model.state_dict(), hints={"tied": False})
    assert is_right(model, reading)
    assert not any("no head of its own" in phrase for phrase in reading.assumptions)


def test_layers_side_by_side() -> None:
    model = Parallel()
    reading = read(model.state_dict())
    assert not is_right(model, reading)
    assert "each recurrent module reads what the one before it puts out" in reading.assumptions


WITHOUT_CLASS: dict[str, Callable[[Usual], object]] = {
    "a dict": lambda it: {"embed": it.embed, "rnn": it.rnn, "fc": it.fc},
    "a list": lambda it: [it.embed, it.rnn, it.fc],
    "one module": lambda it: {
        "embed": it.embed.state_dict(),
        "rnn": it.rnn,
        "fc": it.fc.state_dict(),
    },
    "nn.ModuleDict": lambda it: nn.ModuleDict({"embed": it.embed, "rnn": it.rnn, "fc": it.fc}),
    "nn.ModuleList": lambda it: nn.ModuleList([it.embed, it.rnn, it.fc]),
}


@pytest.mark.parametrize("case", WITHOUT_CLASS)
def test_modules_without_a_model_around_them(case: str, tmp_path: Path) -> None:
    model = Summed()
    path = tmp_path / "model.pt"
    torch.save(WITHOUT_CLASS[case](model), path)
    settings = Settings(allow_pickle=True)
    found = find_model(path, read_tree(path, True), settings)
    reading = read_state_dict(
        Tensors(path, found.arrays), settings, modules=found.modules, hints=found.hints
    )
    assert not is_right(model, reading)
    assert UNSEEN in reading.assumptions
    assert any("else --set head_activation=relu" in phrase for phrase in reading.assumptions)


class First(nn.Module):
    """The outputs of a layer, without its states."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


@pytest.mark.parametrize("key", ["nonlinearity", "args.nonlinearity", "model_config.nonlinearity"])
def test_a_nonlinearity_said_beside_the_model(key: str) -> None:
    model = Usual(nn.RNN(H, H))
    settings = ["head_activation=linear"]
    reading = read(model.state_dict(), *settings, hints={key: "relu"})
    assert not is_right(model, reading)
    assert reading.assumptions[0] == (
        f"the recurrent layers apply relu, as {key} says (else --set nonlinearity=tanh)"
    )
    chosen = read(model.state_dict(), *settings, "nonlinearity=tanh", hints={key: "relu"})
    assert is_right(model, chosen)


def test_a_nonlinearity_of_another_part() -> None:
    model = Usual(nn.RNN(H, H))
    with pytest.raises(SettingNeeded, match="a plain RNN, whose nonlinearity"):
        read(model.state_dict(), hints={"config.mlp.nonlinearity": "relu"})


def test_a_setting_that_the_module_contradicts() -> None:
    model = Usual(nn.RNN(H, H, nonlinearity="relu"))
    modules = modules_of(model)
    with pytest.raises(SettingError, match="nonlinearity=tanh: module rnn has relu"):
        read(model.state_dict(), "nonlinearity=tanh", modules=modules)
    assert is_right(model, read(model.state_dict(), "nonlinearity=relu", modules=modules))


@pytest.mark.parametrize("name", ["scale", "temperature", "num_heads"])
def test_a_number_that_may_be_a_factor(name: str) -> None:
    tensors = {**Usual().state_dict(), name: torch.tensor(4)}
    with pytest.raises(CheckpointError, match=rf"tensors left over: {name} \[\]"):
        read(tensors)


@pytest.mark.parametrize(
    "name", ["bn.num_batches_tracked", "n_averaged", "ema.num_updates", "global_step", "epoch"]
)
def test_a_number_that_counts(name: str) -> None:
    model = Usual()
    reading = read({**model.state_dict(), name: torch.tensor(4)})
    assert is_right(model, reading)
    assert f"without {name} (a counter)" in reading.text


def test_a_sequence_hides_nothing_but_classes_of_its_own() -> None:
    model = nn.Sequential(nn.Embedding(V, H), nn.GRU(H, H), First(), nn.Linear(H, V))
    randomise(model)
    reading = read(model.state_dict(), modules=modules_of(model))
    assert is_right(model, reading)
    assert reading.assumptions == ("First is taken to change nothing",)

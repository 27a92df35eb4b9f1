"""State dicts as published projects lay them out, against their models in PyTorch.

Every model is written anew after the project's description; each is run on one text, and the
network that is read from its tensors has to give the same log-probabilities.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.recognition import StateDict, ids, logprobs, modules_of, randomise, read, trained
from torch import Tensor, nn
from torch.nn import functional
from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.network import Cell, Dense, Network

V, E, H = 11, 6, 7


class Model(nn.Module):
    """A language model over ids [T], sequence first."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [T, V]."""
        raise NotImplementedError


def check(model: Model, network: Network) -> None:
    tokens = ids(network.vocabulary_size)
    model.eval()
    with torch.inference_mode():
        expected = model(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


# --- pytorch/examples, word_language_model ------------------------------------------------------


class RNNModel(Model):
    def __init__(self, rnn_type: str, layers: int, tie_weights: bool) -> None:
        super().__init__()
        width = H if tie_weights else E
        self.drop = nn.Dropout(0.5)
        self.encoder = nn.Embedding(V, width)
        self.rnn: nn.RNNBase
        if rnn_type in ("LSTM", "GRU"):
            self.rnn = getattr(nn, rnn_type)(width, H, layers, dropout=0.5 if layers > 1 else 0)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[rnn_type]
            self.rnn = nn.RNN(width, H, layers, nonlinearity=nonlinearity)
        self.decoder = nn.Linear(H, V)
        self.rnn_type, self.nhid, self.nlayers = rnn_type, H, layers
        randomise(self)
        if tie_weights:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.drop(self.encoder(tokens)))
        logits: Tensor = self.decoder(self.drop(hidden))
        return logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rnn_type", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_word_language_model(rnn_type: str, tied: bool) -> None:
    model = RNNModel(rnn_type, 2, tied)
    reading = read(model.state_dict(), modules=modules_of(model))
    assert reading.network.cell == Cell(rnn_type.lower())
    assert reading.network.parameters == trained(model)
    assert reading.text.endswith("tied to the embedding") == tied
    nothing = "nothing without weights (an activation, a norm) between"
    assert reading.assumptions == (
        f"{nothing} encoder and rnn (else --set input_activation=relu)",
        f"{nothing} rnn and decoder (else --set head_activation=relu)",
        "RNNModel is taken to apply its modules one after another and nothing else",
    )
    check(model, reading.network)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_word_language_model_of_a_plain_rnn_without_its_modules(nonlinearity: str) -> None:
    model = RNNModel(f"RNN_{nonlinearity.upper()}", 1, False)
    with pytest.raises(SettingNeeded, match="belongs to a plain RNN") as caught:
        read(model.state_dict())
    assert (caught.value.key, caught.value.choices) == ("nonlinearity", ("tanh", "relu"))
    check(model, read(model.state_dict(), f"nonlinearity={nonlinearity}").network)
    hinted = read(model.state_dict(), hints={"args.rnn_type": f"RNN_{nonlinearity.upper()}"})
    check(model, hinted.network)


# --- awd-lstm-lm and fastai --------------------------------------------------------------------


class AwdLstm(Model):
    """Three modules, the last as wide as the embedding, with which the head shares weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(V, E)
        self.rnns = nn.ModuleList([nn.LSTM(E, 9), nn.LSTM(9, 8), nn.LSTM(8, E)])
        self.decoder = nn.Linear(E, V)
        randomise(self)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.encoder(tokens)
        for rnn in self.rnns:
            values, _ = rnn(values)
        logits: Tensor = self.decoder(values)
        return logits


def stale(tensor: Tensor) -> Tensor:
    """What a dropout of half the weights leaves."""
    return functional.dropout(tensor, 0.5)


def awd_names(model: AwdLstm, with_stale: bool) -> StateDict:
    tensors = dict(model.state_dict())
    for layer in range(3):
        for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            tensor = tensors.pop(f"rnns.{layer}.{field}_l0")
            raw = "_raw" if field == "weight_hh" else ""
            tensors[f"rnns.{layer}.module.{field}_l0{raw}"] = tensor
            if raw and with_stale:
                tensors[f"rnns.{layer}.module.{field}_l0"] = stale(tensor)
    return tensors


@pytest.mark.parametrize("with_stale", [False, True])
def test_awd_lstm(with_stale: bool) -> None:
    model = AwdLstm()
    reading = read(awd_names(model, with_stale))
    assert [layer.output_size for layer in reading.network.layers] == [9, 8, E]
    assert reading.network.parameters == trained(model)
    assert ("what weight drop left" in reading.text) == with_stale
    check(model, reading.network)


def fastai_names(model: AwdLstm, with_stale: bool) -> StateDict:
    tensors = dict(model.state_dict())
    encoder = tensors.pop("encoder.weight")
    named = {"0.encoder.weight": encoder, "0.encoder_dp.emb.weight": encoder.clone()}
    for name, tensor in tensors.items():
        if name.startswith("decoder"):
            named[f"1.{name}"] = tensor
            continue
        module, field = name.rsplit(".", 1)
        if field == "weight_hh_l0":
            named[f"0.{module}.weight_hh_l0_raw"] = tensor
            tensor = stale(tensor)
        if field != "weight_hh_l0" or with_stale:
            named[f"0.{module}.module.{field}"] = tensor
    return named


@pytest.mark.parametrize("with_stale", [False, True])
@pytest.mark.parametrize("as_safetensors", [False, True])
def test_fastai(with_stale: bool, as_safetensors: bool) -> None:
    model = AwdLstm()
    tensors = fastai_names(model, with_stale)
    # Safetensors keeps its tensors in an order of its own.
    reading = read(dict(sorted(tensors.items())) if as_safetensors else tensors)
    assert reading.network.parameters == trained(model)
    assert ("what weight drop left" in reading.text) == with_stale
    check(model, reading.network)


def test_fastai_encoder_alone() -> None:
    tensors = fastai_names(AwdLstm(), True)
    alone = {name: tensor for name, tensor in tensors.items() if not name.startswith("1.")}
    # Without a bias, tied weights are the whole head.
    assert "no bias, tied to the embedding" in read(alone).text


# --- flair -------------------------------------------------------------------------------------


class FlairModel(Model):
    def __init__(self, nout: int | None) -> None:
        super().__init__()
        self.encoder = nn.Embedding(V, E)
        self.rnn = nn.LSTM(E, H, 1)
        self.proj = None if nout is None else nn.Linear(H, nout)
        self.decoder = nn.Linear(nout or H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values, _ = self.rnn(self.encoder(tokens))
        logits: Tensor = self.decoder(values if self.proj is None else self.proj(values))
        return logits


@pytest.mark.parametrize("nout", [None, 5, H])
def test_flair(nout: int | None) -> None:
    model = FlairModel(nout)
    reading = read(model.state_dict(), hints={"is_forward_lm": True, "hidden_size": H})
    stages = [stage for stage in reading.network.stages if isinstance(stage, Dense)]
    assert len(stages) == (nout is not None)
    assert ("no activation after proj, as in flair" in reading.assumptions) == (nout is not None)
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


def test_flair_backward() -> None:
    with pytest.raises(CheckpointError, match="is_forward_lm=False: it reads a text from its end"):
        read(FlairModel(None).state_dict(), hints={"is_forward_lm": False})


# --- stanza ------------------------------------------------------------------------------------


class PackedLstm(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(E, H, layers)


class CharacterLanguageModel(Model):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.char_emb = nn.Embedding(V, E)
        self.charlstm = PackedLstm(layers)
        self.charlstm_h_init = nn.Parameter(torch.zeros(layers, 1, H))
        self.charlstm_c_init = nn.Parameter(torch.zeros(layers, 1, H))
        self.decoder = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        first = (self.charlstm_h_init, self.charlstm_c_init)
        values, _ = self.charlstm.lstm(self.char_emb(tokens)[:, None], first)
        logits: Tensor = self.decoder(values[:, 0])
        return logits


@pytest.mark.parametrize("layers", [1, 2])
def test_stanza(layers: int) -> None:
    model = CharacterLanguageModel(layers)
    reading = read(model.state_dict())
    assert reading.network.initial is not None
    assert len(reading.network.initial) == 2 * layers
    assert "initial states charlstm_h_init and charlstm_c_init" in reading.text
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


# --- espnet ------------------------------------------------------------------------------------


class EspnetModel(Model):
    def __init__(self, kind: str, layers: int, width: int) -> None:
        super().__init__()
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind]
        self.embed = nn.Embedding(V, width)
        self.rnn = nn.ModuleList([cell(H if layer else width, H) for layer in range(layers)])
        self.lo = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        states: dict[nn.Module, Any] = {}
        logits = []
        for token in tokens:
            values = self.embed(token)
            for cell in self.rnn:
                states[cell] = cell(values, states.get(cell))
                values = states[cell][0] if isinstance(cell, nn.LSTMCell) else states[cell]
            logits.append(self.lo(values))
        return torch.stack(logits)


@pytest.mark.parametrize("width", [E, H])
@pytest.mark.parametrize(("kind", "layers"), [("lstm", 1), ("lstm", 12), ("gru", 2)])
def test_espnet(kind: str, layers: int, width: int) -> None:
    model = EspnetModel(kind, layers, width)
    tensors = {f"predictor.{name}": tensor for name, tensor in model.state_dict().items()}
    # Sorted by text, as safetensors has them, layer 10 comes before layer 2.
    reading = read(dict(sorted(tensors.items())))
    assert len(reading.network.layers) == layers
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


# --- fairseq -----------------------------------------------------------------------------------


class LstmDecoder(Model):
    def __init__(self, out: int, share: bool, residuals: bool = False) -> None:
        super().__init__()
        self.residuals = residuals
        self.embed_tokens = nn.Embedding(V, E)
        self.layers = nn.ModuleList([nn.LSTMCell(E, H), nn.LSTMCell(H, H)])
        self.additional_fc = nn.Linear(H, out) if out != H else None
        self.fc_out = None if share else nn.Linear(out, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        states: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        logits = []
        for token in tokens:
            values = self.embed_tokens(token)
            for cell in self.layers:
                states[cell] = cell(values, states.get(cell))
                values = states[cell][0]
            if self.additional_fc is not None:
                values = self.additional_fc(values)
            if self.fc_out is None:
                logits.append(functional.linear(values, self.embed_tokens.weight))
            else:
                logits.append(self.fc_out(values))
        return torch.stack(logits)


@pytest.mark.parametrize(("out", "share"), [(H, False), (5, False), (E, True)])
def test_fairseq_lstm_lm(out: int, share: bool) -> None:
    model = LstmDecoder(out, share)
    tensors = {f"decoder.{name}": tensor for name, tensor in model.state_dict().items()}
    reading = read(tensors)
    assert "no residual connections, gates or scalings" in reading.assumptions
    assert "the cells compute as nn.LSTMCell (gates i, f, g, o)" in reading.assumptions
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


def test_fairseq_residuals() -> None:
    model = LstmDecoder(H, False, residuals=True)
    with pytest.raises(CheckpointError, match="the LstmDecoder has residuals=True"):
        read(model.state_dict(), modules=modules_of(model))


# --- icefall -----------------------------------------------------------------------------------


class RnnLmModel(Model):
    def __init__(self, tie_weights: bool) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(V, H)
        self.rnn = nn.LSTM(H, H, 2, batch_first=True)
        self.output_linear = nn.Linear(H, V)
        randomise(self)
        if tie_weights:
            self.output_linear.weight = self.input_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        values, _ = self.rnn(self.input_embedding(tokens)[None])
        logits: Tensor = self.output_linear(values)[0]
        return logits


@pytest.mark.parametrize("tied", [False, True])
def test_icefall(tied: bool) -> None:
    model = RnnLmModel(tied)
    reading = read(model.state_dict())
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


# --- one-hot input between two layer norms ------------------------------------------------------


class OneHotLstm(Model):
    """The norms are registered after the recurrent layers, and used around them."""

    def __init__(self) -> None:
        super().__init__()
        self._lstm = nn.LSTM(V, H, 2)
        self._norm_0 = nn.LayerNorm(V, eps=1e-3)
        self._norm_1 = nn.LayerNorm(H, eps=1e-3)
        self._wforward = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values, _ = self._lstm(self._norm_0(functional.one_hot(tokens, V).float()))
        logits: Tensor = self._wforward(self._norm_1(values))
        return logits


@pytest.mark.parametrize("pickled", [True, False])
def test_one_hot_input_between_layer_norms(pickled: bool) -> None:
    model = OneHotLstm()
    modules = modules_of(model) if pickled else {}
    settings = [] if pickled else ["norm_epsilon=1e-03"]
    reading = read(model.state_dict(), *settings, modules=modules)
    assert reading.network.parameters == trained(model)
    check(model, reading.network)


# --- tutorials ---------------------------------------------------------------------------------


class Tutorial(Model):
    """Two recurrent modules by name, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, E)
        self.lstm1 = nn.LSTM(E, 9, batch_first=True)
        self.lstm2 = nn.LSTM(9, H, batch_first=True)
        self.bn = nn.BatchNorm1d(H)
        self.fc = nn.Linear(H, V)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values, _ = self.lstm2(self.lstm1(self.embedding(tokens)[None])[0])
        logits: Tensor = self.fc(self.bn(values[0]))
        return logits


def test_two_modules_and_a_batch_norm() -> None:
    model = Tutorial()
    reading = read(model.state_dict(), "norm_epsilon=1e-05")
    assert reading.network.parameters == trained(model)
    assert reading.network.stages == ()
    assert "without bn.num_batches_tracked (a counter)" in reading.text
    check(model, reading.network)
    check(model, read(model.state_dict(), modules=modules_of(model)).network)

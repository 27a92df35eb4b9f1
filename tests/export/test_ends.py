"""Which of two matrices is the embedding and which the head, where their widths leave it open.

Every model is run in PyTorch, and the network that is read from its tensors has to give the same
log-probabilities: exchanged ends do not.
"""

from __future__ import annotations

import pytest
import torch
from support.recognition import ids, logprobs, modules_of, randomise, read
from torch import Tensor, nn
from unrolled_export.errors import SettingNeeded
from unrolled_export.network import Network

V, H = 11, 7


class Model(nn.Module):
    """Embedding and head are as wide as one another, and neither has a bias."""

    def __init__(self, embedding: str, head: str, rnn: str = "r", *, reverse: bool = False) -> None:
        super().__init__()
        self.names = (embedding, rnn, head)
        parts: dict[str, nn.Module] = {
            embedding: nn.Embedding(V, H),
            rnn: nn.GRU(H, H),
            head: nn.Linear(H, V, bias=False),
        }
        for name in reversed(parts) if reverse else parts:
            parent, _, own = name.rpartition(".")
            if parent and not hasattr(self, parent):
                self.add_module(parent, nn.Module())
            self.get_submodule(parent).add_module(own, parts[name])
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        embedding, rnn, head = map(self.get_submodule, self.names)
        logits: Tensor = head(rnn(embedding(tokens))[0])
        return logits


def check(model: nn.Module, network: Network) -> None:
    tokens = ids(V)
    with torch.inference_mode():
        expected = model(tokens).log_softmax(-1)
    torch.testing.assert_close(logprobs(network, tokens), expected, rtol=0, atol=1e-4)


TOLD = [
    ("tok", "unembed"),
    ("tok", "de_embedding"),
    ("tok", "inverse_embedding"),
    ("encode", "encode_out"),
    ("lin", "lout"),
    ("decoder.embed_tokens", "decoder.w"),
    ("net.charEmb", "net.hidden2out"),
    ("input_table", "w"),
    ("embed", "out_table"),
]
OPEN = [
    ("w2", "w1"),
    ("w1", "w2"),
    ("layer.1", "layer.0"),
    ("a", "b"),
    ("table", "input_like"),
    ("decoder_table", "table"),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("embedding", "head"), TOLD + OPEN)
def test_the_classes_of_a_pickled_model_tell(embedding: str, head: str, reverse: bool) -> None:
    model = Model(embedding, head, reverse=reverse)
    reading = read(model.state_dict(), modules=modules_of(model))
    check(model, reading.network)
    assert not any("by their names" in phrase for phrase in reading.assumptions)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("embedding", "head"), TOLD)
def test_names_of_whole_words_are_an_assumption(embedding: str, head: str, reverse: bool) -> None:
    model = Model(embedding, head, reverse=reverse)
    reading = read(model.state_dict())
    check(model, reading.network)
    assert reading.assumptions[0] == (
        f"{embedding}.weight is the embedding and {head}.weight the head, by their names "
        f"(else --set head={embedding}.weight)"
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("embedding", "head"), OPEN)
def test_names_that_tell_nothing_are_asked_about(embedding: str, head: str, reverse: bool) -> None:
    model = Model(embedding, head, reverse=reverse)
    with pytest.raises(SettingNeeded, match="may each be the head") as caught:
        read(model.state_dict())
    assert caught.value.key == "head"
    assert set(caught.value.choices) == {f"{embedding}.weight", f"{head}.weight"}
    reading = read(model.state_dict(), f"head={head}.weight")
    check(model, reading.network)
    assert not any("by their names" in phrase for phrase in reading.assumptions)


def test_the_user_may_exchange_what_names_tell() -> None:
    model = Model("proj", "embed")
    assert "proj.weight the head" in read(model.state_dict()).assumptions[0]
    check(model, read(model.state_dict(), "head=embed.weight").network)


def test_numbers_of_one_list_tell() -> None:
    model = Model("layers.0", "layers.2", "layers.1", reverse=True)
    reading = read(model.state_dict())
    check(model, reading.network)
    assert not any("by their names" in phrase for phrase in reading.assumptions)


class TwoTables(nn.Module):
    """The weights of the head are a table of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.embed_out = nn.Embedding(V, H), nn.GRU(H, H), nn.Embedding(V, H)
        randomise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        values: Tensor = self.rnn(self.embed(tokens))[0]
        return values @ self.embed_out.weight.T


def test_two_embeddings_of_which_one_is_the_head() -> None:
    model = TwoTables()
    check(model, read(model.state_dict(), modules=modules_of(model)).network)

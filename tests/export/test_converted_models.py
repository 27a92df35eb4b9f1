"""Converted models against the PyTorch models they came from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from support.checkpoints import convert, letters, read_manifest
from torch import nn

NAMES = (
    ("embedding", "rnn", "head"),
    ("encoder", "gru", "decoder"),
    ("char_emb", "lstm", "fc"),
    ("token_embedding_table", "recurrent_module", "_wforward"),
    ("model.embed", "model._lstm", "model.out"),
)


@dataclass(frozen=True)
class Shape:
    """A model to be made up."""

    cell: str
    nonlinearity: str
    vocabulary: int
    embedding: int | None
    hidden: int
    layers: int
    bias: bool
    head_bias: bool
    tied: bool
    names: tuple[str, str, str]
    seed: int

    @property
    def inputs(self) -> int:
        return self.vocabulary if self.embedding is None else self.embedding


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    hidden, tied = draw(st.integers(1, 33)), draw(st.booleans())
    embedding = hidden if tied else draw(st.none() | st.integers(1, 33))
    return Shape(
        cell=draw(st.sampled_from(("rnn", "gru", "lstm"))),
        nonlinearity=draw(st.sampled_from(("tanh", "relu"))),
        vocabulary=draw(st.integers(2, 70)),
        embedding=embedding,
        hidden=hidden,
        layers=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        tied=tied,
        names=draw(st.sampled_from(NAMES)),
        seed=draw(st.integers(0, 2**16)),
    )


class LanguageModel(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        sizes = (shape.inputs, shape.hidden, shape.layers)
        self.embedding = nn.Embedding(shape.vocabulary, shape.inputs)
        self.rnn: nn.RNNBase
        if shape.cell == "rnn":
            self.rnn = nn.RNN(*sizes, nonlinearity=shape.nonlinearity, bias=shape.bias)
        elif shape.cell == "gru":
            self.rnn = nn.GRU(*sizes, bias=shape.bias)
        else:
            self.rnn = nn.LSTM(*sizes, bias=shape.bias)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=shape.head_bias)
        if shape.tied:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, T, V] for ids [B, T], from the zero state."""
        if self.shape.embedding is None:
            inputs = nn.functional.one_hot(ids.T, self.shape.vocabulary).float()
        else:
            inputs = self.embedding(ids.T)
        logits: torch.Tensor = self.head(self.rnn(inputs)[0]).swapaxes(0, 1)
        return logits.log_softmax(-1)

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The state dict under the names that the shape asks for."""
        renamed = dict(zip(("embedding", "rnn", "head"), self.shape.names, strict=True))
        tensors = {}
        for name, tensor in self.state_dict().items():
            module, _, parameter = name.partition(".")
            if module != "embedding" or self.shape.embedding is not None:
                tensors[f"{renamed[module]}.{parameter}"] = tensor.clone()
        return tensors


def options(shape: Shape) -> list[str]:
    settings = []
    if shape.cell == "rnn":
        settings += ["--set", f"nonlinearity={shape.nonlinearity}"]
    if shape.embedding is None and shape.hidden == shape.vocabulary:
        settings += ["--set", "input=one-hot"]
    return settings


def logprobs_in_two_chunks(path: Path, ids: torch.Tensor, cut: int) -> torch.Tensor:
    """What `model.onnx` makes of ids [B, T] from the zero state, run up to `cut` and from it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()[1:]]
    sizes = [value.shape[1] for value in session.get_inputs()[1:]]
    states = [np.zeros((len(ids), size), np.float32) for size in sizes]
    parts = []
    for chunk in (ids[:, :cut], ids[:, cut:]):
        feeds = {"tokens": chunk.numpy(), **dict(zip(names, states, strict=True))}
        nexts = [f"next_{name}" for name in names]
        logits, *states = session.run(["logits", *nexts], feeds)
        parts.append(torch.from_numpy(logits))
    return torch.cat(parts, dim=1).log_softmax(-1)


@settings(max_examples=40)
@given(shape=shapes(), pickled=st.booleans(), rows=st.integers(1, 4), cut=st.integers(1, 39))
def test_logprobs_are_those_of_the_model(shape: Shape, pickled: bool, rows: int, cut: int) -> None:
    torch.manual_seed(shape.seed)
    model = LanguageModel(shape).eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / ("model.pt" if pickled else "model.safetensors")
        (torch.save if pickled else save_file)(model.checkpoint(), checkpoint)
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(letters(shape.vocabulary)))
        arguments = [str(checkpoint), "--vocab", str(vocabulary), *options(shape)]
        exported = convert(arguments, Path(folder) / "models")
        ids = torch.randint(0, shape.vocabulary, (rows, 40))
        found = logprobs_in_two_chunks(exported / "model.onnx", ids, cut)
        manifest = read_manifest(exported)
    with torch.inference_mode():
        assert (found - model(ids)).abs().max() <= 1e-4
    unused = 0 if shape.embedding else model.embedding.weight.numel()
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert manifest.parameters == trained - unused

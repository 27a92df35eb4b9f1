"""Random models in PyTorch, read back from their tensors alone or with their modules.

Whatever the tensors leave open is asked for, and answered truthfully. The network that comes out
has to compute what the model does: a reading that is wrong and asks nothing fails here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import event, given, settings
from support.recognition import StateDict, ids, logprobs, modules_of, randomise, read, trained
from torch import Tensor, nn
from torch.nn import functional
from unrolled_export.errors import SettingNeeded
from unrolled_export.readers.pytorch_files.module_info import Module
from unrolled_export.readers.state_dicts.state_dict import Reading

ACTIVATIONS = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
NORMS = ("layer", "batch", None)
EPSILON = 1e-3


@dataclass(frozen=True)
class Shape:
    """A model to be made up."""

    cell: str
    nonlinearity: str
    vocabulary: int
    embedding: int | None
    dense_in: int | None
    dense_in_name: str
    norm_in: str | None
    widths: tuple[int, ...]
    """Of every recurrent module."""
    layers: int
    """Of every recurrent module."""
    kind: str
    """module, cell or projected"""
    norm_between: str | None
    norm_out: str | None
    dense_out: int | None
    norm_dense: str | None
    """After the dense stage behind the recurrent modules."""
    activation: str
    """After every dense stage."""
    late: bool
    """Whether it is applied to the output of that norm instead."""
    sequential: bool
    """Whether the stages after the recurrent layers are in nn.Sequential."""
    bias: bool
    head_bias: bool
    tied: bool
    names: tuple[str, str, str]
    """Of the embedding, the recurrent modules and the head."""
    prefix: str
    seed: int


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    width = st.integers(3, 6)
    cell = draw(st.sampled_from(("rnn", "gru", "lstm")))
    kinds = ("module", "cell", "projected") if cell == "lstm" else ("module", "cell")
    kind = draw(st.sampled_from(kinds))
    return Shape(
        cell=cell,
        nonlinearity=draw(st.sampled_from(("tanh", "relu"))),
        vocabulary=draw(st.integers(3, 9)),
        embedding=draw(st.none() | width),
        dense_in=draw(st.none() | st.none() | width),
        dense_in_name=draw(st.sampled_from(("dense0", "fc_in", "input_linear"))),
        norm_in=draw(st.sampled_from(NORMS)),
        widths=tuple(draw(st.lists(width, min_size=1, max_size=3))),
        layers=1 if kind == "cell" else draw(st.integers(1, 2)),
        kind=kind,
        norm_between=draw(st.sampled_from(NORMS)),
        norm_out=draw(st.sampled_from(NORMS)),
        dense_out=draw(st.none() | width),
        norm_dense=draw(st.sampled_from(NORMS)),
        activation=draw(st.sampled_from(tuple(ACTIVATIONS))),
        late=draw(st.booleans()),
        sequential=draw(st.booleans()),
        bias=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        names=draw(
            st.sampled_from(
                (
                    ("embedding", "rnn", "head"),
                    ("encoder", "lstm", "decoder"),
                    ("char_emb", "gru", "fc"),
                    ("table", "layers.", "last"),
                )
            )
        ),
        prefix=draw(st.sampled_from(("", "module.", "_orig_mod.model."))),
        seed=draw(st.integers(0, 2**16)),
    )


def make_norm(kind: str | None, size: int) -> nn.Module | None:
    if kind is None:
        return None
    return (nn.LayerNorm if kind == "layer" else nn.BatchNorm1d)(size, eps=EPSILON)


class RandomModel(nn.Module):
    """Its parts in the order of their application, each under the name that `place` gives it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.order: list[str] = []
        self.activated = {shape.dense_in_name}
        """Names of those whose output the activation is applied to."""
        embedding, self.stem, head = shape.names
        width = shape.embedding or shape.vocabulary
        if shape.embedding is not None:
            self.add_module(embedding, nn.Embedding(shape.vocabulary, width))
        if shape.dense_in is not None:
            self.place(shape.dense_in_name, nn.Linear(width, shape.dense_in))
            width = shape.dense_in
        self.place("norm0", make_norm(shape.norm_in, width))
        if self.stem.endswith("."):
            self.add_module(self.stem.rstrip("."), nn.ModuleList())
        for index, hidden in enumerate(shape.widths):
            if index:
                self.place(f"norm{index}", make_norm(shape.norm_between, width))
            self.place(f"{self.stem}{index}", self.recurrent(width, hidden))
            width = self.output_width(hidden)
        self.tail(width, head)
        randomise(self, shape.seed)
        if self.is_tied:
            self.get_submodule(self.head_name).weight = self.get_submodule(embedding).weight

    def place(self, name: str, module: nn.Module | None) -> None:
        if module is not None:
            parent, _, own = name.rpartition(".")
            self.get_submodule(parent).add_module(own, module)
            self.order.append(name)

    def output_width(self, hidden: int) -> int:
        return hidden - 1 if self.shape.kind == "projected" else hidden

    def recurrent(self, inputs: int, hidden: int) -> nn.Module:
        shape = self.shape
        options: dict[str, Any] = {"bias": shape.bias}
        if shape.cell == "rnn":
            options["nonlinearity"] = shape.nonlinearity
        if shape.kind == "cell":
            cells: dict[str, type[nn.Module]] = {
                "rnn": nn.RNNCell,
                "gru": nn.GRUCell,
                "lstm": nn.LSTMCell,
            }
            return cells[shape.cell](inputs, hidden, **options)
        if shape.kind == "projected":
            options["proj_size"] = hidden - 1
        modules: dict[str, type[nn.Module]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        return modules[shape.cell](inputs, hidden, shape.layers, **options)

    def tail(self, width: int, head: str) -> None:
        """What follows the recurrent modules."""
        shape = self.shape
        norm = make_norm(shape.norm_out, width)
        stages: list[tuple[str, nn.Module | None]] = [(f"norm{len(shape.widths)}", norm)]
        if shape.dense_out is not None:
            stages.append(("dense1", nn.Linear(width, shape.dense_out)))
            width = shape.dense_out
            stages.append(("dense_norm", make_norm(shape.norm_dense, width)))
        last = nn.Linear(width, shape.vocabulary, bias=shape.head_bias)
        self.is_tied = shape.tied and width == shape.embedding
        activated = "dense_norm" if shape.late and shape.norm_dense else "dense1"
        if not shape.sequential:
            self.activated.add(activated)
            for name, module in stages:
                self.place(name, module)
            self.head_name = head
            self.add_module(head, last)
            return
        run: list[nn.Module] = []
        for name, module in stages:
            if module is None:
                continue
            self.order.append(f"{head}.{len(run)}")
            run.append(module)
            if name == activated:
                self.activated.add(self.order[-1])
                run += [ACTIVATIONS[shape.activation](), nn.Dropout()]
        self.head_name = f"{head}.{len(run)}"
        self.add_module(head, nn.Sequential(*run, last))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [T, V] for tokens [T]."""
        values = functional.one_hot(tokens, self.shape.vocabulary).double()
        if self.shape.embedding is not None:
            values = self.get_submodule(self.shape.names[0])(tokens)
        for name in self.order:
            module = self.get_submodule(name)
            values = self.run_recurrent(module, values)
            if name in self.activated:
                values = ACTIVATIONS[self.shape.activation]()(values)
        logits: Tensor = self.get_submodule(self.head_name)(values)
        return logits

    def run_recurrent(self, module: nn.Module, values: Tensor) -> Tensor:
        """Outputs [T, M] of any module for inputs [T, N]."""
        if isinstance(module, nn.RNNBase):
            outputs: Tensor = module(values)[0]
            return outputs
        if not isinstance(module, nn.RNNCell | nn.GRUCell | nn.LSTMCell):
            result: Tensor = module(values)
            return result
        state, hidden = None, []
        for value in values:
            state = module(value, state)
            hidden.append(state[0] if isinstance(module, nn.LSTMCell) else state)
        return torch.stack(hidden)


def state_dict(model: RandomModel) -> StateDict:
    return {f"{model.shape.prefix}{name}": value for name, value in model.state_dict().items()}


def prefixed_modules(model: RandomModel) -> dict[str, Module]:
    prefix = model.shape.prefix
    return {f"{prefix}{path}" if path else path: it for path, it in modules_of(model).items()}


def answer(model: RandomModel, key: str) -> str:
    """The truth about the model."""
    shape = model.shape
    order = ",".join(f"{shape.prefix}{name}" for name in model.order)
    whole, _, part = key.partition(".")
    if part and part.removeprefix(shape.prefix) not in model.activated:
        return "linear"
    return {
        "input": "embedding" if shape.embedding else "one-hot",
        "head": f"{shape.prefix}{model.head_name}.weight",
        "norm": "before" if shape.norm_in else "after",
        "order": order,
        "nonlinearity": shape.nonlinearity,
        "norm_epsilon": str(EPSILON),
        "head_activation": shape.activation,
        "input_activation": shape.activation,
    }[whole]


def read_with_answers(
    model: RandomModel, tensors: StateDict, modules: dict[str, Module]
) -> tuple[Reading, list[str]]:
    """The reading, and which settings it needed."""
    asked: list[str] = []
    while len(asked) == len(set(asked)):
        answers = [f"{key}={answer(model, key)}" for key in asked]
        try:
            return read(tensors, *answers, modules=modules), asked
        except SettingNeeded as error:
            asked.append(error.key)
    raise AssertionError(f"asked for {asked[-1]} again")


@settings(max_examples=60)
@given(shape=shapes(), with_modules=st.booleans(), by_name=st.booleans())
def test_what_is_read_computes_what_the_model_does(
    shape: Shape, with_modules: bool, by_name: bool
) -> None:
    model = RandomModel(shape).eval()
    tensors = state_dict(model)
    if by_name:
        # As safetensors has them.
        tensors = dict(sorted(tensors.items()))
    modules = prefixed_modules(model) if with_modules else {}
    reading, asked = read_with_answers(model, tensors, modules)
    event(f"questions: {len(asked)}")
    assert reading.network.parameters == trained(model)
    tokens = ids(shape.vocabulary, 24, shape.seed)
    with torch.inference_mode():
        expected = model.double()(tokens).log_softmax(-1)
    found = logprobs(reading.network, tokens).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

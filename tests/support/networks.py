"""Small networks of every variant, what they compute, and their graphs as onnxruntime runs them.

The oracle is PyTorch's own modules in float64, and where these have none the equations of Keras,
written in its layout: rows of values times kernels, gates i, f, c, o and z, r, h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from unrolled_export.network import (
    Activation,
    Cell,
    Dense,
    Floats,
    Gate,
    Layer,
    LayerNorm,
    Network,
    Stage,
)

Doubles = NDArray[np.float64]
Tokens = NDArray[np.int64]
States = dict[str, NDArray[Any]]

V = 11


@dataclass(frozen=True)
class Weights:
    """Random weights, the same for the same seed."""

    random: np.random.Generator

    def __call__(self, *shape: int, scale: float = 0.5) -> Floats:
        return self.random.normal(0, scale, shape).astype(np.float32)

    def norm(self, size: int) -> LayerNorm:
        return LayerNorm(self(size) + 1, self(size), 1e-3)

    def dense(self, inputs: int, outputs: int, activation: Activation) -> Dense:
        return Dense(self(outputs, inputs), self(outputs), activation)


def network(
    cell: Cell,
    *,
    embedding: int | None = 5,
    sizes: Sequence[int] = (7, 6),
    projections: Sequence[int | None] = (None, None),
    norms: bool = False,
    stages: Callable[[Weights, int], Sequence[Stage]] = lambda weights, size: (),
    gate: Gate = Gate.SIGMOID,
    reset_after: bool = True,
    initial: bool = False,
    seed: int = 5,
) -> Network:
    """A network over V tokens; `stages` makes those behind a top layer of a given output size."""
    weights = Weights(np.random.default_rng(seed))
    table = None if embedding is None else weights(V, embedding)
    layers, width = [], embedding or V
    for index, (size, projection) in enumerate(zip(sizes, projections, strict=False)):
        rows, output = cell.gates * size, projection or size
        # A ReLU network must not grow without end, and hard sigmoids have to reach their ends.
        products = (weights(rows, width), weights(rows, output, scale=0.3))
        arrays = (*products, weights(rows, scale=1.0), weights(rows, scale=1.0))
        projected = None if projection is None else weights(projection, size)
        norm = weights.norm(width) if norms and index else None
        layers.append(Layer(*arrays, projected, norm))
        width = output
    passed = tuple(stages(weights, width))
    width = len(passed[-1].bias) if passed else width
    head = weights(V, width, scale=1.0)
    whole = Network(cell, table, tuple(layers), head, weights(V), 0, passed, gate, reset_after)
    if not initial:
        return whole
    starts = tuple(np.tanh(weights(state.size)) for state in whole.states)
    return Network(**{**vars(whole), "initial": starts})


def of_size(vocabulary: int) -> Network:
    """A tiny network over so many tokens."""
    weights = Weights(np.random.default_rng(vocabulary))
    layer = Layer(weights(16, 3), weights(16, 4), weights(16), weights(16))
    table, head = weights(vocabulary, 3), weights(vocabulary, 4, scale=3.0)
    return Network(Cell.LSTM, table, (layer,), head, weights(vocabulary), 0)


def some_tokens(rows: int, count: int, seed: int = 2) -> Tokens:
    """Random tokens [B, T] of a vocabulary of V."""
    return np.random.default_rng(seed).integers(0, V, (rows, count))


def starts(model: Network, rows: int) -> States:
    """The states before any token."""
    values = model.initial or [np.zeros(state.size, np.float32) for state in model.states]
    return {
        state.input: np.stack([value] * rows)
        for state, value in zip(model.states, values, strict=True)
    }


# --- The oracle --------------------------------------------------------------------------------


@torch.no_grad()
def expected_logprobs(model: Network, tokens: Tokens) -> Doubles:
    """Of what follows each of tokens [B, T], in float64: [B, T, V]."""
    torch_tokens = torch.from_numpy(tokens)
    if model.embedding is None:
        values = nn.functional.one_hot(torch_tokens, V).double()
    else:
        values = nn.functional.embedding(torch_tokens, _double(model.embedding))
    before = starts(model, len(tokens))
    for index, layer in enumerate(model.layers):
        values = _normalised(layer.norm, values) if layer.norm else values
        states = [_double(before[state.input]) for state in model.states_of(index)]
        values = _recurrent(model, layer, values, states)
    for stage in model.stages:
        values = _passed(stage, values)
    logits = _linear(model.head_weight, model.head_bias)(values)
    result: Doubles = logits.log_softmax(-1).numpy()
    return result


def _recurrent(
    model: Network, layer: Layer, values: torch.Tensor, states: list[torch.Tensor]
) -> torch.Tensor:
    """A layer's outputs [B, T, O] for inputs [B, T, I]."""
    if model.gate is Gate.SIGMOID and model.reset_after:
        outputs, _ = _module(model.cell, layer)(
            values, tuple(state[None] for state in states) if len(states) > 1 else states[0][None]
        )
        return torch.as_tensor(outputs)
    step = _keras_lstm if model.cell is Cell.LSTM else _keras_gru
    numpy_states, outputs = [state.numpy() for state in states], []
    for x in values.numpy().swapaxes(0, 1):
        numpy_states = step(model, layer, x, *numpy_states)
        outputs.append(numpy_states[0])
    return torch.from_numpy(np.stack(outputs, axis=1))


def _module(cell: Cell, layer: Layer) -> nn.RNNBase:
    rows, width = layer.weight_ih.shape
    module: nn.RNNBase
    if cell is Cell.LSTM:
        output = layer.weight_hh.shape[1]
        projection = 0 if layer.weight_hr is None else output
        module = nn.LSTM(width, rows // 4, batch_first=True, proj_size=projection)
    elif cell is Cell.GRU:
        module = nn.GRU(width, rows // 3, batch_first=True)
    else:
        nonlinearity = "relu" if cell is Cell.RNN_RELU else "tanh"
        module = nn.RNN(width, rows, batch_first=True, nonlinearity=nonlinearity)
    module = module.double()
    for name, parameter in module.named_parameters():
        parameter.copy_(_double(getattr(layer, name.removesuffix("_l0"))))
    return module


def _keras_lstm(model: Network, layer: Layer, x: Doubles, h: Doubles, c: Doubles) -> list[Doubles]:
    """keras.layers.LSTM; PyTorch's g is its c, and a projection comes as in torch.nn.LSTM."""
    bias = layer.bias_ih.astype(np.float64) + layer.bias_hh
    z_i, z_f, z_c, z_o = np.split(x @ layer.weight_ih.T + h @ layer.weight_hh.T + bias, 4, axis=1)
    gate = _keras_gate(model.gate)
    c = gate(z_f) * c + gate(z_i) * np.tanh(z_c)
    h = gate(z_o) * np.tanh(c)
    return [h if layer.weight_hr is None else h @ layer.weight_hr.T, c]


def _keras_gru(model: Network, layer: Layer, x: Doubles, h: Doubles) -> list[Doubles]:
    """keras.layers.GRU; PyTorch has its r before z, and its h is n."""
    gate = _keras_gate(model.gate)
    x_r, x_z, x_h = np.split(x @ layer.weight_ih.T + layer.bias_ih, 3, axis=1)
    u_r, u_z, u_h = (block.T.astype(np.float64) for block in np.split(layer.weight_hh, 3))
    b_r, b_z, b_h = np.split(layer.bias_hh, 3)
    r, z = gate(x_r + h @ u_r + b_r), gate(x_z + h @ u_z + b_z)
    inner = r * (h @ u_h + b_h) if model.reset_after else (r * h) @ u_h + b_h
    return [z * h + (1 - z) * np.tanh(x_h + inner)]


def _keras_gate(gate: Gate) -> Callable[[Doubles], Doubles]:
    if gate is Gate.SIGMOID:
        return lambda x: 1 / (1 + np.exp(-x))
    divisor = {Gate.HARD_SIGMOID_FIFTH: 5, Gate.HARD_SIGMOID_SIXTH: 6}[gate]
    return lambda x: np.maximum(0, np.minimum(1, x / divisor + 0.5))


def _passed(stage: Stage, values: torch.Tensor) -> torch.Tensor:
    if isinstance(stage, LayerNorm):
        return _normalised(stage, values)
    activations = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
    activation: nn.Module = activations[stage.activation.value]()
    return torch.as_tensor(activation(_linear(stage.weight, stage.bias)(values)))


def _normalised(norm: LayerNorm, values: torch.Tensor) -> torch.Tensor:
    module = nn.LayerNorm(len(norm.weight), norm.epsilon).double()
    module.weight.copy_(_double(norm.weight))
    module.bias.copy_(_double(norm.bias))
    return torch.as_tensor(module(values))


def _linear(weight: Floats, bias: Floats) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0]).double()
    module.weight.copy_(_double(weight))
    module.bias.copy_(_double(bias))
    return module


def _double(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


# --- Graphs --------------------------------------------------------------------------------------


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_engine(
    engine: onnxruntime.InferenceSession, tokens: Tokens, states: Mapping[str, NDArray[Any]]
) -> tuple[Floats, States]:
    """Log-probabilities [B, T, V] of what follows each of tokens [B, T + 1] but the last, in one
    run, and the states before that last one."""
    rows = len(tokens)
    feeds = {
        "pending": tokens[:, 0].astype(np.int32),
        "told": np.ascontiguousarray(tokens[:, 1:].T).astype(np.int32),
        "uniforms": np.zeros((tokens.shape[1] - 1, rows)),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "filtered": np.array(False),
        **states,
    }
    names = [output.name for output in engine.get_outputs()]
    outputs = dict(zip(names, engine.run(names, feeds), strict=True))
    logprobs: Floats = outputs["logprobs"].swapaxes(0, 1)
    return logprobs, {name: outputs[f"next_{name}"] for name in states}


def run_prompt(
    prompt: onnxruntime.InferenceSession, tokens: Tokens, states: Mapping[str, NDArray[Any]]
) -> States:
    """The states after tokens [B, T]."""
    names = [f"next_{name}" for name in states]
    fed = np.ascontiguousarray(tokens.T, np.int32)
    return dict(zip(states, prompt.run(names, {"fed": fed, **states}), strict=True))


def run_portable(
    portable: onnxruntime.InferenceSession, tokens: Tokens, states: Mapping[str, NDArray[Any]]
) -> tuple[Floats, States]:
    """Logits [B, T, V] of tokens [B, T] in one run, and the states after them."""
    names = ["logits", *(f"next_{name}" for name in states)]
    logits, *nexts = portable.run(names, {"tokens": tokens, **states})
    return logits, dict(zip(states, nexts, strict=True))

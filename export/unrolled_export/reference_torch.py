"""The reference in PyTorch's own modules, float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from unrolled_export.network import (
    Activation,
    Cell,
    Floats,
    Gate,
    Layer,
    LayerNorm,
    Network,
    Stage,
)
from unrolled_export.reference import States, Tokens


class TorchReference:
    """The network as nn.Embedding, nn.RNN, nn.GRU or nn.LSTM, nn.LayerNorm and nn.Linear."""

    name = f"torch {torch.__version__.partition('+')[0]}"

    def __init__(self, network: Network) -> None:
        """For a network of which `has_torch_modules` holds."""
        # One row at a time leaves nothing to share, and threads that wait for each other are slow
        # beside anything else that runs.
        torch.set_num_threads(1)
        self._network = network
        embedding = network.embedding
        self._embedding = None if embedding is None else torch.tensor(embedding)
        self._layers = [_recurrent(network.cell, layer) for layer in network.layers]
        self._head = nn.Linear(*reversed(network.head_weight.shape))
        arrays = {"weight": network.head_weight, "bias": network.head_bias}
        self._head.load_state_dict(_tensors(arrays))

    def advance(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        with torch.inference_mode(), warnings.catch_warnings():
            # Projections take a slower path, which is all that this says.
            warnings.filterwarnings("ignore", "LSTM with projections")
            nexts: States = {}
            values = self._embedded(torch.tensor(tokens))
            for index, layer in enumerate(self._layers):
                values = _normalised(self._network.layers[index].norm, values)
                names = [state.input for state in self._network.states_of(index)]
                before = [torch.tensor(states[name], dtype=torch.float32)[None] for name in names]
                values, after = layer(values, tuple(before) if len(before) > 1 else before[0])
                afters = after if isinstance(after, tuple) else (after,)
                nexts |= {name: a[0].numpy() for name, a in zip(names, afters, strict=True)}
            for stage in self._network.stages:
                values = _passed(stage, values)
            return functional.log_softmax(self._head(values), dim=-1).numpy(), nexts

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._embedding is None:
            return functional.one_hot(tokens, self._network.vocabulary_size).float()
        return functional.embedding(tokens, self._embedding)


def has_torch_modules(network: Network) -> bool:
    """Whether PyTorch's own modules compute what the network says."""
    return network.gate is Gate.SIGMOID and (network.reset_after or network.cell is not Cell.GRU)


def _normalised(norm: LayerNorm | None, values: torch.Tensor) -> torch.Tensor:
    if norm is None:
        return values
    weight, bias = torch.tensor(norm.weight), torch.tensor(norm.bias)
    return functional.layer_norm(values, weight.shape, weight, bias, norm.epsilon)


def _passed(stage: Stage, values: torch.Tensor) -> torch.Tensor:
    if isinstance(stage, LayerNorm):
        return _normalised(stage, values)
    product = functional.linear(values, torch.tensor(stage.weight), torch.tensor(stage.bias))
    return _ACTIVATIONS[stage.activation](product)


_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.LINEAR: lambda values: values,
    Activation.RELU: torch.relu,
    Activation.TANH: torch.tanh,
    Activation.SIGMOID: torch.sigmoid,
}


def _recurrent(cell: Cell, layer: Layer) -> nn.RNNBase:
    sizes = (layer.input_size, layer.hidden_size)
    module: nn.RNNBase
    if cell is Cell.LSTM:
        module = nn.LSTM(*sizes, batch_first=True, proj_size=layer.projection_size)
    elif cell is Cell.GRU:
        module = nn.GRU(*sizes, batch_first=True)
    else:
        nonlinearity = cell.removeprefix("rnn_")
        module = nn.RNN(*sizes, batch_first=True, nonlinearity=nonlinearity)
    fields = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    arrays = {f"{name}_l0": getattr(layer, name) for name in fields}
    given = {name: array for name, array in arrays.items() if array is not None}
    module.load_state_dict(_tensors(given))
    return module


def _tensors(arrays: dict[str, Floats]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}

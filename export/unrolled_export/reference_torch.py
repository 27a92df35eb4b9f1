"""The reference in PyTorch's own modules, float32."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.reference import Reference


def torch_reference(network: Network) -> Reference:
    """The network as nn.Embedding, nn.RNN, nn.GRU or nn.LSTM, and nn.Linear."""
    modules = [_recurrent(network.cell, layer) for layer in network.layers]
    head = nn.Linear(*reversed(network.head_weight.shape))
    head.load_state_dict(_tensors({"weight": network.head_weight, "bias": network.head_bias}))

    def logprobs(tokens: NDArray[Any]) -> Floats:
        with torch.inference_mode():
            values = _embedded(network, torch.tensor(tokens))
            for module in modules:
                values, _ = module(values)
            result: Floats = functional.log_softmax(head(values), dim=-1).numpy()
            return result

    return Reference(f"torch {torch.__version__.partition('+')[0]}", logprobs)


def _embedded(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    if network.embedding is None:
        return functional.one_hot(tokens, network.vocabulary_size).float()
    return functional.embedding(tokens, torch.tensor(network.embedding))


def _recurrent(cell: Cell, layer: Layer) -> nn.RNNBase:
    sizes = (layer.input_size, layer.hidden_size)
    module: nn.RNNBase
    if cell is Cell.LSTM:
        module = nn.LSTM(*sizes, batch_first=True)
    elif cell is Cell.GRU:
        module = nn.GRU(*sizes, batch_first=True)
    else:
        nonlinearity = cell.removeprefix("rnn_")
        module = nn.RNN(*sizes, batch_first=True, nonlinearity=nonlinearity)
    arrays = {f"{name}_l0": getattr(layer, name) for name in Layer.__dataclass_fields__}
    module.load_state_dict(_tensors(arrays))
    return module


def _tensors(arrays: dict[str, Floats]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}

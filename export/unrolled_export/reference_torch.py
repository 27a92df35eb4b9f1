"""The reference in PyTorch's own modules, float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.reference import States, Tokens


class TorchReference:
    """The network as nn.Embedding, nn.RNN, nn.GRU or nn.LSTM, and nn.Linear."""

    name = f"torch {torch.__version__.partition('+')[0]}"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._layers = [_recurrent(network.cell, layer) for layer in network.layers]
        self._head = nn.Linear(*reversed(network.head_weight.shape))
        arrays = {"weight": network.head_weight, "bias": network.head_bias}
        self._head.load_state_dict(_tensors(arrays))

    def advance(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        with torch.inference_mode():
            nexts: States = {}
            values = self._embedded(torch.tensor(tokens))
            for index, layer in enumerate(self._layers):
                names = [state.input for state in self._network.states_of(index)]
                before = [torch.tensor(states[name], dtype=torch.float32)[None] for name in names]
                values, after = layer(values, tuple(before) if len(before) > 1 else before[0])
                afters = after if isinstance(after, tuple) else (after,)
                nexts |= {name: a[0].numpy() for name, a in zip(names, afters, strict=True)}
            return functional.log_softmax(self._head(values), dim=-1).numpy(), nexts

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._network.embedding is None:
            return functional.one_hot(tokens, self._network.vocabulary_size).float()
        return functional.embedding(tokens, torch.tensor(self._network.embedding))


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

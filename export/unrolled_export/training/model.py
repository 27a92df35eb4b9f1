"""The network that is trained: embedding, recurrent layers, linear head."""

from __future__ import annotations

import torch
from torch import nn

State = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")


class CharacterModel(nn.Module):
    """A character language model. Parameter names are those of the checkpoint.

    Dropout (a share of activations, 0 up to 1) acts on the embedding, between layers
    and before the head, in training only.
    """

    def __init__(
        self, cell: str, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = _recurrent(cell, embedding, hidden, layers, dropout)
        self.head = nn.Linear(hidden, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Logits [B, T, V] for ids [B, T] and the state after them; None is the zero state."""
        hidden, state = self.rnn(self.dropout(self.embedding(ids)), state)
        return self.head(self.dropout(hidden)), state


def _recurrent(cell: str, inputs: int, hidden: int, layers: int, dropout: float) -> nn.RNNBase:
    between = dropout if layers > 1 else 0.0
    if cell == "lstm":
        return nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=between)
    if cell == "gru":
        return nn.GRU(inputs, hidden, layers, batch_first=True, dropout=between)
    nonlinearity = cell.removeprefix("rnn_")
    return nn.RNN(
        inputs, hidden, layers, nonlinearity=nonlinearity, batch_first=True, dropout=between
    )


def detached(state: State) -> State:
    """The same state, where gradients stop."""
    if isinstance(state, tuple):
        return state[0].detach(), state[1].detach()
    return state.detach()

"""Rows of a vocabulary's weights that stand for no token: what fills them up to a round number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unrolled_export.network import Floats, Network
from unrolled_export.readers.reader import Checkpoint

SETTING = "unused_rows"
DROP = "drop"
_ROUND = (8, 16, 32, 64, 128)
"""What numbers of rows are rounded up to, for the speed of matrix products on GPUs."""


def may_be_unused(tokens: int, rows: int) -> bool:
    """Whether so many rows are the number of tokens, rounded up."""
    return any(rows - tokens in range(1, step) and rows % step == 0 for step in _ROUND)


def without_unused_rows(checkpoint: Checkpoint, tokens: int) -> Checkpoint:
    """The checkpoint with the weights of its first `tokens` tokens, if it has more.

    Their logits stay what they are, and their probabilities add up to 1.
    """
    unused = checkpoint.network.vocabulary_size - tokens
    if unused <= 0:
        return checkpoint
    assumed = f"without the rows of ids from {tokens} to {tokens + unused - 1}, as of no token"
    return replace(
        checkpoint,
        network=_cut(checkpoint.network, tokens),
        assumptions=(*checkpoint.assumptions, assumed),
    )


def _cut(network: Network, tokens: int) -> Network:
    first, *others = network.layers
    if network.embedding is None:
        first = replace(first, weight_ih=_copied(first.weight_ih[:, :tokens]))
    return replace(
        network,
        embedding=None if network.embedding is None else _copied(network.embedding[:tokens]),
        layers=(first, *others),
        head_weight=_copied(network.head_weight[:tokens]),
        head_bias=_copied(network.head_bias[:tokens]),
    )


def _copied(array: Floats) -> Floats:
    return np.ascontiguousarray(array)

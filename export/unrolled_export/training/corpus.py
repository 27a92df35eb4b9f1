"""A text as a ring of character ids, read by parallel streams that never stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


class CorpusError(ValueError):
    """The text cannot be trained on; the message names the file and the remedy."""


@dataclass(frozen=True)
class Corpus:
    """Character ids of a text, its head for training and its tail for validation."""

    characters: tuple[str, ...]
    """The vocabulary in id order: every character of the text, sorted by code point."""
    train: torch.Tensor
    """Shape [N], int64."""
    validation: torch.Tensor
    """Shape [M], int64; empty where nothing was held out."""


def read_corpus(path: Path, validation_share: float) -> Corpus:
    """Read a UTF-8 text; its last `validation_share` (0 up to 1, exclusive) is held out.

    Raises CorpusError where the file is not UTF-8 or too short to predict anything.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 at byte {error.start}") from error
    characters = tuple(sorted(set(text)))
    ids_of = {character: index for index, character in enumerate(characters)}
    ids = torch.tensor([ids_of[character] for character in text], dtype=torch.int64)
    split = len(ids) - round(len(ids) * validation_share)
    if split < 2:
        raise CorpusError(f"{path}: {split} characters to train on; at least 2 are needed")
    return Corpus(characters, ids[:split], ids[split:])


class Streams:
    """`batch_size` readers spaced evenly over a ring of ids.

    Each reader goes on where its last chunk ended, over the end of the text back to the
    start, so the state that a model carries from chunk to chunk always fits what follows.
    """

    def __init__(self, ids: torch.Tensor, batch_size: int, position: int = 0) -> None:
        self._ids = ids
        self._starts = torch.arange(batch_size) * len(ids) // batch_size
        self.position = position

    def next_chunk(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the next `length` steps, each int64 of shape [B, length]."""
        steps = self._starts[:, None] + self.position + torch.arange(length + 1)
        chunk = self._ids[steps % len(self._ids)]
        self.position += length
        return chunk[:, :-1], chunk[:, 1:]

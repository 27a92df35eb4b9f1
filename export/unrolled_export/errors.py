"""What can go wrong in an export. Each message is one line that names the file and the field.

ExportError
├── CheckpointError    the checkpoint cannot be read as a network
│   ├── SettingNeeded  it can, once a `--set` says what the file does not
│   └── PickleNeeded   it can, once `--allow-pickle` permits it
├── SettingError       a `--set` that is unknown, or has a value that is not a choice
├── VocabularyError    tokens that are wrong in themselves or do not fit the weights
├── PrecisionError     the network cannot be exported in the precision asked for
├── TextError          a text to evaluate that is no text, or not of the vocabulary
├── GraphError         a graph cannot be written, or onnxruntime refuses it
├── ReferenceFileError reference outputs that are wrong in themselves or differ from the model's
├── ParityError        a graph does not compute what the reference does
└── RepositoryError    the model has no proper name, or its folder cannot be made
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ExportError(ValueError):
    """An export that ended without writing anything."""


class CheckpointError(ExportError):
    """A checkpoint that cannot be read as a network."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")


class SettingNeeded(CheckpointError):
    """A checkpoint that does not tell everything: a `--set` has to."""

    def __init__(
        self, file: Path, problem: str, key: str, choices: Sequence[str], more: int = 0
    ) -> None:
        """`problem` says what the file leaves open; `choices` are values that would settle it, as
        would `more` others."""
        remedies = [f"--set {key}={choice}" for choice in choices]
        others = [f"{more} more"] if more else []
        super().__init__(file, f"{problem}: add {' or '.join((*remedies, *others))}")
        self.key = key
        self.choices = tuple(choices)


class PickleNeeded(CheckpointError):
    """A checkpoint that holds objects of classes, which only `--allow-pickle` permits to read."""


class SettingError(ExportError):
    """A `--set KEY=VALUE` that the reading does not take."""


class VocabularyError(ExportError):
    """Tokens that cannot be served, or do not fit the weights."""


class PrecisionError(ExportError):
    """A precision that does not fit the network."""


class TextError(ExportError):
    """A text that cannot be evaluated."""


class GraphError(ExportError):
    """A graph that cannot be written or run."""


class ReferenceFileError(ExportError):
    """Reference outputs that cannot be read, or that the model as read does not give."""


class ParityError(ExportError):
    """A graph that does not compute what the reference does."""


class RepositoryError(ExportError):
    """A model folder that cannot be made."""

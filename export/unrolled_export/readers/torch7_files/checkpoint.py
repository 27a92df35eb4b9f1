"""Checkpoints of torch-rnn and char-rnn, in Torch7's serialisation."""

from __future__ import annotations

from pathlib import Path

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.torch7_files.char_rnn import read_char_rnn
from unrolled_export.readers.torch7_files.nn_modules import kind_of
from unrolled_export.readers.torch7_files.t7_file import Table, load
from unrolled_export.readers.torch7_files.torch_rnn import read_torch_rnn

_STARTS = tuple(bytes([kind, 0, 0, 0, 1, 0, 0, 0]) for kind in (3, 4))
"""A table or an object, the first of the file."""


class Torch7File:
    """A `.t7` file of torch-rnn or Karpathy's char-rnn."""

    kind = "a Torch7 file of torch-rnn or char-rnn, .t7"

    def accepts(self, path: Path) -> bool:
        return path.is_file() and (path.suffix == ".t7" or _head(path).startswith(_STARTS))

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        content = load(path)
        if isinstance(content, Table):
            model = content.get("model") or content
            if isinstance(model, Table) and kind_of(model) == "LanguageModel":
                return read_torch_rnn(path, model)
            if content.get("protos") is not None:
                return read_char_rnn(path, content)
        raise CheckpointError(
            path,
            "neither a checkpoint of torch-rnn (with an nn.LanguageModel as `model`) nor of "
            "char-rnn (with `protos`)",
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)

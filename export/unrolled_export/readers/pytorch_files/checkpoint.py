"""A model in a file of `torch.save`: a state dict or a pickled module, whatever is around it."""

from __future__ import annotations

import string
from pathlib import Path

from unrolled_export.readers.json_hints import config_hints
from unrolled_export.readers.pytorch_files.module_tree import FoundModel, find_model
from unrolled_export.readers.pytorch_files.torch_file import is_torch_file, read_tree
from unrolled_export.readers.pytorch_files.vocabulary import find_vocabulary
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import read_state_dict
from unrolled_export.readers.tensors import Tensors

_PRINTABLE_CLASSES = ("CharRNN", "RNN")
_PRINTABLE_PARTS = ({"encoder", "rnn", "decoder"}, {"encoder", "gru", "decoder"})
"""Of github.com/spro/char-rnn.pytorch, whose vocabulary is Python's string.printable."""
_PRINTABLE_ASSUMED = "vocabulary is Python's string.printable, as in char-rnn.pytorch"


class PytorchFile:
    """A file of `torch.save` or `torch.jit.save`, or a pickle of arrays by name."""

    kind = "a PyTorch file (.pt, .pth, .bin, .pkl or the like)"

    def accepts(self, path: Path) -> bool:
        return path.is_file() and is_torch_file(path)

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        tree = read_tree(path, settings.allow_pickle)
        found = find_model(path, tree, settings)
        tensors = Tensors(path, found.arrays)
        hints = {**config_hints(path), **found.hints}
        reading = read_state_dict(tensors, settings, modules=found.modules, hints=hints)
        size = reading.network.vocabulary_size
        vocabulary = find_vocabulary(path, tree, size)
        is_printable = vocabulary is None and _has_printable_tokens(found, size)
        tokens = tuple(string.printable) if is_printable else None
        if vocabulary is not None:
            tokens = vocabulary.tokens
        return Checkpoint(
            reading.network,
            (path,),
            f"{_kind(found)}: {reading.text}",
            tokens,
            vocabulary_place=None if vocabulary is None else vocabulary.name,
            assumptions=(*reading.assumptions, *((_PRINTABLE_ASSUMED,) if is_printable else ())),
        )


def _kind(found: FoundModel) -> str:
    place = "" if found.place == "." else f" at {found.place}"
    if "" in found.modules:
        form = "TorchScript" if found.is_script else "pickled"
        return f"{form} {found.modules[''].class_name}{place}"
    return f"PyTorch state dict{place}"


def _has_printable_tokens(found: FoundModel, size: int) -> bool:
    """Whether the model is of the family whose code fixes the vocabulary."""
    if size != len(string.printable) or "" not in found.modules:
        return False
    parts = found.modules.keys() - {""}
    return found.modules[""].class_name in _PRINTABLE_CLASSES and parts in _PRINTABLE_PARTS

"""What a pickled model tells beside its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SCRIPTED = re.compile(r"^__torch__\.|___torch_mangle_[0-9]+\.")
"""What TorchScript adds to the names of classes."""
_TORCH = ("torch.nn.modules.", "torch.nn.parallel.")


@dataclass(frozen=True)
class Module:
    """A module of a pickled model."""

    full_name: str
    """Of its class, as the file has it: `torch.nn.modules.rnn.LSTM`, `model.CharRNN`."""
    attributes: Mapping[str, object]
    """Its plain attributes: numbers, strings, booleans, None and tuples of these."""

    @property
    def class_name(self) -> str:
        """The last part of its class's name: `LSTM`, `LayerNorm`, `CharRNN`."""
        return self.full_name.rpartition(".")[2]

    @property
    def own_name(self) -> str:
        """Its class's name with its module, without what TorchScript adds: `model.LSTM`."""
        return _SCRIPTED.sub("", self.full_name)

    @property
    def torch_class(self) -> str | None:
        """The class's name where it is one of PyTorch's, rather than somebody's of that name."""
        return self.class_name if self.own_name.startswith(_TORCH) else None


Modules = Mapping[str, Module]
"""By dotted path, "" the model itself, in order of registration; empty for a state dict."""

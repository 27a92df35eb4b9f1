"""Models of PyTorch as readers see them, and what the network read from one computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from unrolled_export.network import Network
from unrolled_export.readers.pytorch_files.module_info import Module
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import Reading, read_state_dict
from unrolled_export.readers.tensors import Tensors
from unrolled_export.reference_numpy import NumpyReference

StateDict = Mapping[str, torch.Tensor]
Modules = dict[str, Module]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights large enough for a distribution that is far from uniform, and no two alike.

    Hidden products make vectors shorter, so that a ReLU network does not grow without end.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            scale = 1.5 * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            if "weight_hh" in name:
                tensor.mul_(0.9 / torch.linalg.matrix_norm(tensor, 2))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)


def modules_of(model: nn.Module) -> Modules:
    """What a pickle of the model tells of its modules."""
    plain = (int, float, str, bool, tuple, type(None))
    return {
        path: Module(
            f"{type(module).__module__}.{type(module).__qualname__}",
            {key: value for key, value in vars(module).items() if isinstance(value, plain)},
        )
        for path, module in model.named_modules()
    }


def read(
    tensors: StateDict,
    *settings: str,
    modules: Mapping[str, Module] | None = None,
    hints: Mapping[str, object] | None = None,
) -> Reading:
    """Read a state dict; every setting has to be one that is asked for."""
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    parsed = Settings(settings)
    file = Tensors(Path("model.pt"), arrays)
    reading = read_state_dict(file, parsed, modules=modules or {}, hints=hints or {})
    parsed.check_all_used()
    return reading


def logprobs(network: Network, ids: torch.Tensor) -> torch.Tensor:
    """What the network makes of ids [T] from its first states: [T, V]."""
    first = network.initial or tuple(np.zeros(state.size, np.float32) for state in network.states)
    states = {
        state.input: values[None] for state, values in zip(network.states, first, strict=True)
    }
    found, _ = NumpyReference(network).advance(ids[None].numpy(), states)
    return torch.from_numpy(found[0])


def trained(model: nn.Module) -> int:
    """Trained numbers, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def ids(vocabulary: int, count: int = 30, seed: int = 1) -> torch.Tensor:
    """Random tokens [T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (count,), generator=generator)

"""Checkpoints of a training run: safetensors for tensors, JSON for everything else.

A folder holds the best model so far (`model.safetensors`, `model.json`: all that
`unrolled-export convert` reads) and what it takes to go on as if nothing had happened
(`resume.safetensors`, `resume.json`: parameters, optimizer moments, carried state and
random generator after the last full epoch).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unrolled_export.training.model import State


class ResumeError(ValueError):
    """The run cannot be resumed; the message names the file and the reason."""


@dataclass
class Progress:
    """How far a run has come."""

    updates: int = 0
    best: float = float("inf")
    """Least validation loss so far, in nats per character."""
    train: list[tuple[int, float]] = field(default_factory=list)
    """(update, nats per character) of every chunk."""
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(update, nats per character) of every epoch."""


def save_best(folder: Path, model: torch.nn.Module, description: dict[str, object]) -> None:
    """Write the model that `unrolled-export convert` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / "model.safetensors", dict(model.state_dict()))
    _write_json(folder / "model.json", description)


def save_resume(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    progress: Progress,
    recipe: dict[str, Any],
) -> None:
    """Write all that `load_resume` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    parts = state if isinstance(state, tuple) else (state,)
    tensors |= {f"state.{index}": tensor for index, tensor in enumerate(parts)}
    tensors["generator"] = torch.get_rng_state()
    _write_tensors(folder / "resume.safetensors", tensors)
    _write_json(folder / "resume.json", {"recipe": recipe, "progress": asdict(progress)})


def load_resume(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: dict[str, Any],
) -> tuple[Progress, State]:
    """Restore model, optimizer and random generator in place; returns progress and state.

    Raises ResumeError where the folder holds no run, or one with another recipe.
    """
    try:
        record = json.loads((folder / "resume.json").read_text())
        tensors = load_file(folder / "resume.safetensors")
    except FileNotFoundError as error:
        raise ResumeError(f"{error.filename}: no run to resume") from error
    differing = [name for name in recipe if record["recipe"].get(name) != recipe[name]]
    if differing:
        raise ResumeError(f"{folder / 'resume.json'}: made with another {', '.join(differing)}")
    model.load_state_dict(_under(tensors, "model."))
    saved = optimizer.state_dict()
    saved["state"] = _moments(_under(tensors, "optimizer."))
    optimizer.load_state_dict(saved)
    torch.set_rng_state(tensors["generator"])
    parts = [tensor for _, tensor in sorted(_under(tensors, "state.").items())]
    state = (parts[0], parts[1]) if len(parts) == 2 else parts[0]
    record["progress"]["train"] = [tuple(pair) for pair in record["progress"]["train"]]
    record["progress"]["validation"] = [tuple(pair) for pair in record["progress"]["validation"]]
    return Progress(**record["progress"]), state


def _moments(tensors: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".", 1)
        moments.setdefault(int(index), {})[moment] = tensor
    return moments


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    os.replace(partial, path)

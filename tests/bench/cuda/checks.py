"""Whether a device computes what it should: against references, and bit for bit in a batch."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.cuda.models import LARGE, SMALL, SMALL_HALF, Subject

ROWS, STEPS = 5, 64
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02}
"""Largest difference of a log-probability, in nats: over a text, and in fp16 of a step."""
SIZES = (1, 2, 8, 64, 256)
"""Rows of the batches that are compared."""
LARGE_SIZES = (64, 4096)
"""Those of the model that is timed, whose products are made by other kernels."""


@dataclass(frozen=True)
class Check:
    """What was found, and whether it is as it should be."""

    name: str
    value: float
    unit: str
    passed: bool
    detail: dict[str, Any]


def checks(models: Path, device: str) -> Iterator[Check]:
    """All of them; one that ends with an error has not passed, and leaves the others."""
    subjects = ((SMALL, SIZES), (SMALL_HALF, SIZES), (LARGE, LARGE_SIZES))
    making: dict[str, Callable[[str, Path, str], Check]] = {"fp32": _fp32, "fp16": _fp16}
    making |= {f"bits_{it.name}": partial(_bits, it, sizes) for it, sizes in subjects}
    for name, make in making.items():
        try:
            yield make(name, models, device)
        except Exception as error:
            traceback.print_exc()
            detail = {"error": f"{type(error).__name__}: {error}"}
            yield Check(name, math.nan, "", passed=False, detail=detail)


def _fp32(name: str, models: Path, device: str) -> Check:
    error = error_fp32(models, device)
    return Check(name, error, "nats", error <= TOLERANCES["fp32"], {"against": "torch, CPU"})


def _fp16(name: str, models: Path, device: str) -> Check:
    error = error_fp16(models, device)
    detail = {"against": "the same arithmetic in NumPy, each step from the device's state"}
    return Check(name, error, "nats", error <= TOLERANCES["fp16"], detail)


def _bits(subject: Subject, sizes: Sequence[int], name: str, models: Path, device: str) -> Check:
    differing, across = differing_bits(subject, models, device, sizes)
    return Check(name, differing, "rows", differing == 0, {"across_sizes_nats": across})


def text(subject: Subject) -> NDArray[np.int64]:
    """Tokens [B, T + 1]."""
    return np.random.default_rng(2).integers(0, subject.vocabulary, (ROWS, STEPS + 1))


def error_fp32(models: Path, device: str) -> float:
    """Against sequential PyTorch on the CPU, over a text in runs of 8 steps."""
    tokens, runner = text(SMALL), SMALL.runner(models, ROWS, device)
    runner.wants_logprobs[...] = True
    for row in range(ROWS):
        runner.load(row, None)
        runner.pending[row] = tokens[row, 0]
    found = []
    for start in range(0, STEPS, 8):
        runner.told(ROWS, 8)[...] = tokens[:, start + 1 : start + 9].T
        found.append(runner.run(ROWS, 8)[1].copy())
    expected = torch_logprobs(SMALL, tokens[:, :-1])
    return float(np.abs(np.concatenate(found).swapaxes(0, 1) - expected).max())


@torch.no_grad()
def torch_logprobs(subject: Subject, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of what follows each token, [B, T, V]."""
    tensors = {name: torch.from_numpy(array) for name, array in subject.weights().items()}
    rnn = nn.LSTM(subject.embedding, subject.hidden, subject.layers, batch_first=True)
    prefix = "rnn."
    rnn.load_state_dict(
        {name.removeprefix(prefix): it for name, it in tensors.items() if name.startswith(prefix)}
    )
    values = rnn(tensors["embed.weight"][torch.from_numpy(tokens)])[0]
    logits = values @ tensors["out.weight"].T + tensors["out.bias"]
    result: NDArray[np.float32] = logits.log_softmax(-1).numpy()
    return result


def error_fp16(models: Path, device: str) -> float:
    """Against the roundings of fp16 written out in NumPy, a step at a time."""
    subject = SMALL_HALF
    tokens, runner = text(subject), subject.runner(models, ROWS, device)
    runner.wants_logprobs[...] = True
    for row in range(ROWS):
        runner.load(row, None)
        runner.pending[row] = tokens[row, 0]
    states, worst = np.zeros((ROWS, runner.state_size), np.float32), 0.0
    for step in range(STEPS):
        expected = half_logprobs(subject, tokens[:, step], states)
        runner.told(ROWS, 1)[0] = tokens[:, step + 1]
        worst = max(worst, float(np.abs(runner.run(ROWS, 1)[1][0] - expected).max()))
        runner.fetch(range(ROWS))
        states = np.stack([runner.save(row) for row in range(ROWS)])
    return worst


def half_logprobs(
    subject: Subject, tokens: NDArray[np.int64], states: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Of what follows each of tokens [B] fed to states [B, S], [B, V]: operands and sums of the
    layers' products are rounded to float16."""
    tensors = {name: array.astype(np.float64) for name, array in subject.weights().items()}
    parts = np.split(states.astype(np.float64), 2 * subject.layers, axis=1)
    below = tensors["embed.weight"][tokens]
    for layer in range(subject.layers):
        h, c = parts[2 * layer : 2 * layer + 2]
        bias = tensors[f"rnn.bias_ih_l{layer}"] + tensors[f"rnn.bias_hh_l{layer}"]
        if layer:
            below, bias = _half(below), _half(bias)
        inputs = _half(below @ tensors[f"rnn.weight_ih_l{layer}"].T + bias)
        gates = _half(_half(h) @ tensors[f"rnn.weight_hh_l{layer}"].T + inputs)
        i, f, g, o = np.split(gates, 4, axis=1)
        cell = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        below = _sigmoid(o) * np.tanh(cell)
    logits = below @ tensors["out.weight"].T + tensors["out.bias"]
    result: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return result


def _half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float16).astype(np.float64)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-values))
    return result


def differing_bits(
    subject: Subject, models: Path, device: str, sizes: Sequence[int] = SIZES
) -> tuple[int, dict[str, float]]:
    """Batches in which a row has other bits than in the first of their size, and how far the
    log-probabilities of its tokens differ from those in a batch of one."""
    runner = subject.runner(models, max(sizes), device)
    differing, across = 0, {}
    alone = _run_row(runner, subject, 1, 0, others=0)[1]
    for rows in sizes:
        places = sorted({0, rows // 2, rows - 1})
        found = [
            _run_row(runner, subject, rows, place, others=others)
            for place in places
            for others in (1, 2)
        ]
        differing += sum(bits != found[0][0] for bits, _ in found)
        across[str(rows)] = float(np.abs(found[0][1] - alone).max())
    return differing, across


def _run_row(
    runner: Any, subject: Subject, rows: int, place: int, others: int
) -> tuple[bytes, NDArray[np.float32]]:
    """A told row at `place` among `rows`, the others of which are random."""
    random = np.random.default_rng(others)
    told, steps = random.integers(0, subject.vocabulary, (16, rows)), 16
    told[:, place] = np.arange(steps) % subject.vocabulary
    for row in range(rows):
        runner.load(row, None)
        runner.pending[row] = 3 if row == place else told[0, row]
    runner.told(rows, steps)[...] = told
    _, logprobs = runner.run(rows, steps)
    row_logprobs = logprobs[:, place, 0].copy()
    return row_logprobs.tobytes() + runner.save(place).tobytes(), row_logprobs

"""Networks of random weights and their graphs for a device, written without the export command.

Weights come from a seed, so that references are made where they are needed; only graphs are
files. They can be written on another machine: a machine with a device may lack `onnx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from unrolled_server.device_runner import GRAPHS, DeviceConfig, DeviceRunner
from unrolled_server.running import StateSpec

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """An LSTM language model; weights as PyTorch begins with, times `gain`."""

    layers: int
    hidden: int
    vocabulary: int
    fp16: bool
    fused: bool = False
    """Whether layers are the operator LSTM, which cuDNN computes, instead of products."""
    embedding: int = 64
    gain: float = 2.0
    seed: int = 1

    @property
    def name(self) -> str:
        kind = f"{'fp16' if self.fp16 else 'fp32'}{'-fused' if self.fused else ''}"
        return f"lstm-{self.layers}x{self.hidden}-{kind}"

    @property
    def specs(self) -> tuple[StateSpec, ...]:
        names = [f"{kind}_{layer:02d}" for layer in range(self.layers) for kind in "hc"]
        return tuple(StateSpec(name, f"next_{name}", self.hidden) for name in names)

    def weights(self) -> dict[str, Floats]:
        """A PyTorch state_dict: `embed`, `rnn` (torch.nn.LSTM) and `out`; in fp16 they fit."""
        random, bound = np.random.default_rng(self.seed), self.gain / self.hidden**0.5

        def uniform(*shape: int) -> Floats:
            values = random.uniform(-bound, bound, shape).astype(np.float32)
            is_rounded = self.fp16 and len(shape) > 1
            return values.astype(np.float16).astype(np.float32) if is_rounded else values

        tensors = {"embed.weight": uniform(self.vocabulary, self.embedding)}
        for layer in range(self.layers):
            below = self.hidden if layer else self.embedding
            tensors[f"rnn.weight_ih_l{layer}"] = uniform(4 * self.hidden, below)
            tensors[f"rnn.weight_hh_l{layer}"] = uniform(4 * self.hidden, self.hidden)
            tensors[f"rnn.bias_ih_l{layer}"] = uniform(4 * self.hidden)
            tensors[f"rnn.bias_hh_l{layer}"] = uniform(4 * self.hidden)
        tensors["out.weight"] = uniform(self.vocabulary, self.hidden)
        tensors["out.bias"] = uniform(self.vocabulary)
        return tensors

    def runner(
        self, models: Path, rows: int, device: str, *, captures: bool = True
    ) -> DeviceRunner:
        """A runner of the subject's graphs, in which nobody wants distributions."""
        config = DeviceConfig(device, tf32=self.fp16, captures=captures)
        runner = DeviceRunner(models / self.name, self.specs, self.vocabulary, rows, config)
        runner.wants_logprobs[...] = False
        return runner


LARGE = Subject(2, 1024, 256, fp16=True)
FUSED = Subject(2, 1024, 256, fp16=True, fused=True)
SMALL = Subject(2, 128, 96, fp16=False)
SMALL_HALF = Subject(2, 128, 96, fp16=True)
SUBJECTS = (LARGE, FUSED, SMALL, SMALL_HALF)


def prepare(models: Path, subjects: tuple[Subject, ...] = SUBJECTS) -> None:
    """Write the graphs that are not there yet. Raises ImportError without `onnx`."""
    for subject in subjects:
        folder = models / subject.name
        if all((folder / name).is_file() for name in GRAPHS):
            continue
        from bench.cuda.graphs import graphs

        folder.mkdir(parents=True, exist_ok=True)
        for name, content in graphs(subject).items():
            (folder / name).write_bytes(content)

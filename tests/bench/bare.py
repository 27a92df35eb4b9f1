"""The bare loop: onnxruntime over the server's graph, and nothing else."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bench.progress import say
from bench.rate import Rate, per_cpu_second, per_second

STEPS = (1, 4, 8, 16, 32)
THREADS = ((1, False), (0, False), (0, True))
"""Threads of a run (0: one a core), and whether they spin between runs."""
TRIALS = 3
TRIAL_SECONDS = 0.4
FINALISTS = 3
"""By either time."""
MEASURED_SECONDS = 1.0
"""Of each finalist in a round, at most."""


class BareLoop:
    """`rows` rows drawn in runs of `steps` steps, with bound buffers and the same sampling."""

    def __init__(self, model: Path, rows: int, steps: int, threads: int, spin: bool) -> None:
        self._session = open_session(model / "engine.onnx", threads, spin)
        self.name = f"K {steps}, {threads or 'all'} threads, {'' if spin else 'not '}spinning"
        self._rows, self._steps = rows, steps
        self._states = json.loads((model / "manifest.json").read_text())["states"]
        self._inputs, self._outputs = self._arrays()
        self._binding = self._bind()

    def _arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        rows, steps = self._rows, self._steps
        (size,) = (out.shape[-1] for out in self._session.get_outputs() if out.name == "logprobs")
        inputs: dict[str, NDArray[Any]] = {
            "pending": np.zeros(rows, np.int32),
            "told": np.full((steps, rows), -1, np.int32),
            "uniforms": np.random.default_rng(1).random((steps, rows)),
            "temperature": np.ones(rows, np.float32),
            "top_k": np.zeros(rows, np.int32),
            "top_p": np.ones(rows, np.float32),
            "min_p": np.zeros(rows, np.float32),
            "filtered": np.zeros((), np.bool_),
        }
        outputs: dict[str, NDArray[Any]] = {
            "tokens": np.zeros((steps, rows), np.int32),
            "logprobs": np.zeros((steps, rows, size), np.float32),
        }
        for state in self._states:
            inputs[state["input"]] = np.zeros((rows, int(state["shape"][0])), np.float32)
            # A run may write its states where it read them.
            outputs[state["output"]] = inputs[state["input"]]
        return inputs, outputs

    def _bind(self) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in self._inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def measure(self, seconds: float) -> Rate:
        """Run for about `seconds`."""
        tokens = 0
        cpu, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            self._session.run_with_iobinding(self._binding)
            tokens += self._rows * self._steps
        return Rate(tokens, time.perf_counter() - started, time.process_time() - cpu)

    def entropy(self) -> float:
        """Of the distributions of the last run, in nats, their mean."""
        logprobs = self._outputs["logprobs"]
        return float(-(np.exp(logprobs) * logprobs).sum(-1).mean())


def candidates(model: Path, rows: int) -> list[BareLoop]:
    """Loops in the settings that come out best of all, by CPU time or by wall time.

    Which of them is the fastest takes longer to find out: see `fastest`.
    """
    say(f"bare loop of {model.parent.name}: trying settings for {rows} rows")
    loops = [
        BareLoop(model, rows, steps, threads, spin)
        for steps, (threads, spin) in itertools.product(STEPS, THREADS)
    ]
    tried = [[loop.measure(TRIAL_SECONDS) for loop in loops] for _ in range(TRIALS)]
    ranked = [
        sorted(
            zip(loops, zip(*tried, strict=True), strict=True), key=lambda of: -_median(of[1], by)
        )
        for by in (per_cpu_second, per_second)
    ]
    return list(dict.fromkeys(loop for ranking in ranked for loop, _ in ranking[:FINALISTS]))


def fastest(
    by_loop: Sequence[tuple[BareLoop, Sequence[Rate]]], speed: Callable[[Rate], float]
) -> tuple[BareLoop, list[Rate]]:
    """The loop with the best median, and for each round the rate of the one that is the fastest.

    That is the one with the best median of the other rounds: by the best of its own it would
    mostly be the luckiest.
    """
    rounds = len(by_loop[0][1])
    rates = []
    for number in range(rounds):
        others = [place for place in range(rounds) if place != number] or [number]
        _, chosen = max(by_loop, key=lambda of: _median([of[1][at] for at in others], speed))
        rates.append(chosen[number])
    loop, _ = max(by_loop, key=lambda of: _median(of[1], speed))
    return loop, rates


def _median(rates: Iterable[Rate], speed: Callable[[Rate], float]) -> float:
    return median(speed(rate) for rate in rates)


def open_session(graph: Path | bytes, threads: int, spin: bool) -> onnxruntime.InferenceSession:
    """A session on the CPU; 0 threads: one a core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

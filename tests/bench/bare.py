"""The bare loop: onnxruntime over the server's graph, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

from bench.rate import Rate

TRIAL_SECONDS = 0.4


class BareLoop:
    """`rows` rows drawn in runs of `steps` steps, with bound buffers and the same sampling."""

    def __init__(self, model: Path, rows: int, steps: int, threads: int, spin: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        self._session = onnxruntime.InferenceSession(
            model / "engine.onnx", options, providers=["CPUExecutionProvider"]
        )
        manifest = json.loads((model / "manifest.json").read_text())
        self.name = f"K {steps}, {threads or 'all'} threads, {'' if spin else 'not '}spinning"
        self._rows, self._steps = rows, steps
        self._binding = self._session.io_binding()
        self._arrays: list[np.ndarray] = []
        self._bind(manifest)

    def _bind(self, manifest: dict[str, list[dict[str, str]]]) -> None:
        rows, steps = self._rows, self._steps
        size = self._session.get_outputs()[1].shape[-1]
        inputs: dict[str, np.ndarray] = {
            "pending": np.zeros(rows, np.int32),
            "told": np.full((steps, rows), -1, np.int32),
            "uniforms": np.random.default_rng(1).random((steps, rows)),
            "temperature": np.ones(rows, np.float32),
            "top_k": np.zeros(rows, np.int32),
            "top_p": np.ones(rows, np.float32),
            "min_p": np.zeros(rows, np.float32),
            "filtered": np.zeros((), np.bool_),
        }
        outputs: dict[str, np.ndarray] = {
            "tokens": np.zeros((steps, rows), np.int32),
            "logprobs": np.zeros((steps, rows, size), np.float32),
        }
        for state in manifest["states"]:
            shape = (rows, int(state["shape"][0]))
            inputs[state["input"]] = np.zeros(shape, np.float32)
            # A run may write its states where it read them.
            outputs[state["output"]] = inputs[state["input"]]
        self._arrays = [*inputs.values(), *outputs.values()]
        for name, array in inputs.items():
            pointer = array.ctypes.data
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, pointer)
        for name, array in outputs.items():
            pointer = array.ctypes.data
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, pointer)

    def measure(self, seconds: float) -> Rate:
        """Run for about `seconds`."""
        tokens = 0
        cpu, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            self._session.run_with_iobinding(self._binding)
            tokens += self._rows * self._steps
        return Rate(tokens, time.perf_counter() - started, time.process_time() - cpu)


def fastest(model: Path, rows: int) -> tuple[BareLoop, BareLoop]:
    """The fastest settings of steps, threads and spinning: by wall time, and by CPU time.

    Each is tried twice, in turns.
    """
    loops = [
        BareLoop(model, rows, steps, threads, spin)
        for steps in (1, 4, 8, 16)
        for threads, spin in ((1, False), (0, False), (0, True))
    ]
    trials = [[loop.measure(TRIAL_SECONDS) for loop in loops] for _ in range(2)]
    rates = [
        (max(a.per_second, b.per_second), max(a.per_cpu_second, b.per_cpu_second), loop)
        for a, b, loop in zip(*trials, loops, strict=True)
    ]
    by_wall = max(rates, key=lambda rate: rate[0])[2]
    return by_wall, max(rates, key=lambda rate: rate[1])[2]

"""The graphs for a device: steps that are chained there, tokens and states never leaving it.

A run copies one block of told tokens and random numbers to the device, launches its steps one
after the other, waits once, and copies one block of tokens back. On CUDA every step is a CUDA
graph: one launch instead of some forty. They are captured for batches of 1, 2, 4, 8 ... rows, in
the first run of each step at each size, by the thread that runs them. onnxruntime runs a step
three times to capture it (microsoft/onnxruntime#32243); as it reads and writes different
buffers, that changes nothing.

Within a size, rows get the same bits whoever else is there; in batches of another size other
kernels may make the products, and the last bits differ, as they do between devices.

Everything here runs on the CPU as well, which is where it is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unrolled_server.device_memory import (
    EXCLUSIVE,
    Binding,
    Part,
    SharedBlock,
    open_session,
)
from unrolled_server.device_states import ROWS, DeviceStates
from unrolled_server.graphs import check_drawing, reason
from unrolled_server.running import LOGPROBS_BYTES, DeviceError, RowInputs, StateSpec
from unrolled_server.types import MAX_STEPS, Floats, Places, Tokens

STEP = "device.onnx"
FILTERS = "device_filters.onnx"
GRAPHS = (STEP, FILTERS, ROWS)

TRIED = 2
"""Steps of a run that tries a device out: the second reads what the first has made there."""

LARGEST_SORT = 4096
"""Tokens up to which CUDA sorts the rows of a batch together; filters over more run on the CPU."""

GREEDY_DIVISOR = 1e-30
"""In place of a temperature of 0: only the likeliest tokens keep a chance."""
LEAST_TEMPERATURE = 1e-6
"""Positive temperatures below this would overflow; they are greedy in all but name."""


@dataclass(frozen=True)
class DeviceConfig:
    """How graphs are run on a device."""

    device: str
    """cuda, or cpu for tests."""
    tf32: bool = False
    """Whether products of float32 may be made in TF32: in fp16, their weights fit."""
    captures: bool = True
    """Whether steps on CUDA become CUDA graphs."""
    largest_sort: int = LARGEST_SORT


class _Size:
    """What runs of up to `rows` rows read and write besides states."""

    def __init__(self, rows: int, vocabulary: int, device: str) -> None:
        self.rows = rows
        steps = (MAX_STEPS, rows)
        self._inputs = SharedBlock(
            device,
            {
                "uniforms": (np.float64, steps),
                "told": (np.int32, steps),
                "pending": (np.int32, (rows,)),
                "divisor": (np.float32, (rows,)),
                "top_k": (np.int32, (rows,)),
                "top_p": (np.float32, (rows,)),
                "min_p": (np.float32, (rows,)),
            },
        )
        self.inputs = self._inputs.arrays
        self.outputs = SharedBlock(
            device, {"token": (np.int32, steps), "logprob": (np.float32, (*steps, 1))}
        )
        self.logprobs = SharedBlock(device, {"logprobs": (np.float32, (rows, vocabulary))})

    def upload(self, rows: int) -> None:
        """Copy the inputs of `rows` rows to the device; the others are told token 0."""
        self.inputs["told"][:, rows:] = 0
        self.inputs["divisor"][rows:] = 1
        self._inputs.upload()

    def fed(self, step: int) -> Part:
        """What a step feeds."""
        return self.outputs.part("token", step - 1) if step else self._inputs.part("pending")

    def drawing(self, step: int) -> dict[str, Part]:
        """What a token is drawn with."""
        steps = {name: self._inputs.part(name, step) for name in ("told", "uniforms")}
        return {**steps, "divisor": self._inputs.part("divisor")}

    def filtering(self, step: int) -> dict[str, Part]:
        """What FILTERS reads."""
        names = ("top_k", "top_p", "min_p")
        parameters = {name: self._inputs.part(name) for name in names}
        logprobs = self.logprobs.part("logprobs")
        return {**self.drawing(step), **parameters, "logprobs": logprobs}

    def drawn(self, step: int) -> dict[str, Part]:
        """Where a step's token goes."""
        return {name: self.outputs.part(name, step) for name in ("token", "logprob")}


class DeviceRunner(RowInputs):
    """One model's graphs on a device, with room for `rows` rows; to be used like a Runner.

    Raises RunnerError for graphs that cannot be run, DeviceError where they do not run there.
    """

    def __init__(
        self,
        folder: Path,
        states: tuple[StateSpec, ...],
        vocabulary: int,
        rows: int,
        config: DeviceConfig,
    ) -> None:
        self.device = config.device
        self.state_size = sum(spec.size for spec in states)
        self.prompt_rows = 0
        """There is no graph for prompts on a device."""
        self._captures = config.captures
        options = {"use_tf32": str(int(config.tf32)), "enable_cuda_graph": str(int(self._captures))}
        self._filters_here = vocabulary <= config.largest_sort
        filters_device = config.device if self._filters_here else "cpu"
        with EXCLUSIVE:
            self._step = open_session(folder / STEP, config.device, options)
            self._filters = open_session(folder / FILTERS, filters_device, {})
            self._states = DeviceStates(folder, states, rows, config.device)
        check_drawing(STEP, self._step, states, vocabulary)
        self._vocabulary = vocabulary
        self._make_inputs(rows)
        self._sizes: dict[int, _Size] = {}
        self._launches: dict[tuple[int, int, int, int], _Launch] = {}
        self._filterings: dict[tuple[int, int], Binding] = {}

    def try_out(self) -> None:
        """Run one row as turns do, before there are any; nothing of it stays.

        Raises DeviceError where that fails.
        """
        try:
            # A CUDA graph belongs to the thread that captures it: rather to none that goes on.
            with ThreadPoolExecutor(max_workers=1) as thread:
                thread.submit(self._try_runs).result()
        except Exception as error:
            raise DeviceError(f"{STEP}: a run fails on {self.device}: {reason(error)}") from error

    def _try_runs(self) -> None:
        wanted = self.wants_logprobs.copy()
        for filters in (False, True):
            self.load(0, None)
            self.told(1, TRIED).fill(-1)
            self.uniforms(1, TRIED).fill(0.5)
            self.filtered[...], self.wants_logprobs[...] = filters, False
            self.run(1, TRIED)
            self.save(0)
        self.filtered[...], self.wants_logprobs[...] = False, wanted
        self.load(0, None)
        self.pending[0] = 0

    def most_steps(self, rows: int) -> int:
        """Steps that there is room for."""
        if not self.wants_logprobs:
            return MAX_STEPS
        return min(MAX_STEPS, max(1, LOGPROBS_BYTES // (4 * self._vocabulary * rows)))

    def tell(self, told: Tokens, places: Places) -> None:
        """Never called, as `prompt_rows` says."""
        raise NotImplementedError

    def told(self, rows: int, steps: int) -> Tokens:
        """Where the next run reads the told tokens, -1 to draw: [steps, rows]."""
        return self._size(rows).inputs["told"][:steps, :rows]

    def uniforms(self, rows: int, steps: int) -> NDArray[np.float64]:
        """Where the next run reads the random numbers: [steps, rows]."""
        return self._size(rows).inputs["uniforms"][:steps, :rows]

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]:
        """Advance the first `rows` rows by `steps` tokens.

        Returns the tokens [steps, rows] and log-probabilities: [steps, rows, V], or where nothing
        `wants_logprobs` those of the tokens, [steps, rows, 1]. They are good until the next run.
        The last token of each row becomes its pending one.
        """
        with EXCLUSIVE:
            return self._run(self._size(rows), rows, steps)

    def _run(self, size: _Size, rows: int, steps: int) -> tuple[Tokens, Floats]:
        self._states.settle(rows, size.rows)
        self._write_inputs(size, rows)
        sets = self._states.sets(steps)
        if self.filtered or self.wants_logprobs:
            logprobs = self._run_watched(size, rows, sets)
        else:
            self._run_chained(size, sets)
            logprobs = size.outputs.arrays["logprob"][:steps, :rows]
        self._states.advanced(rows, sets[-1][1])
        tokens: Tokens = size.outputs.arrays["token"][:steps, :rows]
        self.pending[:rows] = tokens[-1]
        return tokens, logprobs

    def load(self, row: int, state: Floats | None) -> None:
        """Set the state of a row to `state` [S], or to what it is before any token."""
        self._states.load(row, state)

    def fetch(self, rows: Sequence[int]) -> None:
        """Have the states of rows ready for `save`, all with one copy."""
        with EXCLUSIVE:
            self._states.fetch(rows)

    def save(self, row: int) -> Floats:
        """A copy of a row's state, [S]."""
        with EXCLUSIVE:
            return self._states.save(row)

    def rewind(self, row: int, pending: int) -> None:
        """Take a row back to where it stood before the last run."""
        self._states.rewind(row)
        self.pending[row] = pending

    def move(self, source: int, target: int) -> None:
        """Copy everything that a row keeps between runs from one place to another."""
        self._states.move(source, target)
        self._move_inputs(source, target)

    def _size(self, rows: int) -> _Size:
        """The smallest size that has room: a power of two, or all rows."""
        padded = min(1 << (rows - 1).bit_length(), self.rows)
        if padded not in self._sizes:
            with EXCLUSIVE:
                self._sizes[padded] = _Size(padded, self._vocabulary, self.device)
        return self._sizes[padded]

    def _write_inputs(self, size: _Size, rows: int) -> None:
        inputs, temperature = size.inputs, self.temperature[:rows]
        is_greedy = temperature == 0
        least = np.maximum(temperature, LEAST_TEMPERATURE)
        inputs["divisor"][:rows] = np.where(is_greedy, GREEDY_DIVISOR, least)
        inputs["uniforms"][:, :rows][:, is_greedy] = 0
        for name in ("pending", "top_k", "top_p", "min_p"):
            inputs[name][:rows] = getattr(self, name)[:rows]
        size.upload(rows)

    def _run_chained(self, size: _Size, sets: Sequence[tuple[int, int]]) -> None:
        """Launch all steps, then wait."""
        last = len(sets) - 1
        for step, (read, write) in enumerate(sets):
            self._launch(size, step, read, write).run(waits=step == last)
        size.outputs.download()

    def _run_watched(self, size: _Size, rows: int, sets: Sequence[tuple[int, int]]) -> Floats:
        """Wait for every step, to have its log-probabilities and to filter its tokens."""
        kept = []
        for step, (read, write) in enumerate(sets):
            self._launch(size, step, read, write).run(waits=True)
            if self.wants_logprobs or not self._filters_here:
                size.logprobs.download()
            if self.wants_logprobs:
                kept.append(size.logprobs.arrays["logprobs"][:rows].copy())
            if self.filtered:
                self._filter(size, step)
        size.outputs.download()
        return np.stack(kept) if kept else size.outputs.arrays["logprob"][: len(sets), :rows]

    def _filter(self, size: _Size, step: int) -> None:
        """Draw the tokens of a step again, with filters."""
        if not self._filters_here:
            self._filter_on_host(size, step)
            return
        key = (size.rows, step)
        if key not in self._filterings:
            inputs, outputs = size.filtering(step), size.drawn(step)
            self._filterings[key] = Binding(self._filters, inputs, outputs)
        self._filterings[key].run()

    def _filter_on_host(self, size: _Size, step: int) -> None:
        feeds = {name: size.inputs[name][step] for name in ("told", "uniforms")}
        feeds.update({name: size.inputs[name] for name in ("divisor", "top_k", "top_p", "min_p")})
        feeds["logprobs"] = size.logprobs.arrays["logprobs"]
        token, logprob = self._filters.run(["token", "logprob"], feeds)
        size.outputs.download()
        size.outputs.arrays["token"][step], size.outputs.arrays["logprob"][step] = token, logprob
        size.outputs.upload()

    def _launch(self, size: _Size, step: int, read: int, write: int) -> _Launch:
        """A step bound to its addresses, made once."""
        key = (size.rows, step, read, write)
        if key not in self._launches:
            inputs = {"pending": size.fed(step), **size.drawing(step)}
            outputs = {**size.drawn(step), "logprobs": size.logprobs.part("logprobs")}
            inputs |= {spec.input: it for spec, it in self._states.parts(read, size.rows)}
            outputs |= {spec.output: it for spec, it in self._states.parts(write, size.rows)}
            graph = len(self._launches) + 1 if self._captures else None
            self._launches[key] = _Launch(Binding(self._step, inputs, outputs), graph)
        return self._launches[key]


class _Launch:
    """A step at fixed addresses: CUDA graph number `graph`, None where it is none."""

    def __init__(self, binding: Binding, graph: int | None) -> None:
        self._binding = binding
        self._options = {waits: _run_options(graph, waits) for waits in (False, True)}

    def run(self, *, waits: bool) -> None:
        """Run the step, or where it is not waited for, put it behind those that were begun."""
        self._binding.run(self._options[waits])


def _run_options(graph: int | None, waits: bool) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    if not waits:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options

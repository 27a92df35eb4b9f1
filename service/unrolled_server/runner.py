"""The engine's graph on onnxruntime, on the CPU.

A Runner owns dense arrays with a place for every row; active rows are a prefix of them.
States are kept twice: a run reads one set and writes the other, so the states before the
last run are still there when a row turns out to have gone too far.

Prompts may have a graph of their own, which leads to the same bits and does less: nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unrolled_server import huge_pages
from unrolled_server.graphs import check_drawing, check_prompt, reason
from unrolled_server.running import LOGPROBS_BYTES, RowInputs, RunnerError, StateSpec
from unrolled_server.types import MAX_STEPS, PROMPT_STEPS, Floats, Places, Tokens

MAX_BINDINGS = 1024
PROMPT_ROWS = 16
"""Rows that one run of the prompt graph takes at most: more would not take less time each."""


class Runner(RowInputs):
    """One model's graph with room for `rows` rows."""

    def __init__(
        self,
        graph: Path,
        states: tuple[StateSpec, ...],
        vocabulary: int,
        rows: int,
        threads: int = 1,
        prompt: Path | None = None,
    ) -> None:
        """`threads` work at each product; `prompt`: the graph for prompts. Raises RunnerError."""
        self._session = _open_session(graph, threads)
        self._prompt = None if prompt is None else _open_session(prompt, threads)
        huge_pages.gather()
        self.device = "cpu"
        self._specs = states
        self._vocabulary = vocabulary
        check_drawing(graph.name, self._session, states, vocabulary)
        if prompt is not None and self._prompt is not None:
            check_prompt(prompt.name, self._prompt, states)
        self.state_size = sum(spec.size for spec in states)
        self._initial = np.concatenate([spec.start for spec in states])
        self._make_room(rows)

    def another(self, rows: int) -> Self:
        """A runner of the same graph with `rows` rows of its own; they share the weights."""
        other = copy(self)
        other._make_room(rows)
        return other

    def _make_room(self, rows: int) -> None:
        """Allocate everything that runs read and write."""
        self._make_inputs(rows)
        vocabulary = self._vocabulary
        self._states = tuple(
            [np.zeros((rows, spec.size), np.float32) for spec in self._specs] for _ in range(2)
        )
        self._current = 0
        self._row_steps = row_steps = _row_steps(rows, vocabulary)
        self._told = np.full(row_steps, -1, np.int32)
        self._uniforms = np.zeros(row_steps, np.float64)
        self._tokens = np.zeros(row_steps, np.int32)
        self._logprobs = np.zeros((row_steps, vocabulary), np.float32)
        self.prompt_rows = 0 if self._prompt is None else min(rows, PROMPT_ROWS)
        """Rows that one call of `tell` takes at most; 0: there is no graph for it."""
        self._fed = np.zeros(PROMPT_STEPS * self.prompt_rows, np.int32)
        self._prompt_states = tuple(
            [np.zeros((self.prompt_rows, spec.size), np.float32) for spec in self._specs]
            for _ in range(2)
        )
        """Of the rows that are told, before and after it."""
        self._bindings: dict[tuple[int, int, int], onnxruntime.IOBinding] = {}
        self._prompt_bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def most_steps(self, rows: int) -> int:
        """Steps that there is room for."""
        return min(MAX_STEPS, self._row_steps // rows)

    def tell(self, told: Tokens, places: Places) -> None:
        """Advance the rows at `places` [B] by tokens [K, B], which are all told; no other moves.

        States and pending tokens are then those that `run` would have led to. At most PROMPT_STEPS
        tokens, and `prompt_rows` rows.
        """
        if self._prompt is None:
            raise RuntimeError("there is no prompt graph")
        steps, rows = told.shape
        fed = self._fed[: rows * steps].reshape(steps, rows)
        fed[0], fed[1:] = self.pending[places], told[:-1]
        before, after = self._prompt_states
        for array, gathered in zip(self._states[self._current], before, strict=True):
            gathered[:rows] = array[places]
        self._prompt.run_with_iobinding(self._prompt_binding(self._prompt, fed))
        for array, gathered in zip(self._states[self._current], after, strict=True):
            array[places] = gathered[:rows]
        self.pending[places] = told[-1]

    def told(self, rows: int, steps: int) -> Tokens:
        """Where the next run reads the told tokens, -1 to draw: [steps, rows]."""
        return self._told[: rows * steps].reshape(steps, rows)

    def uniforms(self, rows: int, steps: int) -> NDArray[np.float64]:
        """Where the next run reads the random numbers: [steps, rows]."""
        return self._uniforms[: rows * steps].reshape(steps, rows)

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]:
        """Advance the first `rows` rows by `steps` tokens.

        Returns the tokens [steps, rows] and log-probabilities [steps, rows, V], views that
        are good until the next run. The last token of each row becomes its pending one.
        """
        self._session.run_with_iobinding(self._binding(rows, steps))
        self._current = 1 - self._current
        tokens = self._tokens[: rows * steps].reshape(steps, rows)
        self.pending[:rows] = tokens[-1]
        return tokens, self._logprobs[: rows * steps].reshape(steps, rows, self._vocabulary)

    def load(self, row: int, state: Floats | None) -> None:
        """Set the state of a row to `state` [S], or to what it is before any token."""
        state = self._initial if state is None else state
        start = 0
        for spec, array in zip(self._specs, self._states[self._current], strict=True):
            array[row] = state[start : start + spec.size]
            start += spec.size

    def fetch(self, rows: Sequence[int]) -> None:
        """Have the states of rows ready for `save`; they are at hand."""

    def save(self, row: int) -> Floats:
        """A copy of a row's state, [S]."""
        return np.concatenate([array[row] for array in self._states[self._current]])

    def rewind(self, row: int, pending: int) -> None:
        """Take a row back to where it stood before the last run."""
        before, after = self._states[1 - self._current], self._states[self._current]
        for old, new in zip(before, after, strict=True):
            new[row] = old[row]
        self.pending[row] = pending

    def move(self, source: int, target: int) -> None:
        """Copy everything that a row keeps between runs from one place to another."""
        self._move_inputs(source, target)
        for array in self._states[self._current]:
            array[target] = array[source]

    def _binding(self, rows: int, steps: int) -> onnxruntime.IOBinding:
        """The arrays bound for a run of this size, made once."""
        key = (rows, steps, self._current)
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[key] = self._bind(rows, steps)
        return binding

    def _bind(self, rows: int, steps: int) -> onnxruntime.IOBinding:
        inputs: dict[str, NDArray[np.generic]] = {
            "pending": self.pending[:rows],
            "told": self.told(rows, steps),
            "uniforms": self.uniforms(rows, steps),
            "temperature": self.temperature[:rows],
            "top_k": self.top_k[:rows],
            "top_p": self.top_p[:rows],
            "min_p": self.min_p[:rows],
            "filtered": self.filtered,
        }
        outputs: dict[str, NDArray[np.generic]] = {
            "tokens": self._tokens[: rows * steps].reshape(steps, rows),
            "logprobs": self._logprobs[: rows * steps].reshape(steps, rows, self._vocabulary),
        }
        states = self._states[self._current], self._states[1 - self._current]
        return self._bound(self._session, rows, states, inputs, outputs)

    def _prompt_binding(
        self, prompt: onnxruntime.InferenceSession, fed: Tokens
    ) -> onnxruntime.IOBinding:
        steps, rows = fed.shape
        binding = self._prompt_bindings.get((rows, steps))
        if binding is None:
            if len(self._prompt_bindings) >= MAX_BINDINGS:
                self._prompt_bindings.clear()
            binding = self._bound(prompt, rows, self._prompt_states, {"fed": fed}, {})
            self._prompt_bindings[rows, steps] = binding
        return binding

    def _bound(
        self,
        session: onnxruntime.InferenceSession,
        rows: int,
        states: Sequence[list[Floats]],
        inputs: dict[str, NDArray[np.generic]],
        outputs: dict[str, NDArray[np.generic]],
    ) -> onnxruntime.IOBinding:
        """These arrays, and the first `rows` rows of `states` before and after a run."""
        binding = session.io_binding()
        for spec, old, new in zip(self._specs, *states, strict=True):
            inputs[spec.input], outputs[spec.output] = old[:rows], new[:rows]
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding


def _row_steps(rows: int, vocabulary: int) -> int:
    """Rows times steps of a run at most."""
    return max(rows, min(MAX_STEPS * rows, LOGPROBS_BYTES // (4 * vocabulary)))


def _open_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs take cores from everything else; see ARCHITECTURE.md.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunnerError(f"{graph.name}: {reason(error)}") from error

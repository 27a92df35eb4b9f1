"""What the engine asks of whatever runs its rows, and what all that do have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unrolled_server.types import Floats, Places, Tokens

LOGPROBS_BYTES = 64 << 20
"""Of a run's log-probabilities, where that leaves more than one step."""

Flag = np.ndarray[tuple[()], np.dtype[np.bool_]]


class RunnerError(Exception):
    """The graph cannot be run; the message says why."""


class DeviceError(Exception):
    """No graph can be run on the device that was asked for."""


@dataclass(frozen=True)
class StateSpec:
    """One state tensor: its names in the graph, its width and its value before any token."""

    input: str
    output: str
    size: int
    initial: Floats | None = None
    """[size]; None: zeros."""

    @property
    def start(self) -> Floats:
        """Its value before any token, [size]."""
        return np.zeros(self.size, np.float32) if self.initial is None else self.initial


class RowInputs:
    """What a run reads but states: of each row, and of all together."""

    def _make_inputs(self, rows: int) -> None:
        """Make room for `rows` rows."""
        self.rows = rows
        self.pending = np.zeros(rows, np.int32)
        """The token each row feeds first."""
        self.temperature = np.ones(rows, np.float32)
        self.top_k = np.zeros(rows, np.int32)
        self.top_p = np.ones(rows, np.float32)
        self.min_p = np.zeros(rows, np.float32)
        self.filtered = np.zeros((), np.bool_)
        """Whether any row in the run uses top_k, top_p or min_p."""
        self.wants_logprobs = np.ones((), np.bool_)
        """Whether any row in the run asks for distributions; where none does, the log-probabilities
        of a run may be those of its tokens alone, [steps, rows, 1]."""

    def _move_inputs(self, source: int, target: int) -> None:
        """Copy what there is of a row to another's place."""
        for array in (self.pending, self.temperature, self.top_k, self.top_p, self.min_p):
            array[target] = array[source]


class AnyRunner(Protocol):
    """One model's graphs and the states of its rows; `runner.Runner` says what each means."""

    device: str
    rows: int
    """That there is room for."""
    state_size: int
    prompt_rows: int
    pending: Tokens
    temperature: Floats
    top_k: Tokens
    top_p: Floats
    min_p: Floats
    filtered: Flag
    wants_logprobs: Flag

    def most_steps(self, rows: int) -> int: ...

    def tell(self, told: Tokens, places: Places) -> None: ...

    def told(self, rows: int, steps: int) -> Tokens: ...

    def uniforms(self, rows: int, steps: int) -> NDArray[np.float64]: ...

    def run(self, rows: int, steps: int) -> tuple[Tokens, Floats]: ...

    def load(self, row: int, state: Floats | None) -> None: ...

    def fetch(self, rows: Sequence[int]) -> None: ...

    def save(self, row: int) -> Floats: ...

    def rewind(self, row: int, pending: int) -> None: ...

    def move(self, source: int, target: int) -> None: ...

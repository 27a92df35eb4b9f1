"""The two graphs of an export behind one interface, for comparison with a reference.

A window of T steps is tokens [B, T + 1]: each is fed but the last, and the following one is
what its step is told. Log-probabilities [B, T, V] belong to what follows each fed token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unrolled_export.network import Floats
from unrolled_export.reference import States, Tokens
from unrolled_export.runtime import Graph

DRAW = -1
"""In place of a token: draw it."""


class Runner(Protocol):
    """A graph that advances rows by windows."""

    @property
    def name(self) -> str:
        """The graph's file."""

    def advance(self, window: Tokens, states: States) -> tuple[Floats, States]:
        """Log-probabilities of the window's steps, and the states after them."""


class _GraphRunner:
    """What both graphs have in common: the states."""

    name = ""

    def __init__(self, names: Mapping[str, str], vocabulary_size: int, content: bytes) -> None:
        """`names` are those of the states: of every input, the output that follows it."""
        self.vocabulary_size = vocabulary_size
        self._outputs = dict(names)
        self._graph = Graph(self.name, content)

    def _next_states(self, outputs: dict[str, NDArray[Any]]) -> States:
        return {name: outputs[next_name] for name, next_name in self._outputs.items()}


class PortableRunner(_GraphRunner):
    """`model.onnx`."""

    name = "model.onnx"

    def advance(self, window: Tokens, states: States) -> tuple[Floats, States]:
        outputs = self._graph.run({"tokens": window[:, :-1], **states})
        return _log_softmax(outputs["logits"]), self._next_states(outputs)


class EngineRunner(_GraphRunner):
    """`engine.onnx`."""

    name = "engine.onnx"

    def advance(self, window: Tokens, states: States) -> tuple[Floats, States]:
        outputs = self._run(window[:, 0], window[:, 1:].T, states)
        return outputs["logprobs"].swapaxes(0, 1), self._next_states(outputs)

    def draw(self, pending: Tokens, told: Tokens, states: States, *, greedy: bool) -> Tokens:
        """Tokens [B, T] that follow `pending` [B]: those of told [B, T] that are not DRAW, and
        draws from the distribution as it is, the same every time, or the likeliest tokens."""
        tokens: Tokens = self._run(pending, told.T, states, greedy)["tokens"].T.astype(np.int64)
        return tokens

    def _run(
        self, pending: Tokens, told: Tokens, states: States, greedy: bool = True
    ) -> dict[str, NDArray[Any]]:
        """One run of told [K, B]."""
        rows = len(pending)
        sampling: dict[str, NDArray[Any]] = {
            "uniforms": np.random.default_rng(0).random(told.shape),
            "temperature": np.full(rows, 0 if greedy else 1, np.float32),
            "top_k": np.zeros(rows, np.int32),
            "top_p": np.ones(rows, np.float32),
            "min_p": np.zeros(rows, np.float32),
            "filtered": np.array(False),
        }
        tokens = {"pending": pending.astype(np.int32), "told": told.astype(np.int32)}
        return self._graph.run({**tokens, **sampling, **states})


def _log_softmax(logits: Floats) -> Floats:
    # Logits that are not finite are found by what this returns.
    with np.errstate(over="ignore", invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        result: Floats = (shifted - total).astype(np.float32)
    return result

"""Reference outputs of a model, made by whoever has its source: what proves the reading.

A JSON object; ids are tokens of the model, logarithms natural:

| key | |
|---|---|
| fixed_ids, logprobs | a text, and ln P of each of its tokens but the first, given those before |
| prompt_ids, greedy_ids | a prompt, and the likeliest tokens that continue it one by one |
| vocab_size | optional: checked |

Both start from the state before any token. At least one of the two pairs is there; other keys are
not looked at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unrolled_export.errors import ReferenceFileError
from unrolled_export.network import Floats, Network
from unrolled_export.parity import TOLERANCE
from unrolled_export.reference import Tokens, initial_states
from unrolled_export.runners import DRAW, EngineRunner

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ReferenceOutputs:
    """What a model says, in its source's own arithmetic."""

    file: Path
    text: Tokens
    """[T + 1]; empty where there are no log-probabilities."""
    logprobs: Floats
    """[T]: of what follows each token of the text."""
    prompt: Tokens
    greedy: Tokens
    """Empty where there is no greedy continuation."""


@dataclass(frozen=True)
class Agreement:
    """How a graph agrees with reference outputs."""

    file: str
    logprobs: int
    max_abs_logprob_error: float
    greedy: int
    """Tokens chosen alike, which is all of them."""


def read_reference(path: Path, network: Network) -> ReferenceOutputs:
    """Raises ReferenceFileError, naming the key, where the outputs do not fit the model."""
    fields = _Fields(path, network.vocabulary_size)
    outputs = ReferenceOutputs(
        path,
        fields.ids("fixed_ids"),
        fields.numbers("logprobs"),
        fields.ids("prompt_ids"),
        fields.ids("greedy_ids"),
    )
    if len(outputs.logprobs) != max(0, len(outputs.text) - 1):
        raise fields.wrong("logprobs", "one number for each of fixed_ids but the first")
    if len(outputs.greedy) and not len(outputs.prompt):
        raise fields.wrong("prompt_ids", "what greedy_ids continue")
    if not len(outputs.logprobs) and not len(outputs.greedy):
        raise ReferenceFileError(
            f"{path}: neither fixed_ids with logprobs nor prompt_ids with greedy_ids"
        )
    return outputs


def check_reference(outputs: ReferenceOutputs, network: Network, engine: EngineRunner) -> Agreement:
    """Compare a float32 graph with the outputs. Raises ReferenceFileError where they differ."""
    worst = 0.0
    if len(outputs.logprobs):
        logprobs, _ = engine.advance(outputs.text[None], initial_states(network, 1))
        found = np.take_along_axis(logprobs[0], outputs.text[1:, None], axis=-1)[:, 0]
        errors = np.abs(found - outputs.logprobs)
        worst = float(errors.max())
        if not worst <= TOLERANCE:
            step = int(np.argmin(errors <= TOLERANCE))
            raise ReferenceFileError(
                f"{outputs.file}: logprobs[{step}] is {outputs.logprobs[step]:.6f}, the model as "
                f"read gives {found[step]:.6f}: it was read in a way that is not its own"
            )
    _check_greedy(outputs, network, engine)
    return Agreement(outputs.file.name, len(outputs.logprobs), worst, len(outputs.greedy))


def _check_greedy(outputs: ReferenceOutputs, network: Network, engine: EngineRunner) -> None:
    if not len(outputs.greedy):
        return
    told = np.concatenate([outputs.prompt[1:], np.full(len(outputs.greedy), DRAW)])
    states = initial_states(network, 1)
    drawn = engine.draw(outputs.prompt[:1], told[None], states, greedy=True)[0]
    found = drawn[len(outputs.prompt) - 1 :]
    if not np.array_equal(found, outputs.greedy):
        step = int(np.argmax(found != outputs.greedy))
        raise ReferenceFileError(
            f"{outputs.file}: greedy_ids[{step}] is {outputs.greedy[step]}, the model as read "
            f"chooses {found[step]}"
        )


class _Fields:
    """The keys of the file. Every method raises ReferenceFileError naming the key."""

    def __init__(self, path: Path, vocabulary_size: int) -> None:
        self._path, self._size = path, vocabulary_size
        try:
            fields = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ReferenceFileError(f"{path}: not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ReferenceFileError(f"{path}: not a JSON object")
        self._fields: dict[str, Any] = fields
        if fields.get("vocab_size", vocabulary_size) != vocabulary_size:
            raise self.wrong("vocab_size", f"that of the weights, {vocabulary_size}")

    def ids(self, key: str) -> Tokens:
        values = self._list(key)
        if not all(type(value) is int and 0 <= value < self._size for value in values):
            raise self.wrong(key, f"a list of ids from 0 to {self._size - 1}")
        return np.array(values, np.int64)

    def numbers(self, key: str) -> Floats:
        values = self._list(key)
        if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values):
            raise self.wrong(key, "a list of finite numbers")
        return np.array(values, np.float32)

    def _list(self, key: str) -> list[Any]:
        values = self._fields.get(key, [])
        if not isinstance(values, list):
            raise self.wrong(key, "a list")
        return values

    def wrong(self, key: str, expected: str) -> ReferenceFileError:
        return ReferenceFileError(f'{self._path}: "{key}" is not {expected}')

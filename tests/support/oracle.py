"""What the server has to agree with bit for bit: a sequence that runs alone.

LoneRun feeds one row one token at a time through the exported engine graph, and checks its draws
by its own. It shares that graph with the server, and no code: what the graph computes is proved
by the PyTorch model the checkpoint came from (`support.models.TorchModel`), within 1e-4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MASK = (1 << 64) - 1


def uniform(seed: int, place: int) -> float:
    """Number `place` of SplitMix64 (Steele et al. 2014) begun at the mixed seed, 52 bits."""
    return (_mix((_mix(seed) + (place + 1) * 0x9E3779B97F4A7C15) & MASK) >> 12) / 2.0**52


def _mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


@dataclass(frozen=True)
class Draw:
    """How a token is drawn; defaults as in the contract."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def token(self, logprobs: NDArray[np.float32], number: float) -> tuple[int, float]:
        """The token for a uniform `number`: temperature, min_p, top_k, top_p, draw.

        Also how far the number is from one that would draw another token.
        """
        if self.temperature == 0:
            best, second = np.sort(logprobs)[[-1, -2]]
            return int(logprobs.argmax()), float(best - second)
        scaled = logprobs.astype(np.float64) / np.float32(self.temperature)
        chances = np.exp(scaled - scaled.max())
        chances /= chances.sum()
        order = np.argsort(-logprobs, kind="stable")
        kept = chances[order]
        kept = np.where(kept >= np.float32(self.min_p) * kept[0], kept, 0.0)
        if self.top_k:
            kept[self.top_k :] = 0.0
        if self.top_p < 1:
            before = np.cumsum(kept) - kept
            kept = np.where(before < np.float32(self.top_p) * kept.sum(), kept, 0.0)
        chances = np.zeros_like(chances)
        chances[order] = kept
        cumulative = np.cumsum(chances) / chances.sum()
        token = int(np.searchsorted(cumulative, number, side="right"))
        return token, float(np.abs(cumulative - number).min())


State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Fed:
    """What one token led to."""

    state: State
    logprobs: NDArray[np.float32]
    """[V]: of what follows."""
    drawn: int


class LoneRun:
    """One sequence of one exported model, a token at a time."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "engine.onnx", options, providers=["CPUExecutionProvider"]
        )
        manifest = json.loads((folder / "manifest.json").read_text())
        self._names = [(state["input"], state["output"]) for state in manifest["states"]]
        self._zero = {
            state["input"]: np.zeros((1, int(state["shape"][0])), np.float32)
            for state in manifest["states"]
        }

    def start(self) -> State:
        """The zero state."""
        return dict(self._zero)

    def feed(self, state: State, token: int, how: Draw | None = None, number: float = 0.0) -> Fed:
        """Feed one token to `state`; what follows is drawn with the uniform `number`."""
        how = how or Draw()
        inputs: dict[str, Any] = {
            "pending": np.array([token], np.int32),
            "told": np.full((1, 1), -1, np.int32),
            "uniforms": np.full((1, 1), number),
            "temperature": np.array([how.temperature], np.float32),
            "top_k": np.array([how.top_k], np.int32),
            "top_p": np.array([how.top_p], np.float32),
            "min_p": np.array([how.min_p], np.float32),
            "filtered": np.array(how.top_k > 0 or how.top_p < 1 or how.min_p > 0),
            **state,
        }
        names = ["tokens", "logprobs", *(output for _, output in self._names)]
        tokens, logprobs, *states = self._session.run(names, inputs)
        after = {name: value for (name, _), value in zip(self._names, states, strict=True)}
        return Fed(after, logprobs[0, 0], int(tokens[0, 0]))


class LoneSequence:
    """What a session must be: told and drawn tokens, one after the other."""

    def __init__(self, run: LoneRun, seed: int, start_token: int | None) -> None:
        self.run = run
        self.seed = seed
        self.tokens: list[int] = []
        self._started: list[int] = []
        self._start_token = start_token
        # The state before the newest token, which is fed once more is asked for.
        self._before = run.start()

    def copy(self, seed: int | None = None) -> LoneSequence:
        """An independent sequence with the same past."""
        other = LoneSequence(self.run, self.seed if seed is None else seed, self._start_token)
        other.tokens = list(self.tokens)
        other._started = self._started
        other._before = self._before
        return other

    @property
    def fed(self) -> list[int]:
        """All tokens, behind the start token where that was fed."""
        return self._started + self.tokens

    def tell(self, token: int) -> float | None:
        """Append a token; returns its log-probability, None where nothing precedes it."""
        if not self.tokens:
            self.tokens.append(token)
            return None
        return self._append(token, self.run.feed(self._before, self.tokens[-1]))

    def draw(self, how: Draw, seed: int | None = None) -> tuple[int, float]:
        """Append a drawn token; returns it and its log-probability.

        The exported graph draws, and a draw of our own from its log-probabilities has to
        agree, unless the random number is too close to the edge between two tokens to say.
        """
        newest = self.tokens[-1] if self.tokens else self._start_token
        if newest is None:
            raise ValueError("nothing to draw from")
        if not self.tokens:
            self._started = [newest]
        number = uniform(self.seed if seed is None else seed, len(self.tokens))
        fed = self.run.feed(self._before, newest, how, number)
        token, margin = how.token(fed.logprobs, number)
        if token != fed.drawn and margin > 1e-4:
            raise AssertionError(f"the graph drew {fed.drawn}, not {token}")
        return fed.drawn, self._append(fed.drawn, fed)

    def _append(self, token: int, fed: Fed) -> float:
        self.tokens.append(token)
        self._before = fed.state
        return float(fed.logprobs[token])

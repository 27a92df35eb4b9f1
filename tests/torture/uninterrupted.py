"""What a session has to be: the oracles' runs of the same turns, which nothing interrupts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from support.models import Repository, TorchModel
from support.oracle import Draw, LoneRun, LoneSequence
from torch.nn.utils.rnn import pad_sequence

from torture.stream import Answer, Stream, Turn

TOLERANCE = 1e-4
"""Nats between PyTorch and the server."""


class Uninterrupted:
    """One model's sessions, run alone, a token at a time."""

    def __init__(self, repository: Repository, model: str, streams: Sequence[Stream]) -> None:
        self._characters = repository.recipes[model].characters
        self._torch = repository.models[model]
        run = LoneRun(repository.path / model / "1")
        self._sessions = [
            _Session(stream, LoneSequence(run, stream.seed, None)) for stream in streams
        ]

    def catch_up(self) -> int:
        """Run what was acknowledged since the last time; how many turns that was.

        Raises AssertionError where an answer is another than that of the lone run, to the bit.
        """
        turns = 0
        for session in self._sessions:
            acknowledged, session.stream.acknowledged = session.stream.acknowledged, []
            for turn, answer in acknowledged:
                expected = self._run(session, turn)
                where = f"session of seed {session.stream.seed}, turn {turn.number}"
                assert answer == expected, f"{where}: {answer} is not {expected}"
            turns += len(acknowledged)
        return turns

    def compare_with_torch(self) -> float:
        """Compare all log-probabilities with PyTorch's, from the zero state on; the difference.

        Raises AssertionError where it is over TOLERANCE.
        """
        ids = [torch.tensor(session.sequence.tokens) for session in self._sessions]
        chosen = _torch_logprobs(self._torch, ids)
        difference = max(
            float(np.abs(row[session.places] - session.logprobs).max())
            for row, session in zip(chosen, self._sessions, strict=True)
        )
        assert difference <= TOLERANCE, f"PyTorch differs by {difference:.2g} nats"
        return difference

    def _run(self, session: _Session, turn: Turn) -> Answer:
        sequence = session.sequence
        for character in turn.prompt:
            sequence.tell(self._characters.index(character))
        drawn = [sequence.draw(Draw()) for _ in range(turn.drawn)]
        tokens, logprobs = [token for token, _ in drawn], [logprob for _, logprob in drawn]
        end = len(sequence.tokens)
        session.places += range(end - len(drawn), end)
        session.logprobs += logprobs
        return Answer("".join(self._characters[token] for token in tokens), tokens, logprobs)


class _Session:
    """One session as it has to be."""

    def __init__(self, stream: Stream, sequence: LoneSequence) -> None:
        self.stream = stream
        self.sequence = sequence
        self.places: list[int] = []
        """Of the drawn tokens."""
        self.logprobs: list[float] = []
        """Of the drawn tokens, as the server has given them."""


def _torch_logprobs(model: TorchModel, ids: Sequence[torch.Tensor]) -> list[NDArray[np.float32]]:
    """[T] for each sequence: of every token after those before it; of the first 0."""
    padded = pad_sequence(list(ids), batch_first=True)
    with torch.no_grad():
        rows = model(padded)
    after = rows[:, :-1].gather(2, padded[:, 1:, None])[:, :, 0]
    whole = torch.nn.functional.pad(after, (1, 0)).numpy()
    return [row[: len(one)] for row, one in zip(whole, ids, strict=True)]

"""A row: a turn's place in the batch, and how far it has come."""

from __future__ import annotations

import numpy as np

from unrolled_server.logprobs import LogprobTape
from unrolled_server.sampler import Uniforms, uniforms
from unrolled_server.text import newest_shown, partial_after, text_stream
from unrolled_server.turn import Task, Turn
from unrolled_server.types import Checkpoint, Delta, Ending, FinishReason, Floats
from unrolled_server.vocabulary import Vocabulary

UNIFORMS_BLOCK = 256
SCORES_PER_DELTA = 4096
"""Log-probabilities that the event loop turns into messages at once, alternatives included."""


class Row:
    """Advances one turn, a run at a time; knows nothing of the other rows.

    Each step feeds `pending` and is either told the token that follows or draws it.
    """

    def __init__(self, turn: Turn, vocabulary: Vocabulary) -> None:
        task = turn.task
        self.turn = turn
        self.state: Floats | None = task.start.state
        """The state to start from, or to go on from after a time without a place."""
        self.pending = -1
        self._told = task.told
        self._cursor = 0
        self._draws_left = task.max_tokens
        self._drawn = 0
        self._sent = 0
        self._position = task.start.position
        self._replays = False
        self._stopped = False
        self._tokens: list[int] = []
        self._tape = None
        if task.logprobs is not None:
            self._tape = LogprobTape(min(task.logprobs, vocabulary.size))
        self._block: Uniforms = uniforms(0, 0, 0)
        self._block_start = 0
        # Of the last tokens' bytes, those that matter do not depend on what precedes.
        told_bytes = [vocabulary.piece(None, token) for token in task.told[-4:].tolist()]
        self._text = text_stream(
            vocabulary,
            task.stop,
            partial_after(task.start.partial, told_bytes),
            newest_shown(vocabulary, task.start.previous, task.told),
        )
        self.flushed: float | None = None
        """When the last delta left, in seconds of time.perf_counter."""
        self._take_first(task, vocabulary)

    def _take_first(self, task: Task, vocabulary: Vocabulary) -> None:
        """Find the token to feed first: pending, told, or the start token."""
        if task.start.pending is not None:
            self.pending = task.start.pending
        elif len(self._told):
            self.pending = int(self._told[0])
            self._told = self._told[1:]
            self._position += 1
            if task.scores and self._tape is not None:
                self._tape.record_first()
                self._tokens.append(self.pending)
        elif vocabulary.start_token is not None:
            self.pending = vocabulary.start_token

    @property
    def steps_left(self) -> int:
        """Steps until the turn ends, unless its text ends first."""
        return len(self._told) - self._cursor + self._draws_left

    @property
    def drawing(self) -> bool:
        """Whether the next step draws."""
        return self._cursor == len(self._told)

    @property
    def unread(self) -> int:
        """Tokens that have left for the front and were not taken yet."""
        return self._sent - self.turn.taken

    def stop(self) -> None:
        """Draw no more; what is to be told is still told."""
        if self._draws_left and not self._replays:
            self._stopped = True
            self._draws_left = 0

    def write_inputs(self, told: np.ndarray, random: np.ndarray) -> None:
        """Fill this row's columns [K] of the next run's inputs; `told` comes filled with -1."""
        steps = len(told)
        known = self._told[self._cursor : self._cursor + steps]
        told[: len(known)] = known
        if len(known) < steps and self.turn.task.sampling.temperature > 0:
            random[len(known) :] = self._uniforms(self._position + len(known), steps - len(known))

    def _uniforms(self, first: int, count: int) -> Uniforms:
        start = first - self._block_start
        if start < 0 or start + count > len(self._block):
            seed = self.turn.task.sampling.seed
            self._block = uniforms(seed, first, UNIFORMS_BLOCK)
            self._block_start, start = first, 0
        return self._block[start : start + count]

    def advance(self, tokens: list[int], logprobs: Floats) -> bool:
        """Take the tokens [K] of a run and their distributions [K, V].

        Returns whether the text ended inside the run: then the row has to go back to where
        the run began, and is told what it is to keep.
        """
        told = min(len(self._told) - self._cursor, len(tokens))
        self._cursor += told
        if self._replays:
            self.pending = tokens[-1]
            return False
        drawn = tokens[told:]
        taken = self._text.push(drawn) if drawn else 0
        self._record(tokens, logprobs, told, taken)
        self._position += told + taken
        self._drawn += taken
        self._draws_left -= taken
        if self._text.reason is None:
            self.pending = tokens[-1]
            return False
        return self._end(tokens, told + taken)

    def _end(self, tokens: list[int], kept: int) -> bool:
        """The text has ended after `kept` of the run's tokens."""
        self._draws_left = 0
        if kept == len(tokens):
            self.pending = tokens[-1]
            return False
        self._told = np.array(tokens[:kept], np.int32)
        self._cursor = 0
        self._replays = True
        return True

    def _record(self, tokens: list[int], logprobs: Floats, told: int, taken: int) -> None:
        first, last = (0, told) if self.turn.task.scores else (told, told + taken)
        if last > first:
            self._tokens.extend(tokens[first:last])
            if self._tape is not None:
                self._tape.record(tokens[first:last], logprobs[first:last])

    def due(self, now: float, tokens: int, interval: float) -> bool:
        """Whether a delta should leave: the first at once, others by count or by time."""
        if self.turn.task.scores:
            top = 0 if self._tape is None else self._tape.top
            return len(self._tokens) * (1 + top) >= SCORES_PER_DELTA
        if not self._tokens or self._replays:
            return False
        return self.flushed is None or len(self._tokens) >= tokens or now - self.flushed >= interval

    def flush(self, now: float) -> Delta | None:
        """Everything that may be shown since the last delta; None where that is nothing."""
        text, count = ("", len(self._tokens)) if self.turn.task.scores else self._text.take()
        return self._delta(text, count, now)

    def finish(self, state: Floats | None, now: float) -> tuple[Delta | None, Ending]:
        """The last delta, and how the turn ended, with its final `state` [S] (None: zeros)."""
        task = self.turn.task
        text, _ = ("", 0) if task.scores else self._text.finish(task.keeps_partial)
        delta = self._delta(text, len(self._tokens), now)
        has_pending = self._position > 0
        checkpoint = Checkpoint(
            state,
            self.pending if has_pending else None,
            self._position,
            self._text.partial if task.keeps_partial else b"",
            self._text.previous,
        )
        told = len(task.told)
        ending = Ending(self._reason(), self._text.matched_stop, told, self._drawn, checkpoint)
        return delta, ending

    def _reason(self) -> FinishReason:
        if self._text.reason is not None:
            return self._text.reason
        return FinishReason.STOPPED if self._stopped else FinishReason.LENGTH

    def _delta(self, text: str, count: int, now: float) -> Delta | None:
        if not text and not count:
            return None
        self.flushed = now
        self._sent += count
        ids, self._tokens = self._tokens[:count], self._tokens[count:]
        logprobs = self._tape.take(count) if self._tape is not None and count else None
        return Delta(text, ids, logprobs)

"""A row: a turn's place in the batch, and what becomes of its tokens."""

from __future__ import annotations

from bisect import bisect

from unrolled_server.logprobs import LogprobTape
from unrolled_server.text import newest_shown, partial_after, text_stream
from unrolled_server.turn import Task, Turn
from unrolled_server.types import Delta, Ending, FinishReason, Floats, Past, Tokens
from unrolled_server.vocabulary import Vocabulary

UNREACHED = (1 << 63) - 1
"""A position that no sequence comes to."""

SCORES_PER_DELTA = 4096
"""Log-probabilities that the event loop turns into messages at once, alternatives included."""


class Row:
    """Turns the tokens of one turn into deltas; knows nothing of the other rows.

    Each step feeds a pending token and is either told the token that follows or draws it. How
    far the row has come is the batch's to count while it has a place there, and kept here
    (`pending`, `position`, `tell_left`, `draw_left`) while it has none.
    """

    def __init__(self, turn: Turn, vocabulary: Vocabulary) -> None:
        task = turn.task
        known = task.recall.known
        self.turn = turn
        self.state: Floats | None = task.start.state if known is None else known.state
        """The state to start from, or to go on from after a time without a place."""
        self.pending = -1
        self.position = task.start.position
        self.tell_left = 0
        self.draw_left = task.max_tokens
        self.flushed: float | None = None
        """When the last delta left, in seconds of time.perf_counter."""
        self.watched = task.scores or task.logprobs is not None or bool(task.stop)
        """Whether it has to see the tokens of every run."""
        self._skipped = 0 if known is None else known.tokens
        self._told = task.told[self._skipped :]
        self._drawn = 0
        self._sent = 0
        self._stopped = False
        self._tokens: list[int] = []
        self._tape = None
        if task.logprobs is not None:
            self._tape = LogprobTape(min(task.logprobs, vocabulary.size))
        self._text = text_stream(
            vocabulary,
            task.stop,
            partial_after(vocabulary, task.start.partial, task.start.previous, task.told),
            newest_shown(vocabulary, task.start.previous, task.told),
        )
        self._take_first(task, vocabulary)
        self.tell_left = len(self._told)

    def _take_first(self, task: Task, vocabulary: Vocabulary) -> None:
        """Find the token to feed first: pending, told, or the start token."""
        if task.start.pending is not None:
            self.pending = task.start.pending
        elif len(self._told):
            self.pending = int(self._told[0])
            self._told = self._told[1:]
            self.position += self._skipped + 1
            if task.scores and self._tape is not None:
                self._tape.record_first()
                self._tokens.append(self.pending)
        elif vocabulary.start_token is not None:
            self.pending = vocabulary.start_token

    @property
    def unread(self) -> int:
        """Tokens that have left for the front and were not taken yet."""
        return self._sent - self.turn.taken

    @property
    def unsent(self) -> int:
        """Tokens drawn and taken that have not left for the front."""
        return 0 if self.turn.task.scores else len(self._tokens)

    @property
    def has_scores(self) -> bool:
        """Whether there are enough scores to be sent."""
        top = 0 if self._tape is None else self._tape.top
        return self.turn.task.scores and len(self._tokens) * (1 + top) >= SCORES_PER_DELTA

    def stop(self) -> None:
        """Draw no more; what is to be told is still told."""
        self._stopped = True

    def told(self, left: int, steps: int) -> Tokens:
        """The next `steps` of the `left` tokens that are still to be told, or fewer."""
        start = len(self._told) - left
        return self._told[start : start + steps]

    def mark_after(self, position: int) -> int:
        """The next position at which the state is to be remembered, or UNREACHED."""
        marks = self.turn.task.recall.marks
        # The newest token is pending: the state covers one less.
        place = bisect(marks, position - 1)
        return marks[place] + 1 if place < len(marks) else UNREACHED

    def score(self, tokens: list[int], logprobs: Floats) -> None:
        """Take told tokens [N] and the distributions [N, V] that they are of."""
        self._tokens.extend(tokens)
        if self._tape is not None:
            self._tape.record(tokens, logprobs)

    def take(self, tokens: list[int], logprobs: Floats | None) -> int:
        """Take drawn tokens [N], and their distributions [N, V] where the turn asks for them.

        Returns how many tokens there are behind the one that ends the text.
        """
        taken = self._text.push(tokens) if tokens else 0
        self._tokens.extend(tokens[:taken])
        self._drawn += taken
        if self._tape is not None and logprobs is not None and taken:
            self._tape.record(tokens[:taken], logprobs[:taken])
        return len(tokens) - taken

    @property
    def has_ended(self) -> bool:
        """Whether the text has ended, and nothing more is drawn."""
        return self._text.reason is not None

    def flush(self, now: float) -> Delta | None:
        """Everything that may be shown since the last delta; None where that is nothing."""
        text, count = ("", len(self._tokens)) if self.turn.task.scores else self._text.take()
        return self._delta(text, count, now)

    def finish(
        self, state: Floats | None, pending: int, position: int, now: float
    ) -> tuple[Delta | None, Ending]:
        """The last delta, and how the turn ended, with its final `state` [S] (None: zeros)."""
        task = self.turn.task
        text, _ = ("", 0) if task.scores else self._text.finish(task.keeps_partial)
        delta = self._delta(text, len(self._tokens), now)
        past = Past(
            state,
            pending if position > 0 else None,
            position,
            self._text.partial if task.keeps_partial else b"",
            self._text.previous,
        )
        told, reason = len(task.told), self._reason()
        stop, skipped = self._text.matched_stop, self._skipped
        return delta, Ending(reason, stop, told, self._drawn, past, skipped)

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

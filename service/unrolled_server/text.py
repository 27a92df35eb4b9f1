"""Drawn tokens to text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from unrolled_server.types import FinishReason, Tokens
from unrolled_server.vocabulary import Vocabulary

LONGEST_CHARACTER = 4
"""Bytes in UTF-8."""
SOME_TOKEN = -1
"""In place of one that shows, whichever that is."""


def partial_of(text: bytes) -> bytes:
    """The unfinished character at the end of UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return decoder.getstate()[0]


def partial_after(
    vocabulary: Vocabulary, partial: bytes, previous: int | None, told: Tokens
) -> bytes:
    """The unfinished character at the end of `partial` and of the text of the tokens `told`.

    `previous` is the newest token before them that shows.
    """
    end, following = b"", None
    for token in map(int, reversed(told)):
        if vocabulary.newest(SOME_TOKEN, token) == SOME_TOKEN:
            continue
        if following is not None:
            end = vocabulary.piece(token, following) + end
        if len(end) >= LONGEST_CHARACTER:
            return partial_of(end)
        following = token
    first = b"" if following is None else vocabulary.piece(previous, following)
    return partial_of(partial + first + end)


def newest_shown(vocabulary: Vocabulary, previous: int | None, told: Tokens) -> int | None:
    """The newest token that shows after `previous`, the newest before, and `told`."""
    newest = (vocabulary.newest(None, int(token)) for token in reversed(told))
    return next((token for token in newest if token is not None), previous)


class TextStream(Protocol):
    """The text of one turn's drawn tokens. After an ending nothing more may be pushed."""

    reason: FinishReason | None
    """Set once a stop string or an end token has ended the text."""
    matched_stop: str

    @property
    def partial(self) -> bytes:
        """The beginning of a character whose remaining bytes are yet to come."""

    @property
    def previous(self) -> int | None:
        """The newest token that shows, which the text of the next one depends on."""

    def push(self, tokens: Sequence[int]) -> int:
        """Take drawn tokens up to the one that ends the text; returns how many were taken."""

    def take(self) -> tuple[str, int]:
        """The text released since the last call, and the number of tokens it came from."""

    def finish(self, keeps_partial: bool) -> tuple[str, int]:
        """Everything that is left; an unfinished character becomes U+FFFD unless kept."""


def text_stream(
    vocabulary: Vocabulary, stops: Sequence[str], partial: bytes, previous: int | None = None
) -> TextStream:
    """The cheapest stream that does what a turn needs, after `previous`, the newest that shows."""
    if vocabulary.whole_characters and not stops and not partial:
        return PlainText(vocabulary)
    return HeldText(vocabulary, stops, partial, previous)


class PlainText:
    """Text in which every token stands for itself: nothing is ever held back."""

    partial = b""
    previous = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens: list[int] = []
        self.reason: FinishReason | None = None
        self.matched_stop = ""

    def push(self, tokens: Sequence[int]) -> int:
        if self._vocabulary.end_tokens.isdisjoint(tokens):
            self._tokens.extend(tokens)
            return len(tokens)
        taken = 1 + min(map(tokens.index, self._vocabulary.end_tokens.intersection(tokens)))
        self._tokens.extend(tokens[:taken])
        self.reason = FinishReason.END
        return taken

    def take(self) -> tuple[str, int]:
        tokens, self._tokens = self._tokens, []
        shown = tokens[:-1] if self.reason is FinishReason.END else tokens
        return self._vocabulary.decode(shown), len(tokens)

    def finish(self, keeps_partial: bool) -> tuple[str, int]:
        return self.take()


class HeldText:
    """Text held back while it may be the beginning of a stop string or of a character.

    A token is held back with its text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        partial: bytes,
        previous: int | None = None,
    ) -> None:
        self.previous = previous
        self._vocabulary = vocabulary
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((partial, 0))
        self._ready: list[str] = []
        self._held = ""
        self._decoded = 0
        self._released = 0
        self._unplaced = 0
        self._ends: deque[int] = deque()
        self.reason: FinishReason | None = None
        self.matched_stop = ""

    @property
    def partial(self) -> bytes:
        return self._decoder.getstate()[0]

    def push(self, tokens: Sequence[int]) -> int:
        for taken, token in enumerate(tokens, 1):
            self._push(token)
            if self.reason is not None:
                return taken
        return len(tokens)

    def take(self) -> tuple[str, int]:
        text = "".join(self._ready)
        self._ready.clear()
        count = 0
        while self._ends and self._ends[0] <= self._released:
            self._ends.popleft()
            count += 1
        return text, count

    def finish(self, keeps_partial: bool) -> tuple[str, int]:
        if self.reason is not FinishReason.STOP:
            tail = "" if keeps_partial else self._decoder.decode(b"", final=True)
            self._release(self._held + tail)
        count = len(self._ends) + self._unplaced
        self._ends.clear()
        self._unplaced = 0
        return self.take()[0], count

    def _push(self, token: int) -> None:
        self._unplaced += 1
        piece = self._vocabulary.piece(self.previous, token)
        self.previous = self._vocabulary.newest(self.previous, token)
        if token in self._vocabulary.end_tokens:
            self.reason = FinishReason.END
            return
        new = self._decoder.decode(piece)
        self._decoded += len(new)
        if not self._decoder.getstate()[0]:
            self._ends.extend([self._decoded] * self._unplaced)
            self._unplaced = 0
        if new:
            self._scan(self._held + new)

    def _scan(self, text: str) -> None:
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            start, self.matched_stop = min(found, key=lambda match: match[0])
            self.reason = FinishReason.STOP
            self._release(text[:start])
            return
        keep = self._longest_beginning(text)
        self._release(text[: len(text) - keep])
        self._held = text[len(text) - keep :]

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _release(self, text: str) -> None:
        self._released += len(text)
        if text:
            self._ready.append(text)

"""What lanes tell the turns they advance: when it leaves, and how it gets to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from unrolled_server.stats import EngineStats
from unrolled_server.turn import Turn
from unrolled_server.types import Delta, Ending, Prefix

Message = Delta | Ending | Exception | Prefix


@dataclass(frozen=True)
class Flushing:
    """When the tokens that a row has drawn leave for the front; its first leave at once."""

    tokens: int = 16
    seconds: float = 0.02
    rate: float = 500.0
    """Messages a second of all rows together: where rows are many, each waits longer."""

    def interval(self, rows: int) -> float:
        """Seconds from one message of a row to its next, where it has not drawn `tokens` before."""
        return max(self.seconds, rows / self.rate)


class Outbox:
    """Messages of a step, which reach their turns in the event loop, all with one wake-up.

    Counts the tokens in them.
    """

    def __init__(
        self, stats: EngineStats, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self._stats = stats
        self._loop = loop
        self._clock = clock
        self._messages: list[tuple[Turn, Message]] = []

    def put(self, turn: Turn, message: Message) -> None:
        """A message for a turn."""
        self._messages.append((turn, message))

    def put_ending(self, turn: Turn, ending: Ending) -> None:
        """The last message for a turn."""
        self.put(turn, ending)
        if turn.task.scores:
            self._stats.scored_tokens += ending.told
        else:
            self._stats.prompt_tokens += ending.told

    def put_delta(self, turn: Turn, delta: Delta, now: float) -> None:
        """Text and tokens for a turn. Tokens may be held back longer than the text before them."""
        self.put(turn, delta)
        count, stats = len(delta.token_ids), self._stats
        if turn.task.scores or not count:
            return
        stats.generated_tokens += count
        if turn.newest_token is None:
            turn.first_token = now
            stats.first_token.observe(now - turn.created)
        else:
            stats.inter_token.observe((now - turn.newest_token) / count, count)
        turn.newest_token = now

    def deliver(self) -> bool:
        """Hand all messages to the event loop; whether there still is one."""
        if not self._messages:
            return True
        messages, self._messages = self._messages, []
        started = self._clock()
        try:
            self._loop.call_soon_threadsafe(_receive, messages)
        except RuntimeError:
            return False
        self._stats.parts["delivery"].observe(self._clock() - started)
        return True


def _receive(messages: list[tuple[Turn, Message]]) -> None:
    for turn, message in messages:
        turn.receive(message)

"""A turn under way: held, submitted, handed out, committed; and all those that are.

Everything here runs in the event loop's thread. A turn left before its commit leaves no trace; one
left after the commit has begun stands, unless the commit fails: the session is held until then.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeAlias

from unrolled_server.answers import Answer
from unrolled_server.errors import Draining, ServerError
from unrolled_server.models import ServedModel
from unrolled_server.session import Session
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.turn import Task, Turn
from unrolled_server.turn_times import TurnTimes, TurnWatcher
from unrolled_server.types import Delta, Ending, Outcome

Record: TypeAlias = Callable[[Outcome], Answer | None]
"""What goes on the session's record when a turn has ended so."""


class ActiveTurn:
    """A turn under way: iterate over its deltas, then read `outcome`.

    An asynchronous context manager; leaving it early cancels the turn without a trace.
    """

    def __init__(
        self,
        under_way: TurnsUnderWay,
        sessions: SessionKeeper,
        model: ServedModel,
        session: Session | None,
        task: Task,
        reads_only: bool,
        record: Record | None,
        begun: float,
    ) -> None:
        self.model = model
        self._record = record
        self._under_way = under_way
        self._sessions = sessions
        self._read = session if reads_only else None
        self._session = None if reads_only else session
        self._turn = Turn(task, begun)
        self._ended: float | None = None
        self._outcome: Outcome | None = None
        self._lost: ServerError | None = None
        """Why the session ended while the turn was under way."""

    @property
    def outcome(self) -> Outcome:
        """How the turn ended; there once the deltas are through."""
        if self._outcome is None:
            raise RuntimeError("the turn has not ended")
        return self._outcome

    @property
    def told(self) -> int:
        """Tokens that the turn tells."""
        return len(self._turn.task.told)

    @property
    def max_tokens(self) -> int:
        """Tokens that the turn draws at most."""
        return self._turn.task.max_tokens

    def stop(self) -> None:
        """Draw no more; the turn ends with what was drawn."""
        self._turn.stopping = True
        self.model.engine.nudge()

    def cut_short(self) -> bool:
        """Fail the turn, unless the engine is through with it; whether it fails."""
        is_cut = self._ended is None and not self._turn.is_through
        self._turn.receive(Draining("waits for this turn no longer; it has left no trace"))
        return is_cut

    async def __aenter__(self) -> ActiveTurn:
        if self._session is not None:
            self._sessions.hold(self._session, self._end_with_session)
        if self._read is not None:
            self._sessions.touch(self._read)
        self._under_way.enter(self)
        self.model.engine.submit(self._turn)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._under_way.leave(self)
        if self._session is not None:
            self._sessions.release(self._session)
        if self._outcome is None:
            self._turn.cancelled = True
            self.model.engine.nudge()
        self._under_way.tell_watchers(self._times)

    def _times(self) -> TurnTimes:
        turn, over = self._turn, time.perf_counter()
        drawn = None if self._outcome is None else self._outcome.ending.drawn
        marks = (turn.created, turn.joined, turn.first_token, self._ended, over)
        return TurnTimes(self.model.label, self.told, self.max_tokens, drawn, *marks)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            message = await self._turn.next()
            if isinstance(message, Ending):
                self._ended = time.perf_counter()
                await self._commit(message)
                return
            if self._turn.parked:
                self.model.engine.nudge()
            yield message

    async def _commit(self, ending: Ending) -> None:
        seed, sessions = self._turn.task.sampling.seed, self._sessions
        if self._session is None:
            self._outcome = Outcome(ending, "", self.model.label, seed)
            return
        if self._lost is not None:
            # After the last message from the engine, and before this.
            raise self._lost
        name, level = self._session.name, sessions.durability
        outcome = Outcome(ending, name, self.model.label, seed, level)
        answer = None if self._record is None else self._record(outcome)
        level = await sessions.commit(self._session, ending.past, answer)
        self._outcome = replace(outcome, durability=level)

    def _end_with_session(self) -> None:
        """The session is deleted, or taken over, while its turn is under way."""
        if self._session is not None:
            self._lost = self._sessions.why_ended(self._session.name)
            self._turn.receive(self._lost)


class TurnsUnderWay:
    """Every turn under way, and who wants to know when one is over."""

    def __init__(self, watchers: Sequence[TurnWatcher]) -> None:
        self._watchers = watchers
        self._turns: set[ActiveTurn] = set()
        self._of_model: Counter[ServedModel] = Counter()
        self.idle = asyncio.Event()
        """Set while there are none."""
        self.idle.set()

    def of_model(self, model: ServedModel) -> int:
        """How many there are of one model."""
        return self._of_model[model]

    def enter(self, turn: ActiveTurn) -> None:
        """A turn has begun."""
        self._turns.add(turn)
        self._of_model[turn.model] += 1
        self.idle.clear()

    def leave(self, turn: ActiveTurn) -> None:
        """A turn has ended, one way or the other."""
        self._turns.remove(turn)
        self._of_model[turn.model] -= 1
        if not self._turns:
            self.idle.set()

    def cut_short(self) -> int:
        """Fail the turns that the engines are not through with; how many these are."""
        return sum(turn.cut_short() for turn in self._turns)

    def tell_watchers(self, times: Callable[[], TurnTimes]) -> None:
        """A turn is over; `times` is asked for where anybody wants to know."""
        if self._watchers:
            known = times()
            for watch in self._watchers:
                watch(known)

"""Turns from a request to its outcome: resolve, hold, submit, hand out, commit.

Everything here runs in the event loop's thread. A turn left before its commit leaves no trace; one
left after the commit has begun stands, unless the commit fails: the session is held until then.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeAlias

import numpy as np

from unrolled_server.answers import Answer
from unrolled_server.errors import (
    Draining,
    InvalidField,
    NothingToContinue,
    Overloaded,
    ServerError,
    SessionBusy,
    UnknownText,
)
from unrolled_server.models import Models, ServedModel
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.session import Session
from unrolled_server.session_keeper import SessionKeeper, check_position
from unrolled_server.store import Claim
from unrolled_server.turn import Recall, Task, Turn
from unrolled_server.turn_times import TurnTimes, TurnWatcher
from unrolled_server.types import (
    DEFAULT_MAX_TOKENS,
    Checkpoint,
    Delta,
    Ending,
    Outcome,
    Sampling,
    Tokens,
    TurnRequest,
)
from unrolled_server.vocabulary import UnknownSymbol

FRESH = Checkpoint(None, None, 0)

Record: TypeAlias = Callable[[Outcome], Answer | None]
"""What goes on the session's record when a turn has ended so."""


@dataclass(frozen=True)
class TurnLimits:
    """What one turn, and all turns together, may ask for."""

    max_tokens: int
    max_prompt_bytes: int
    turns_per_model: int
    """Turns of one model that are under way or wait."""


class ActiveTurn:
    """A turn under way: iterate over its deltas, then read `outcome`.

    An asynchronous context manager; leaving it early cancels the turn without a trace.
    """

    def __init__(
        self,
        turns: Turns,
        model: ServedModel,
        session: Session | None,
        task: Task,
        reads_only: bool,
        record: Record | None,
        begun: float,
    ) -> None:
        self.model = model
        self._record = record
        self._turns = turns
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
            self._turns.sessions.memory.hold(self._session, self._end_with_session)
        if self._read is not None:
            self._turns.sessions.touch(self._read)
        self._turns.entered(self)
        self.model.engine.submit(self._turn)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._turns.left(self)
        if self._session is not None:
            self._turns.sessions.release(self._session)
        if self._outcome is None:
            self._turn.cancelled = True
            self.model.engine.nudge()
        self._turns.tell_watchers(self._times)

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
        seed, sessions = self._turn.task.sampling.seed, self._turns.sessions
        if self._session is None:
            self._outcome = Outcome(ending, "", self.model.label, seed)
            return
        if self._lost is not None:
            # After the last message from the engine, and before this.
            raise self._lost
        name, level = self._session.name, sessions.durability
        outcome = Outcome(ending, name, self.model.label, seed, level)
        answer = None if self._record is None else self._record(outcome)
        level = await sessions.commit(self._session, ending.checkpoint, answer)
        self._outcome = replace(outcome, durability=level)

    def _end_with_session(self) -> None:
        """The session is deleted, or taken over, while its turn is under way."""
        if self._session is not None:
            self._lost = self._turns.sessions.why_ended(self._session.name)
            self._turn.receive(self._lost)


class Turns:
    """Begins turns and knows how many are under way."""

    def __init__(
        self,
        models: Models,
        sessions: SessionKeeper,
        limits: TurnLimits,
        prefixes: PrefixCache,
        watchers: Sequence[TurnWatcher] = (),
    ) -> None:
        """watchers: told of every turn that is over."""
        self._watchers = watchers
        self.models = models
        self.sessions = sessions
        self._limits = limits
        self._under_way: set[ActiveTurn] = set()
        self._of_model: Counter[ServedModel] = Counter()
        self.prefixes = prefixes
        self.draining = asyncio.Event()
        """Set once no more turns are taken."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float, at_once: asyncio.Event) -> int:
        """Take no more turns, and let those under way end; how many did not.

        They have `seconds`, or until `at_once` is set. The rest fail then, without a trace, but for
        those whose commit has begun.
        """
        self.draining.set()
        waits = {asyncio.create_task(event.wait()) for event in (self._idle, at_once)}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return sum(turn.cut_short() for turn in self._under_way)

    def entered(self, turn: ActiveTurn) -> None:
        """A turn has begun."""
        self._under_way.add(turn)
        self._of_model[turn.model] += 1
        self._idle.clear()

    def left(self, turn: ActiveTurn) -> None:
        """A turn has ended, one way or the other."""
        self._under_way.remove(turn)
        self._of_model[turn.model] -= 1
        if not self._under_way:
            self._idle.set()

    def tell_watchers(self, times: Callable[[], TurnTimes]) -> None:
        """A turn is over; `times` is asked for where anybody wants to know."""
        if self._watchers:
            known = times()
            for watch in self._watchers:
                watch(known)

    async def answered(self, request: TurnRequest) -> Answer | None:
        """The answer on record where the turn was committed before; None: it is to be run.

        Comes before `begin`, which compares the position that this very turn has moved.
        Raises ServerError where the request cannot be served.
        """
        if request.key is None or not request.session:
            return None
        return self.sessions.memory.answer(await self._session(request), request.key)

    async def begin(self, request: TurnRequest, record: Record | None = None) -> ActiveTurn:
        """Make a turn of a request; it starts when its context is entered.

        To be entered before the next await: until then nothing holds the session.

        On a session, what `record` says of the outcome is recorded together with the commit.
        Raises ServerError where the request cannot be served; nothing has changed then.
        """
        begun = time.perf_counter()
        if self.draining.is_set():
            raise Draining
        model, session = await self._resolve(request)
        self._check_room(model)
        start = FRESH if session is None else self.sessions.memory.checkpoint(session)
        task = self._task(request, model, session, start)
        return ActiveTurn(self, model, session, task, request.reads_only, record, begun)

    async def _resolve(self, request: TurnRequest) -> tuple[ServedModel, Session | None]:
        if not request.session:
            if not request.model:
                raise InvalidField("model", "a model or a session is needed")
            if request.expected_position is not None:
                raise InvalidField("expected_position", "needs a session")
            if request.key is not None:
                raise InvalidField("request_id", "needs a session")
            return self.models.model(request.model), None
        claim = None if request.reads_only else Claim(request.expected_position)
        session = await self._session(request, claim)
        if request.key is not None and self.sessions.memory.has_answer(session, request.key):
            # Since `answered` has looked, an earlier attempt has been committed elsewhere.
            raise SessionBusy(session.name)
        check_position(session, request.expected_position)
        return session.model, session

    async def _session(self, request: TurnRequest, claim: Claim | None = None) -> Session:
        def check(session: Session) -> None:
            """Raises what keeps the turn from beginning, but for its position and other turns."""
            check_model(request.model, session.model)
            self._check_room(session.model)
            self._tokens(request, session.model, self.sessions.memory.checkpoint(session))

        session = await self.sessions.load(request.session, claim, check)
        check_model(request.model, session.model)
        return session

    def _check_room(self, model: ServedModel) -> None:
        if self.draining.is_set():
            # Nobody waits for turns that begin now.
            raise Draining
        if self._of_model[model] >= self._limits.turns_per_model:
            raise Overloaded(self._limits.turns_per_model)

    def _tokens(
        self, request: TurnRequest, model: ServedModel, start: Checkpoint
    ) -> tuple[Tokens, int]:
        """What a turn tells, and how much it draws at most."""
        max_tokens = self._max_tokens(request.max_tokens)
        told = self._told(request, model, start.previous)
        nothing = start.pending is None and not len(told)
        if nothing and max_tokens and model.vocabulary.start_token is None:
            raise NothingToContinue(request.session, model.label)
        return told, max_tokens

    def _task(
        self, request: TurnRequest, model: ServedModel, session: Session | None, start: Checkpoint
    ) -> Task:
        told, max_tokens = self._tokens(request, model, start)
        return Task(
            start=start,
            told=told,
            max_tokens=max_tokens,
            sampling=self._sampling(request, session),
            stop=request.stop,
            logprobs=request.logprobs,
            scores=request.scores,
            keeps_partial=session is not None and not request.reads_only,
            recall=self._recall(request, model, start, told),
        )

    def _recall(
        self, request: TurnRequest, model: ServedModel, start: Checkpoint, told: Tokens
    ) -> Recall:
        # Scores need every token's run; nor are texts to be judged what prompts begin with.
        if request.scores or start.state is not None or start.pending is not None:
            return Recall()
        return self.prefixes.recall(model, told)

    def _max_tokens(self, asked: int | None) -> int:
        limit = self._limits.max_tokens
        if asked is None:
            return min(DEFAULT_MAX_TOKENS, limit)
        if asked > limit:
            raise InvalidField("max_tokens", f"{asked} is over the limit {limit}")
        return asked

    def _sampling(self, request: TurnRequest, session: Session | None) -> Sampling:
        seed = request.seed
        if seed is None:
            seed = secrets.randbits(64) if session is None else session.seed
        return Sampling(seed, request.temperature, request.top_k, request.top_p, request.min_p)

    def _told(self, request: TurnRequest, model: ServedModel, previous: int | None) -> Tokens:
        tell, field = request.tell, request.field
        if tell is None:
            return np.zeros(0, np.int32)
        limit = self._limits.max_prompt_bytes
        if isinstance(tell, str):
            size = len(tell.encode(errors="surrogatepass"))
            if size > limit:
                raise InvalidField(field, f"{size} bytes are over the limit {limit}")
            return self._encoded(tell, field, model, previous)
        if len(tell) > limit:
            raise InvalidField(field, f"{len(tell)} tokens are over the limit {limit}")
        return self._known(np.fromiter(tell, np.int32, len(tell)), field, model)

    @staticmethod
    def _known(tokens: Tokens, field: str, model: ServedModel) -> Tokens:
        size = model.vocabulary.size
        outside = np.flatnonzero((tokens < 0) | (tokens >= size))
        if len(outside):
            place = int(outside[0])
            raise InvalidField(f"{field}.ids[{place}]", f"{tokens[place]} is not in [0, {size})")
        return tokens

    @staticmethod
    def _encoded(text: str, field: str, model: ServedModel, previous: int | None) -> Tokens:
        try:
            return model.vocabulary.encode(text, previous)
        except UnknownSymbol as error:
            raise UnknownText(field, error.offset, error.text) from error


def check_model(name: str, model: ServedModel) -> None:
    """Raises InvalidField where another model is named than `model`, which a session is of."""
    if name not in ("", model.name, model.label):
        raise InvalidField("model", f"the session is of {model.label}, not {name}")

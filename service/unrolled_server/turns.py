"""Turns from a request on: which model and session, whether there is room, what is to be done.

Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from unrolled_server.active_turn import ActiveTurn, Record, TurnsUnderWay
from unrolled_server.answers import Answer
from unrolled_server.encoding import Encoder
from unrolled_server.errors import Draining, InvalidField, Overloaded, SessionBusy
from unrolled_server.models import Models, ServedModel
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.session import Session
from unrolled_server.session_keeper import Check, SessionKeeper, check_position
from unrolled_server.store import Claim
from unrolled_server.tasks import Draft, LongText, TurnLimits
from unrolled_server.turn import Task
from unrolled_server.turn_times import TurnWatcher
from unrolled_server.types import Past, TurnRequest

FRESH = Past(None, None, 0)


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
        self.models = models
        self.sessions = sessions
        self._limits = limits
        self._under_way = TurnsUnderWay(watchers)
        self._encoder = Encoder()
        self._encoding: Counter[ServedModel] = Counter()
        """Turns whose texts are being encoded, or wait for that."""
        self.prefixes = prefixes
        self.draining = asyncio.Event()
        """Set once no more turns are taken."""

    async def drain(self, seconds: float, at_once: asyncio.Event) -> int:
        """Take no more turns, and let those under way end; how many did not.

        They have `seconds`, or until `at_once` is set. The rest fail then, without a trace, but for
        those whose commit has begun.
        """
        self.draining.set()
        waits = {asyncio.create_task(event.wait()) for event in (self._under_way.idle, at_once)}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._under_way.cut_short()

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
        draft = Draft(request, self._limits)
        while True:
            try:
                model, session, task = await self._made(draft)
                break
            except LongText as error:
                long = error
            # Nothing is held meanwhile: the session may have moved when the tokens are there.
            await self._encode(draft, long)
        reads_only, sessions = request.reads_only, self.sessions
        return ActiveTurn(
            self._under_way, sessions, model, session, task, reads_only, record, begun
        )

    async def _made(self, draft: Draft) -> tuple[ServedModel, Session | None, Task]:
        """The task, and what it is of. Raises LongText."""
        model, session = await self._resolve(draft)
        self._check_room(model)
        start = FRESH if session is None else self.sessions.memory.past(session)
        return model, session, draft.task(model, session, start, self.prefixes)

    async def _encode(self, draft: Draft, long: LongText) -> None:
        self._encoding[long.model] += 1
        try:
            await draft.encode(long, self._encoder)
        finally:
            self._encoding[long.model] -= 1

    async def _resolve(self, draft: Draft) -> tuple[ServedModel, Session | None]:
        request = draft.request
        if not request.session:
            if not request.model:
                raise InvalidField("model", "a model or a session is needed")
            if request.expected_position is not None:
                raise InvalidField("expected_position", "needs a session")
            if request.key is not None:
                raise InvalidField("request_id", "needs a session")
            return self.models.model(request.model), None

        def check(session: Session) -> None:
            """Raises what keeps the turn from beginning, but for its position and other turns."""
            check_model(request.model, session.model)
            self._check_room(session.model)
            self._check_unanswered(request, session)
            draft.check(session.model, self.sessions.memory.past(session))

        claim = None if request.reads_only else Claim(request.expected_position)
        session = await self._session(request, claim, check)
        self._check_unanswered(request, session)
        check_position(session, request.expected_position)
        return session.model, session

    async def _session(
        self, request: TurnRequest, claim: Claim | None = None, check: Check | None = None
    ) -> Session:
        session = await self.sessions.load(request.session, claim, check)
        check_model(request.model, session.model)
        return session

    def _check_unanswered(self, request: TurnRequest, session: Session) -> None:
        """Raises SessionBusy where an earlier attempt was committed since `answered` looked."""
        if request.key is not None and self.sessions.memory.has_answer(session, request.key):
            raise SessionBusy(session.name)

    def _check_room(self, model: ServedModel) -> None:
        if self.draining.is_set():
            # Nobody waits for turns that begin now.
            raise Draining
        if self._under_way.of_model(model) + self._encoding[model] >= self._limits.turns_per_model:
            raise Overloaded(self._limits.turns_per_model)


def check_model(name: str, model: ServedModel) -> None:
    """Raises InvalidField where another model is named than `model`, which a session is of."""
    if name not in ("", model.name, model.label):
        raise InvalidField("model", f"the session is of {model.label}, not {name}")

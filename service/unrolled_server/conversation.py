"""Converse: one session, many commands, each a turn of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from google.rpc import status_pb2
from unrolled.v1 import completion_pb2, session_pb2

from unrolled_server.active_turn import ActiveTurn
from unrolled_server.bounded_queue import BoundedQueue
from unrolled_server.errors import (
    Draining,
    FieldError,
    InvalidField,
    ServerError,
    SlowReader,
)
from unrolled_server.recording import Recording, recorded_deltas, recorded_outcome
from unrolled_server.scoring import Scores, recorded_scores
from unrolled_server.session import Session
from unrolled_server.status import InternalError, status_of
from unrolled_server.turn import EngineFailure
from unrolled_server.turns import Turns, check_model
from unrolled_server.types import TurnRequest
from unrolled_server.wire import (
    checkpoint_id,
    complete_turn,
    delta_message,
    expected_position,
    feed_turn,
    idle_ttl,
    max_age,
    outcome_message,
    rewind_target,
    seed,
    session_message,
    standing_message,
)

Request = completion_pb2.ConverseRequest
Response = completion_pb2.ConverseResponse
Send = Callable[[Response], Awaitable[None]]

MAX_QUEUED = 64
MAX_QUEUED_BYTES = 1 << 20


@contextmanager
def fields_of(command: str | None) -> Iterator[None]:
    """Name fields by their path in the ConverseRequest that holds the command."""
    try:
        yield
    except FieldError as error:
        error.put_inside(command or "command")
        raise


def _check_existing(opening: Request.Open) -> None:
    """Refuse what is decided when a session is made. Raises InvalidField."""
    if opening.HasField("seed"):
        raise InvalidField("seed", "an existing session keeps its seed")
    if opening.undo:
        raise InvalidField("undo", "is for a new session: an existing one stays as made")
    for field in ("idle_ttl", "max_age"):
        if opening.HasField(field):
            raise InvalidField(field, "is for a new session: an existing one keeps its own")


class Command:
    """A command received and not ended yet."""

    def __init__(self, message: Request) -> None:
        self.message = message
        self.kind = message.WhichOneof("command")
        self.stopped = False
        self.over = False
        """Set once there is nothing left to stop."""
        self.turn: ActiveTurn | None = None

    def stop(self) -> None:
        """End the completion, now or as soon as it begins."""
        self.stopped = True
        if self.turn is not None:
            self.turn.stop()


class Conversation:
    """Carries out the commands of one stream in order; a stop acts as soon as it is read.

    A command that fails ends with an error event, and the stream goes on. Behind MAX_QUEUED
    commands that have not begun, or MAX_QUEUED_BYTES of them, nothing more is read, a stop neither.
    """

    def __init__(self, turns: Turns, send: Send) -> None:
        self._turns = turns
        self._send = send
        self._session: Session | None = None
        self._unfinished: list[Command] = []
        self._queue: BoundedQueue[Command | None] = BoundedQueue(MAX_QUEUED, MAX_QUEUED_BYTES)

    async def run(self, requests: AsyncIterator[Request]) -> None:
        """Serve the stream until the caller ends it.

        Raises Draining when the server ends it, SlowReader when the caller does not read.
        """
        reader = asyncio.create_task(self._read(requests))
        draining = asyncio.create_task(self._turns.draining.wait())
        try:
            while (command := await self._next(draining)) is not None:
                await self._answer(command)
                self._unfinished.remove(command)
            await reader
        finally:
            reader.cancel()
            draining.cancel()

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        """Queue the commands, and None once there are no more, whatever the reason."""
        try:
            async for message in requests:
                await self._receive(Command(message))
        except Exception:
            await self._queue.put(None)
            raise
        await self._queue.put(None)

    async def _receive(self, command: Command) -> None:
        if command.kind == "stop":
            self._stop(command.message.stop.command_id)
        else:
            self._unfinished.append(command)
            await self._queue.put(command, command.message.ByteSize())

    async def _next(self, draining: asyncio.Task[bool]) -> Command | None:
        """The next command; a server that drains waits for none."""
        getting = asyncio.create_task(self._queue.get())
        try:
            await asyncio.wait({getting, draining}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        raise Draining

    def _stop(self, id_: str) -> None:
        """Stop the first completion with this id, or of all if it is empty, that has not ended.

        Without one there is nothing to do.
        """
        for command in self._unfinished:
            if command.kind != "complete" or command.over:
                continue
            if id_ in ("", command.message.command_id):
                command.stop()
                return

    async def _answer(self, command: Command) -> None:
        failure: ServerError
        try:
            self._check_order(command)
            with fields_of(command.kind):
                await self._carry_out(command)
            return
        except SlowReader:
            # A write is still on its way: there is no telling the caller within the stream.
            raise
        except ServerError as error:
            failure = error
        except EngineFailure:
            # The engine has logged it; the session is where it was, and the stream goes on.
            failure = InternalError()
        command.over = True
        await self._event(command, error=status_of(failure))

    def _check_order(self, command: Command) -> None:
        """Refuse what does not come where it may in a stream. Raises InvalidField."""
        if command.kind is None:
            raise InvalidField("command", "a command is needed")
        if command.kind == "open" and self._session is not None:
            raise InvalidField("open", f"the stream has opened {self._session.name} already")
        if command.kind != "open" and self._session is None:
            raise InvalidField("open", f"comes before {command.kind}")

    async def _carry_out(self, command: Command) -> None:
        message = command.message
        if command.kind == "open":
            await self._open(command)
            return
        if self._session is None:
            raise RuntimeError("a command before open was let through")
        session = self._session.name
        if command.kind == "complete":
            for field in ("model", "session"):
                if getattr(message.complete, field):
                    raise InvalidField(field, "stays empty in a stream, which has opened one")
            message.complete.session = session
            await self._complete(command, complete_turn(message.complete))
        elif command.kind == "feed":
            await self._complete(command, feed_turn(message.feed, session, scores=False))
        elif command.kind == "score":
            await self._score(command, feed_turn(message.score, session, scores=True))
        elif command.kind == "checkpoint":
            await self._checkpoint(command, session)
        else:
            await self._rewind(command, session)

    async def _open(self, command: Command) -> None:
        opening, sessions = command.message.open, self._turns.sessions
        if opening.session:
            _check_existing(opening)
            session = await sessions.load(opening.session)
            check_model(opening.model, session.model)
            self._session = session
        else:
            if not opening.model:
                raise InvalidField("model", "a model or a session is needed")
            model = self._turns.models.model(opening.model)
            self._session = await sessions.create(
                model, seed(opening), idle_ttl(opening), undo=opening.undo, max_age=max_age(opening)
            )
        await self._event(command, opened=session_message(self._session.view))

    async def _complete(self, command: Command, request: TurnRequest) -> None:
        if (answer := await self._turns.answered(request)) is not None:
            command.over = True
            for part in recorded_deltas(answer):
                await self._event(command, delta=part)
            await self._event(command, outcome=recorded_outcome(answer))
            return
        recording = Recording(request.key)
        async with await self._turns.begin(request, recording.answer) as turn:
            command.turn = turn
            if command.stopped:
                turn.stop()
            async for delta in turn:
                part = delta_message(delta, turn.model.vocabulary)
                recording.add(part)
                await self._event(command, delta=part)
        command.over = True
        await self._event(command, outcome=outcome_message(turn.outcome))

    async def _score(self, command: Command, request: TurnRequest) -> None:
        if (answer := await self._turns.answered(request)) is not None:
            await self._event(command, score=recorded_scores(answer))
            await self._event(command, outcome=recorded_outcome(answer))
            return
        scores = Scores(command.message.score.HasField("logprobs"), request.key)
        async with await self._turns.begin(request, scores.answer) as turn:
            async for delta in turn:
                scores.add(delta, turn.model.vocabulary)
        await self._event(command, score=scores.response(turn.model.label))
        await self._event(command, outcome=outcome_message(turn.outcome))

    async def _checkpoint(self, command: Command, session: str) -> None:
        message, sessions = command.message.checkpoint, self._turns.sessions
        id_ = checkpoint_id(message)
        view, level = await sessions.change(
            session, expected_position(message), lambda standing: standing.with_checkpoint(id_)
        )
        await self._event(command, checkpointed=standing_message(view, level))

    async def _rewind(self, command: Command, session: str) -> None:
        message, sessions = command.message.rewind, self._turns.sessions
        id_ = rewind_target(message)
        view, level = await sessions.change(
            session, expected_position(message), lambda standing: standing.rewound(id_)
        )
        await self._event(command, rewound=standing_message(view, level))

    async def _event(
        self,
        command: Command,
        *,
        opened: session_pb2.Session | None = None,
        delta: completion_pb2.Delta | None = None,
        score: completion_pb2.ScoreResponse | None = None,
        outcome: completion_pb2.Outcome | None = None,
        error: status_pb2.Status | None = None,
        checkpointed: Response.Standing | None = None,
        rewound: Response.Standing | None = None,
    ) -> None:
        await self._send(
            Response(
                command_id=command.message.command_id,
                opened=opened,
                delta=delta,
                score=score,
                outcome=outcome,
                error=error,
                checkpointed=checkpointed,
                rewound=rewound,
            )
        )

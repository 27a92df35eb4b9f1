"""A session of the server, as an object."""

# ruff: noqa: ASYNC109 -- a timeout is the deadline of a gRPC call, and is sent to the server.

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, Unpack

from unrolled import requests
from unrolled.completion_stream import AsyncCompletionStream, CompletionStream
from unrolled.connection import AsyncConnection, Connection
from unrolled.errors import NotFound, UnrolledError
from unrolled.requests import CompletionOptions, Prompt
from unrolled.v1.completion_pb2 import CompleteResponse, Outcome, ScoreResponse
from unrolled.v1.session_pb2 import Session as SessionInfo


class _Facts:
    """What the server last said of a session."""

    def __init__(self, info: SessionInfo, owned: bool) -> None:
        self.info = info
        self._owned = owned

    @property
    def name(self) -> str:
        """sessions/ID."""
        return self.info.name

    @property
    def model(self) -> str:
        """name/version, for the whole life of the session."""
        return self.info.model

    @property
    def position(self) -> int:
        """Tokens told and drawn, as of the last answer this object got; `refresh` asks anew."""
        return self.info.position

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.model} at {self.position}>"

    def _advance(self, outcome: Outcome) -> None:
        # What is answered again may be from before the turn answered last.
        if not outcome.replayed or outcome.position > self.info.position:
            self.info.position = outcome.position


class Session(_Facts):
    """A session; every turn starts where the last one ended.

    `with` deletes it at the end if it was created, forked or imported here, and leaves it alone if
    it was attached by name or listed. Without `with` it lives on at the server until it is deleted
    or its time to live has passed. `info` holds the rest of what the server said (seed, times).
    """

    def __init__(self, connection: Connection, info: SessionInfo, *, owned: bool) -> None:
        super().__init__(info, owned)
        self._connection = connection

    def complete(
        self,
        prompt: Prompt | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompleteResponse:
        """One turn, answered whole."""
        request = requests.complete(prompt, None, self.name, options)
        response = self._connection.complete(request, timeout)
        self._advance(response.outcome)
        return response

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionStream:
        """One turn, as deltas; `position` moves when the outcome is read."""
        request = requests.complete(prompt, None, self.name, options)
        return self._connection.stream(request, timeout, self._advance)

    def feed(
        self,
        text: Prompt,
        *,
        expected_position: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Tells text and draws nothing."""
        return self.complete(
            text,
            max_tokens=0,
            expected_position=expected_position,
            request_id=request_id,
            timeout=timeout,
        ).outcome

    def score(
        self, text: Prompt, *, logprobs: int | None = None, timeout: float | None = None
    ) -> ScoreResponse:
        """Log-probabilities of text if it came next; the session stays where it is."""
        request = requests.score(text, None, self.name, logprobs)
        return self._connection.unary(self._connection.completions.Score, request, timeout)

    def fork(self, seed: int | None = None, *, timeout: float | None = None) -> Session:
        """A new session with the same past, which draws alike unless given another seed."""
        request = requests.fork_session(self.name, seed)
        response = self._connection.unary(self._connection.sessions.ForkSession, request, timeout)
        return Session(self._connection, response.session, owned=True)

    def export(
        self, *, ttl: float | timedelta | None = None, timeout: float | None = None
    ) -> bytes:
        """A sealed snapshot for `import_session`, on this server or another with the same key.

        `ttl`: seconds for which it can be imported; None is for ever.
        """
        request = requests.export_session(self.name, ttl)
        return self._connection.unary(
            self._connection.sessions.ExportSession, request, timeout
        ).snapshot

    def checkpoint(
        self,
        checkpoint: str,
        *,
        expected_position: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Gives the place where the session stands a name, for `rewind`; moves one of this name."""
        request = requests.checkpoint_session(self.name, checkpoint, expected_position)
        response = self._connection.unary(
            self._connection.sessions.CheckpointSession, request, timeout
        )
        self.info = response.session

    def rewind(
        self,
        checkpoint: str | None = None,
        *,
        expected_position: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Takes the session to one of its checkpoints, or takes its last turn back.

        The latter once after each turn, of a session that was made with `undo`.
        """
        request = requests.rewind_session(self.name, checkpoint, expected_position)
        response = self._connection.unary(self._connection.sessions.RewindSession, request, timeout)
        self.info = response.session

    def delete_checkpoint(self, checkpoint: str, *, timeout: float | None = None) -> None:
        """Forgets a checkpoint; the session stays where it is."""
        request = requests.delete_checkpoint(self.name, checkpoint)
        response = self._connection.unary(
            self._connection.sessions.DeleteCheckpoint, request, timeout
        )
        self.info = response.session

    def refresh(self, *, timeout: float | None = None) -> None:
        """Asks the server for `info` and thereby `position`."""
        request = requests.get_session(self.name)
        self.info = self._connection.unary(
            self._connection.sessions.GetSession, request, timeout
        ).session

    def delete(self, *, timeout: float | None = None) -> None:
        """Ends the session at the server."""
        request = requests.delete_session(self.name)
        self._connection.unary(self._connection.sessions.DeleteSession, request, timeout)
        self._owned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owned:
            return
        try:
            self.delete()
        except UnrolledError as failure:
            if not _may_pass(failure, error):
                raise


class AsyncSession(_Facts):
    """Session for asyncio: methods that call the server are awaited, `with` is `async with`."""

    def __init__(self, connection: AsyncConnection, info: SessionInfo, *, owned: bool) -> None:
        super().__init__(info, owned)
        self._connection = connection

    async def complete(
        self,
        prompt: Prompt | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompleteResponse:
        """One turn, answered whole."""
        request = requests.complete(prompt, None, self.name, options)
        response = await self._connection.complete(request, timeout)
        self._advance(response.outcome)
        return response

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> AsyncCompletionStream:
        """One turn, as deltas; `position` moves when the outcome is read."""
        request = requests.complete(prompt, None, self.name, options)
        return self._connection.stream(request, timeout, self._advance)

    async def feed(
        self,
        text: Prompt,
        *,
        expected_position: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Tells text and draws nothing."""
        response = await self.complete(
            text,
            max_tokens=0,
            expected_position=expected_position,
            request_id=request_id,
            timeout=timeout,
        )
        return response.outcome

    async def score(
        self, text: Prompt, *, logprobs: int | None = None, timeout: float | None = None
    ) -> ScoreResponse:
        """Log-probabilities of text if it came next; the session stays where it is."""
        request = requests.score(text, None, self.name, logprobs)
        return await self._connection.unary(self._connection.completions.Score, request, timeout)

    def fork(self, seed: int | None = None, *, timeout: float | None = None) -> SessionOpening:
        """A new session with the same past, which draws alike unless given another seed."""

        async def fork() -> AsyncSession:
            response = await self._connection.unary(
                self._connection.sessions.ForkSession,
                requests.fork_session(self.name, seed),
                timeout,
            )
            return AsyncSession(self._connection, response.session, owned=True)

        return SessionOpening(fork)

    async def export(
        self, *, ttl: float | timedelta | None = None, timeout: float | None = None
    ) -> bytes:
        """A sealed snapshot for `import_session`, on this server or another with the same key.

        `ttl`: seconds for which it can be imported; None is for ever.
        """
        request = requests.export_session(self.name, ttl)
        response = await self._connection.unary(
            self._connection.sessions.ExportSession, request, timeout
        )
        return response.snapshot

    async def checkpoint(
        self,
        checkpoint: str,
        *,
        expected_position: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Gives the place where the session stands a name, for `rewind`; moves one of this name."""
        request = requests.checkpoint_session(self.name, checkpoint, expected_position)
        response = await self._connection.unary(
            self._connection.sessions.CheckpointSession, request, timeout
        )
        self.info = response.session

    async def rewind(
        self,
        checkpoint: str | None = None,
        *,
        expected_position: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Takes the session to one of its checkpoints, or takes its last turn back.

        The latter once after each turn, of a session that was made with `undo`.
        """
        request = requests.rewind_session(self.name, checkpoint, expected_position)
        response = await self._connection.unary(
            self._connection.sessions.RewindSession, request, timeout
        )
        self.info = response.session

    async def delete_checkpoint(self, checkpoint: str, *, timeout: float | None = None) -> None:
        """Forgets a checkpoint; the session stays where it is."""
        request = requests.delete_checkpoint(self.name, checkpoint)
        response = await self._connection.unary(
            self._connection.sessions.DeleteCheckpoint, request, timeout
        )
        self.info = response.session

    async def refresh(self, *, timeout: float | None = None) -> None:
        """Asks the server for `info` and thereby `position`."""
        request = requests.get_session(self.name)
        response = await self._connection.unary(
            self._connection.sessions.GetSession, request, timeout
        )
        self.info = response.session

    async def delete(self, *, timeout: float | None = None) -> None:
        """Ends the session at the server."""
        request = requests.delete_session(self.name)
        await self._connection.unary(self._connection.sessions.DeleteSession, request, timeout)
        self._owned = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owned:
            return
        try:
            await self.delete()
        except UnrolledError as failure:
            if not _may_pass(failure, error):
                raise


class SessionOpening:
    """A session being opened: `await` gives it, `async with` gives it and deletes it after."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, AsyncSession]]) -> None:
        self._opening = opening
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        return self._opening().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._opening()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, traceback)


def _may_pass(failure: UnrolledError, error: BaseException | None) -> bool:
    """Whether a deletion at the end of `with` may fail silently.

    It may when the session is gone already, and when it would hide the body's own error.
    """
    return isinstance(failure, NotFound) or error is not None

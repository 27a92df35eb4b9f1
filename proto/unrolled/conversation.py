"""One session, many commands, over one bidirectional call."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterator
from datetime import timedelta
from queue import SimpleQueue
from types import TracebackType
from typing import Self, Unpack, cast

import grpc

from unrolled import requests
from unrolled.connection import AsyncConnection, Connection, deadline
from unrolled.errors import error_from_rpc, translated
from unrolled.requests import CompletionOptions, Prompt
from unrolled.v1.completion_pb2 import ConverseRequest, ConverseResponse

_ENDED = "the conversation has ended"


class Conversation:
    """Sends commands and iterates over the events they cause, each with its command's id.

    `open` comes first. Commands are queued and run in order; every method returns the command's
    id at once, before anything is sent. A command that fails ends with an event whose `error`
    is set (`error_from_status` makes an exception of it) and the conversation goes on; when the
    call itself fails, the iteration raises, and so does any command given after that. After
    `close`, `cancel` or an end without failure a command raises RuntimeError.

    One thread may iterate while others give commands; `stop` may be called in a signal handler.
    Leaving `with` gives up what is not answered yet: `close` and iterate to the end to have it.
    """

    def __init__(self, connection: Connection, session: str, timeout: float | None) -> None:
        self._ids = itertools.count(1)
        # SimpleQueue.put is reentrant, which a signal handler needs.
        self._commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        self._closed = False
        sent: Iterator[ConverseRequest] = iter(self._commands.get, None)
        self._call = connection.completions.Converse(
            sent, timeout=deadline(timeout), metadata=connection.metadata(session)
        )
        # Ends the thread that sends commands. A call that is over already calls nothing back.
        end = functools.partial(self._commands.put, None)
        if not self._call.add_callback(end):
            end()

    def open(
        self,
        model: str | None = None,
        *,
        session: str | None = None,
        seed: int | None = None,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
    ) -> str:
        """A new session of `model`, or the existing `session`; answered by `opened`.

        With both, the session has to be of that model. Of a new one: `idle_ttl`, seconds without
        use after which it ends; `max_age`, seconds after which it ends however it is used; `undo`,
        keep where it stood before its last turn, for `rewind`.
        """
        return self._send(requests.open_command(model, session, seed, idle_ttl, max_age, undo))

    def feed(
        self, text: Prompt, *, expected_position: int | None = None, request_id: str | None = None
    ) -> str:
        """Tells text and draws nothing; answered by `outcome`."""
        return self._send(requests.feed_command(text, expected_position, request_id))

    def complete(self, prompt: Prompt | None = None, **options: Unpack[CompletionOptions]) -> str:
        """Answered by `delta` events and an `outcome`."""
        return self._send(requests.complete_command(prompt, options))

    def score(
        self,
        text: Prompt,
        *,
        logprobs: int | None = None,
        expected_position: int | None = None,
        request_id: str | None = None,
    ) -> str:
        """Tells text, advancing the session; answered by `score` and `outcome`."""
        command = requests.score_command(text, logprobs, expected_position, request_id)
        return self._send(command)

    def checkpoint(self, checkpoint: str, *, expected_position: int | None = None) -> str:
        """Gives the place where the session stands a name; answered by `checkpointed`."""
        return self._send(requests.checkpoint_command(checkpoint, expected_position))

    def rewind(self, checkpoint: str | None = None, *, expected_position: int | None = None) -> str:
        """Takes the session to a checkpoint, or its last turn back; answered by `rewound`."""
        return self._send(requests.rewind_command(checkpoint, expected_position))

    def stop(self, command_id: str | None = None) -> str:
        """Ends a completion; what was delivered stands.

        `command_id`: what `complete` returned; one that has ended is left alone. None is the
        completion in progress, or else the first one in line.
        """
        return self._send(requests.stop_command(command_id))

    def close(self) -> None:
        """No more commands; the events of those given still come."""
        self._closed = True
        self._commands.put(None)

    def cancel(self) -> None:
        """Ends the call at once; a turn in progress leaves no trace."""
        self._closed = True
        self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ConverseResponse:
        with translated():
            return next(self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _send(self, command: ConverseRequest) -> str:
        if self._closed or not self._call.is_active():
            raise self._ended()
        command.command_id = str(next(self._ids))
        self._commands.put(command)
        return command.command_id

    def _ended(self) -> Exception:
        if self._closed or self._call.code() is grpc.StatusCode.OK:
            return RuntimeError(_ENDED)
        # What is iterated over for threads is what it raises, too.
        return error_from_rpc(cast("grpc.RpcError", self._call))


class AsyncConversation:
    """Conversation for asyncio: commands are awaited, events come by `async for`.

    A command is sent when its method returns. Tasks may give commands and iterate side by side.
    """

    def __init__(self, connection: AsyncConnection, session: str, timeout: float | None) -> None:
        self._ids = itertools.count(1)
        self._closed = False
        # gRPC takes one message of a call at a time.
        self._sending = asyncio.Lock()
        self._call = connection.completions.Converse(
            timeout=deadline(timeout), metadata=connection.metadata(session)
        )

    async def open(
        self,
        model: str | None = None,
        *,
        session: str | None = None,
        seed: int | None = None,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
    ) -> str:
        """A new session of `model`, or the existing `session`; answered by `opened`.

        With both, the session has to be of that model. Of a new one: `idle_ttl`, seconds without
        use after which it ends; `max_age`, seconds after which it ends however it is used; `undo`,
        keep where it stood before its last turn, for `rewind`.
        """
        return await self._send(
            requests.open_command(model, session, seed, idle_ttl, max_age, undo)
        )

    async def feed(
        self, text: Prompt, *, expected_position: int | None = None, request_id: str | None = None
    ) -> str:
        """Tells text and draws nothing; answered by `outcome`."""
        return await self._send(requests.feed_command(text, expected_position, request_id))

    async def complete(
        self, prompt: Prompt | None = None, **options: Unpack[CompletionOptions]
    ) -> str:
        """Answered by `delta` events and an `outcome`."""
        return await self._send(requests.complete_command(prompt, options))

    async def score(
        self,
        text: Prompt,
        *,
        logprobs: int | None = None,
        expected_position: int | None = None,
        request_id: str | None = None,
    ) -> str:
        """Tells text, advancing the session; answered by `score` and `outcome`."""
        command = requests.score_command(text, logprobs, expected_position, request_id)
        return await self._send(command)

    async def checkpoint(self, checkpoint: str, *, expected_position: int | None = None) -> str:
        """Gives the place where the session stands a name; answered by `checkpointed`."""
        return await self._send(requests.checkpoint_command(checkpoint, expected_position))

    async def rewind(
        self, checkpoint: str | None = None, *, expected_position: int | None = None
    ) -> str:
        """Takes the session to a checkpoint, or its last turn back; answered by `rewound`."""
        return await self._send(requests.rewind_command(checkpoint, expected_position))

    async def stop(self, command_id: str | None = None) -> str:
        """Ends a completion; what was delivered stands.

        `command_id`: what `complete` returned; one that has ended is left alone. None is the
        completion in progress, or else the first one in line.
        """
        return await self._send(requests.stop_command(command_id))

    async def close(self) -> None:
        """No more commands; the events of those given still come."""
        self._closed = True
        async with self._sending:
            await self._call.done_writing()

    def cancel(self) -> None:
        """Ends the call at once; a turn in progress leaves no trace."""
        self._closed = True
        self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConverseResponse:
        with translated():
            return await anext(aiter(self._call))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _send(self, command: ConverseRequest) -> str:
        command.command_id = str(next(self._ids))
        async with self._sending:
            if self._closed or self._call.done():
                raise await self._ended()
            with translated():
                await self._call.write(command)
        return command.command_id

    async def _ended(self) -> Exception:
        if self._closed or self._call.cancelled():
            return RuntimeError(_ENDED)
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return RuntimeError(_ENDED)
        trailers, details = await self._call.trailing_metadata(), await self._call.details()
        return error_from_rpc(
            grpc.aio.AioRpcError(code, await self._call.initial_metadata(), trailers, details)
        )

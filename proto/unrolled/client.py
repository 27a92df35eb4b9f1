"""The clients: for threads, and for asyncio."""

# ruff: noqa: ASYNC109 -- a timeout is the deadline of a gRPC call, and is sent to the server.

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from unrolled import requests
from unrolled.completion_stream import AsyncCompletionStream, CompletionStream
from unrolled.connection import AsyncConnection, Connection
from unrolled.conversation import AsyncConversation, Conversation
from unrolled.requests import CompletionOptions, Prompt
from unrolled.retrying import ChannelOptions
from unrolled.security import Tls, security
from unrolled.session import AsyncSession, Session, SessionOpening
from unrolled.v1.completion_pb2 import CompleteResponse, ScoreResponse
from unrolled.v1.model_pb2 import ListModelsRequest, Model

DEFAULT_TARGET = "127.0.0.1:50051"


class Client:
    """A server of recurrent language models. May be shared by threads; `with` or `close` ends it.

    target: HOST:PORT, or any gRPC name.
    timeout: seconds a call may take unless it says otherwise; None is as long as it takes. Each
        method takes a `timeout` of its own; math.inf waits for ever. Conversations have none
        but their own.
    tls: True, or a Tls that says more; False is plain text.
    credentials: of gRPC, instead of `tls`.
    api_key: what the server knows its callers by. To another machine it goes by TLS only, unless
        `api_key_over_plaintext` allows otherwise.
    options: gRPC channel options in addition to, or instead of, those set here.

    Reads, turns without a session and turns with a `request_id` are tried up to four times, within
    their timeout, where the answer is UNAVAILABLE or CANCELLED; everything else is tried once.

    Raises ValueError for arguments that do not go together, and ValueError or OSError for files of
    `tls` that cannot be used. Every method that calls the server raises UnrolledError where the
    call fails, and TypeError or ValueError for an option that no request can hold.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = None,
        tls: Tls | bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        api_key_over_plaintext: bool = False,
        options: ChannelOptions = (),
    ) -> None:
        secured = security(target, tls, credentials, api_key, api_key_over_plaintext)
        self._connection = Connection(target, timeout, secured, options)

    def complete(
        self,
        prompt: Prompt | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompleteResponse:
        """One turn, answered whole. Without a session it starts afresh and leaves nothing."""
        request = requests.complete(prompt, model, session, options)
        return self._connection.complete(request, timeout)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionStream:
        """One turn, as deltas while it is generated."""
        request = requests.complete(prompt, model, session, options)
        return self._connection.stream(request, timeout)

    def score(
        self,
        text: Prompt,
        *,
        model: str | None = None,
        session: str | None = None,
        logprobs: int | None = None,
        timeout: float | None = None,
    ) -> ScoreResponse:
        """Log-probability of text in nats. `logprobs` 0 adds each token's, N the likeliest too."""
        request = requests.score(text, model, session, logprobs)
        return self._connection.unary(self._connection.completions.Score, request, timeout)

    def converse(self, *, session: str | None = None, timeout: float | None = None) -> Conversation:
        """A conversation: commands to one session, and the events they cause.

        `session`: the existing one that `open` is going to name, for proxies before several
        servers: the call itself has to say where it goes.
        """
        return Conversation(self._connection, session or "", timeout)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Every model served, failed ones included; in long lists without vocabularies' tokens."""
        response = self._connection.unary(
            self._connection.models.ListModels, ListModelsRequest(), timeout
        )
        return list(response.models)

    def model(self, name: str, *, timeout: float | None = None) -> Model:
        """The latest ready version of a name, or name/version, its vocabulary's tokens included."""
        request = requests.get_model(name)
        return self._connection.unary(self._connection.models.GetModel, request, timeout).model

    def create_session(
        self,
        model: str,
        *,
        seed: int | None = None,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
        timeout: float | None = None,
    ) -> Session:
        """A new, empty session.

        `idle_ttl`: seconds without use after which it ends. `max_age`: seconds after which it ends
        however it is used. `undo`: keep where it stood before its
        last turn, so that `rewind` can take that back; it takes twice the memory then.
        """
        request = requests.create_session(model, seed, idle_ttl, max_age, undo)
        response = self._connection.unary(self._connection.sessions.CreateSession, request, timeout)
        return Session(self._connection, response.session, owned=True)

    def import_session(
        self,
        snapshot: bytes,
        *,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
        timeout: float | None = None,
    ) -> Session:
        """A new session that stands where the one stood that `snapshot` was exported from.

        `idle_ttl`, `max_age`, `undo`: as of `create_session`.
        """
        request = requests.import_session(snapshot, idle_ttl, max_age, undo)
        response = self._connection.unary(self._connection.sessions.ImportSession, request, timeout)
        return Session(self._connection, response.session, owned=True)

    def session(self, name: str, *, timeout: float | None = None) -> Session:
        """An existing session, by name."""
        request = requests.get_session(name)
        response = self._connection.unary(self._connection.sessions.GetSession, request, timeout)
        return Session(self._connection, response.session, owned=False)

    def delete_session(self, name: str, *, timeout: float | None = None) -> None:
        """Ends a session by its name, one that can no longer be read or served included."""
        request = requests.delete_session(name)
        self._connection.unary(self._connection.sessions.DeleteSession, request, timeout)

    def sessions(
        self, model: str | None = None, *, timeout: float | None = None
    ) -> Iterator[Session]:
        """Every session, or those of one model; pages are fetched as they are reached."""
        request = requests.list_sessions(model)
        while True:
            page = self._connection.unary(self._connection.sessions.ListSessions, request, timeout)
            for info in page.sessions:
                yield Session(self._connection, info, owned=False)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    @property
    def channel(self) -> grpc.Channel:
        """The channel itself, for services that have no method here, such as health."""
        return self._connection.channel

    def close(self) -> None:
        """Ends the connection and every call over it; sessions live on at the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """Client for asyncio, with the same methods; made and used within one running loop.

    Methods that call the server once are awaited. `stream` and `converse` return at once, for
    `async for`; `create_session` and `import_session` may be awaited, or entered with
    `async with`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = None,
        tls: Tls | bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        api_key_over_plaintext: bool = False,
        options: ChannelOptions = (),
    ) -> None:
        secured = security(target, tls, credentials, api_key, api_key_over_plaintext)
        self._connection = AsyncConnection(target, timeout, secured, options)

    async def complete(
        self,
        prompt: Prompt | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompleteResponse:
        """One turn, answered whole. Without a session it starts afresh and leaves nothing."""
        request = requests.complete(prompt, model, session, options)
        return await self._connection.complete(request, timeout)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> AsyncCompletionStream:
        """One turn, as deltas while it is generated."""
        request = requests.complete(prompt, model, session, options)
        return self._connection.stream(request, timeout)

    async def score(
        self,
        text: Prompt,
        *,
        model: str | None = None,
        session: str | None = None,
        logprobs: int | None = None,
        timeout: float | None = None,
    ) -> ScoreResponse:
        """Log-probability of text in nats. `logprobs` 0 adds each token's, N the likeliest too."""
        request = requests.score(text, model, session, logprobs)
        return await self._connection.unary(self._connection.completions.Score, request, timeout)

    def converse(
        self, *, session: str | None = None, timeout: float | None = None
    ) -> AsyncConversation:
        """A conversation: commands to one session, and the events they cause.

        `session`: the existing one that `open` is going to name, for proxies before several
        servers: the call itself has to say where it goes.
        """
        return AsyncConversation(self._connection, session or "", timeout)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Every model served, failed ones included; in long lists without vocabularies' tokens."""
        response = await self._connection.unary(
            self._connection.models.ListModels, ListModelsRequest(), timeout
        )
        return list(response.models)

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """The latest ready version of a name, or name/version, its vocabulary's tokens included."""
        response = await self._connection.unary(
            self._connection.models.GetModel, requests.get_model(name), timeout
        )
        return response.model

    def create_session(
        self,
        model: str,
        *,
        seed: int | None = None,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
        timeout: float | None = None,
    ) -> SessionOpening:
        """A new, empty session.

        `idle_ttl`: seconds without use after which it ends. `max_age`: seconds after which it ends
        however it is used. `undo`: keep where it stood before its
        last turn, so that `rewind` can take that back; it takes twice the memory then.
        """
        request = requests.create_session(model, seed, idle_ttl, max_age, undo)

        async def create() -> AsyncSession:
            response = await self._connection.unary(
                self._connection.sessions.CreateSession, request, timeout
            )
            return AsyncSession(self._connection, response.session, owned=True)

        return SessionOpening(create)

    def import_session(
        self,
        snapshot: bytes,
        *,
        idle_ttl: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        undo: bool = False,
        timeout: float | None = None,
    ) -> SessionOpening:
        """A new session that stands where the one stood that `snapshot` was exported from.

        `idle_ttl`, `max_age`, `undo`: as of `create_session`.
        """
        request = requests.import_session(snapshot, idle_ttl, max_age, undo)

        async def restore() -> AsyncSession:
            response = await self._connection.unary(
                self._connection.sessions.ImportSession, request, timeout
            )
            return AsyncSession(self._connection, response.session, owned=True)

        return SessionOpening(restore)

    async def session(self, name: str, *, timeout: float | None = None) -> AsyncSession:
        """An existing session, by name."""
        response = await self._connection.unary(
            self._connection.sessions.GetSession, requests.get_session(name), timeout
        )
        return AsyncSession(self._connection, response.session, owned=False)

    async def delete_session(self, name: str, *, timeout: float | None = None) -> None:
        """Ends a session by its name, one that can no longer be read or served included."""
        request = requests.delete_session(name)
        await self._connection.unary(self._connection.sessions.DeleteSession, request, timeout)

    async def sessions(
        self, model: str | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[AsyncSession]:
        """Every session, or those of one model; pages are fetched as they are reached."""
        request = requests.list_sessions(model)
        while True:
            page = await self._connection.unary(
                self._connection.sessions.ListSessions, request, timeout
            )
            for info in page.sessions:
                yield AsyncSession(self._connection, info, owned=False)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel itself, for services that have no method here, such as health."""
        return self._connection.channel

    async def close(self) -> None:
        """Ends the connection and every call over it; sessions live on at the server."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

"""A server in this process that speaks the contract and records what it hears.

It draws the same text in every turn and counts characters as tokens; sessions are real enough to
be created, advanced, forked, exported, imported, listed in pages and deleted, and have no
checkpoints. Tests read `received` and set the rest.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from unrolled.v1.completion_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOPPED,
    CompleteEvent,
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    ConverseResponse,
    Delta,
    FinishReason,
    Outcome,
    ScoreRequest,
    ScoreResponse,
    TokenLogprob,
    Usage,
)
from unrolled.v1.completion_pb2_grpc import (
    CompletionServiceServicer,
    add_CompletionServiceServicer_to_server,
)
from unrolled.v1.model_pb2 import (
    CELL_LSTM,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    Vocabulary,
)
from unrolled.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from unrolled.v1.session_pb2 import (
    CheckpointSessionRequest,
    CheckpointSessionResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DeleteCheckpointRequest,
    DeleteCheckpointResponse,
    DeleteSessionRequest,
    DeleteSessionResponse,
    ExportSessionRequest,
    ExportSessionResponse,
    ForkSessionRequest,
    ForkSessionResponse,
    GetSessionRequest,
    GetSessionResponse,
    ImportSessionRequest,
    ImportSessionResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    RewindSessionRequest,
    RewindSessionResponse,
    Session,
)
from unrolled.v1.session_pb2_grpc import (
    SessionServiceServicer,
    add_SessionServiceServicer_to_server,
)

_MessageT = TypeVar("_MessageT", bound=Message)

SEED = 7


def model(name: str = "tiny", version: int = 1) -> Model:
    """A model that is ready."""
    return Model(
        name=name,
        version=version,
        cell=CELL_LSTM,
        layers=[Model.Layer(input_size=96, hidden_size=512)] * 2,
        parameters=3_412_345,
        vocabulary=Vocabulary(kind=Vocabulary.KIND_CHARACTER, size=96),
        state_bytes=8192,
        status=Model.STATUS_READY,
    )


class FakeService(CompletionServiceServicer, SessionServiceServicer, ModelServiceServicer):
    def __init__(self) -> None:
        self.target = ""
        self.received: list[Message] = []
        # Seconds left to each call when it arrived; ages where it had no deadline.
        self.deadlines: list[float] = []
        # Each call and the session that its metadata names.
        self.routes: list[tuple[str, str | None]] = []
        self.models = [model()]
        self.sessions: dict[str, Session] = {}
        self._numbers = itertools.count(1)
        self.page_size = 2
        # What every turn draws, cut as it is delivered.
        self.drawn: Sequence[str] = ("To ", "be")
        # Makes the next call fail.
        self.failure: Status | None = None
        # Makes the next command of a conversation fail, but not `open`.
        self.command_failure: Status | None = None
        # Streams wait for `proceed` after their first delta. A conversation waits for `stop` there.
        self.holds = False
        self.proceed = threading.Event()
        self.heard_stop = threading.Event()
        self.ignores_stop = False
        # Set when the other side ended a stream that was waiting.
        self.abandoned = threading.Event()
        self._holding = False

    def heard(self, kind: type[_MessageT]) -> list[_MessageT]:
        """The requests of one kind, in order."""
        return [request for request in self.received if isinstance(request, kind)]

    def add_session(self, name: str, position: int = 0) -> Session:
        self.sessions[name] = Session(
            name=name,
            model="tiny/1",
            fingerprint="ab" * 32,
            position=position,
            seed=SEED,
            state_bytes=8192,
            use_time=Timestamp(seconds=1_700_000_000),
        )
        return self.sessions[name]

    # CompletionService

    def Complete(self, request: CompleteRequest, context: grpc.ServicerContext) -> CompleteResponse:
        self._hear(request, context)
        text = self._draw(request)
        return CompleteResponse(
            text=text,
            logprobs=_logprobs(text, request),
            outcome=self._commit(request, len(text)),
        )

    def StreamComplete(
        self, request: CompleteRequest, context: grpc.ServicerContext
    ) -> Iterator[CompleteEvent]:
        self._hear(request, context)
        context.add_callback(self._on_end)
        for delta in self._deltas(request):
            self._holding = self.holds
            yield CompleteEvent(delta=delta)
            if self.holds:
                self.proceed.wait()
            if not context.is_active():
                return
        yield CompleteEvent(outcome=self._commit(request, len(self._draw(request))))

    def Converse(
        self, request_iterator: Iterator[ConverseRequest], context: grpc.ServicerContext
    ) -> Iterator[ConverseResponse]:
        context.add_callback(self._on_end)
        session = Session()
        for command in request_iterator:
            self.received.append(command)
            if command.HasField("open"):
                session = self._opened(command.open)
                yield ConverseResponse(command_id=command.command_id, opened=session)
            elif self.command_failure is not None:
                error, self.command_failure = self.command_failure, None
                yield ConverseResponse(command_id=command.command_id, error=error)
            else:
                yield from self._carry_out(command, session.name, request_iterator)

    def Score(self, request: ScoreRequest, context: grpc.ServicerContext) -> ScoreResponse:
        self._hear(request, context)
        return _scored(request.text)

    # SessionService

    def CreateSession(
        self, request: CreateSessionRequest, context: grpc.ServicerContext
    ) -> CreateSessionResponse:
        self._hear(request, context)
        return CreateSessionResponse(session=self._new_session())

    def GetSession(
        self, request: GetSessionRequest, context: grpc.ServicerContext
    ) -> GetSessionResponse:
        self._hear(request, context)
        return GetSessionResponse(session=self._session(request.name, context))

    def ListSessions(
        self, request: ListSessionsRequest, context: grpc.ServicerContext
    ) -> ListSessionsResponse:
        self._hear(request, context)
        start = int(request.page_token or "0")
        end = start + self.page_size
        names = list(self.sessions)
        return ListSessionsResponse(
            sessions=[self.sessions[name] for name in names[start:end]],
            next_page_token=str(end) if end < len(names) else "",
        )

    def ForkSession(
        self, request: ForkSessionRequest, context: grpc.ServicerContext
    ) -> ForkSessionResponse:
        self._hear(request, context)
        parent = self._session(request.name, context)
        return ForkSessionResponse(session=self._new_session(parent.position))

    def ExportSession(
        self, request: ExportSessionRequest, context: grpc.ServicerContext
    ) -> ExportSessionResponse:
        self._hear(request, context)
        session = self._session(request.name, context)
        # Not text, so that whoever treats it as such is noticed.
        return ExportSessionResponse(snapshot=b"\xff\0\r\n%d" % session.position, session=session)

    def ImportSession(
        self, request: ImportSessionRequest, context: grpc.ServicerContext
    ) -> ImportSessionResponse:
        self._hear(request, context)
        position = int(request.snapshot.removeprefix(b"\xff\0\r\n"))
        return ImportSessionResponse(session=self._new_session(position))

    def CheckpointSession(
        self, request: CheckpointSessionRequest, context: grpc.ServicerContext
    ) -> CheckpointSessionResponse:
        self._hear(request, context)
        return CheckpointSessionResponse(session=self._session(request.name, context))

    def RewindSession(
        self, request: RewindSessionRequest, context: grpc.ServicerContext
    ) -> RewindSessionResponse:
        self._hear(request, context)
        return RewindSessionResponse(session=self._session(request.name, context))

    def DeleteCheckpoint(
        self, request: DeleteCheckpointRequest, context: grpc.ServicerContext
    ) -> DeleteCheckpointResponse:
        self._hear(request, context)
        return DeleteCheckpointResponse(session=self._session(request.name, context))

    def DeleteSession(
        self, request: DeleteSessionRequest, context: grpc.ServicerContext
    ) -> DeleteSessionResponse:
        self._hear(request, context)
        del self.sessions[self._session(request.name, context).name]
        return DeleteSessionResponse()

    # ModelService

    def ListModels(
        self, request: ListModelsRequest, context: grpc.ServicerContext
    ) -> ListModelsResponse:
        self._hear(request, context)
        return ListModelsResponse(models=self.models)

    def GetModel(self, request: GetModelRequest, context: grpc.ServicerContext) -> GetModelResponse:
        self._hear(request, context)
        return GetModelResponse(model=self.models[0])

    def _hear(self, request: Message, context: grpc.ServicerContext) -> None:
        self.received.append(request)
        self.deadlines.append(context.time_remaining())
        if self.failure is not None:
            failure, self.failure = self.failure, None
            _abort(context, failure)

    def _draw(self, request: CompleteRequest) -> str:
        return (
            "" if request.HasField("max_tokens") and not request.max_tokens else "".join(self.drawn)
        )

    def _deltas(self, request: CompleteRequest) -> Iterator[Delta]:
        if self._draw(request):
            for text in self.drawn:
                yield Delta(text=text, logprobs=_logprobs(text, request))

    def _commit(
        self,
        request: CompleteRequest,
        drawn: int,
        reason: FinishReason = FINISH_REASON_LENGTH,
    ) -> Outcome:
        told = len(request.prompt) or len(request.prompt_tokens.ids)
        session = self.sessions.get(request.session, Session())
        session.position += told + drawn
        return Outcome(
            finish_reason=reason,
            position=session.position,
            session=request.session,
            model="tiny/1",
            seed=request.seed or SEED,
            usage=Usage(prompt_tokens=told, completion_tokens=drawn),
        )

    def _carry_out(
        self, command: ConverseRequest, session: str, commands: Iterator[ConverseRequest]
    ) -> Iterator[ConverseResponse]:
        turn = CompleteRequest(session=session, prompt=command.complete.prompt, max_tokens=0)
        turn_id = command.command_id
        drawn, reason = 0, FINISH_REASON_LENGTH
        if command.HasField("feed"):
            turn.prompt = command.feed.text
        elif command.HasField("score"):
            turn.prompt = command.score.text
            yield ConverseResponse(command_id=turn_id, score=_scored(command.score.text))
        elif command.HasField("complete"):
            for text in self.drawn:
                self._holding = self.holds
                yield ConverseResponse(command_id=turn_id, delta=Delta(text=text))
                drawn += len(text)
                if self.holds:
                    if not self._await_stop(commands):
                        return
                    reason = FINISH_REASON_STOPPED
                    break
        else:
            return
        yield ConverseResponse(command_id=turn_id, outcome=self._commit(turn, drawn, reason))

    def _await_stop(self, commands: Iterator[ConverseRequest]) -> bool:
        """False where the other side has gone."""
        with suppress(grpc.RpcError):
            for command in commands:
                self.received.append(command)
                self.heard_stop.set()
                if not self.ignores_stop:
                    self._holding = False
                    return True
        return False

    def _on_end(self) -> None:
        # Not left to the handlers: gRPC may drop one between two messages.
        if self._holding:
            self.abandoned.set()
        self.proceed.set()

    def _opened(self, opening: ConverseRequest.Open) -> Session:
        return self.sessions[opening.session] if opening.session else self._new_session()

    def _new_session(self, position: int = 0) -> Session:
        return self.add_session(f"sessions/{next(self._numbers)}", position)

    def _session(self, name: str, context: grpc.ServicerContext) -> Session:
        if name not in self.sessions:
            _abort(context, session_not_found(name))
        return self.sessions[name]


class _Routes(grpc.ServerInterceptor):
    def __init__(self, fake: FakeService) -> None:
        self._fake = fake

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: Any
    ) -> Any:
        method = details.method.rpartition("/")[2]
        sent = [value for key, value in details.invocation_metadata if key == "unrolled-session"]
        self._fake.routes.append((method, sent[0] if sent else None))
        return continuation(details)


@contextmanager
def served(credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeService]:
    """A fake service on a port of its own; without credentials it speaks plain text."""
    fake = FakeService()
    server = grpc.server(ThreadPoolExecutor(max_workers=8), interceptors=[_Routes(fake)])
    add_CompletionServiceServicer_to_server(fake, server)
    add_ModelServiceServicer_to_server(fake, server)
    add_SessionServiceServicer_to_server(fake, server)
    address = "127.0.0.1:0"
    port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    fake.target = f"127.0.0.1:{port}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()


def failure(
    code: grpc.StatusCode,
    message: str,
    reason: str | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    domain: str = "unrolled",
    violations: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> Status:
    """A status as the server sends it."""
    status = Status(code=code.value[0], message=message)
    if reason is not None:
        info = ErrorInfo(reason=reason, domain=domain, metadata=metadata)
        status.details.add().Pack(info)
    if violations is not None:
        bad = BadRequest()
        for field, description in violations.items():
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    if retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after * 1e9))
        status.details.add().Pack(retry)
    return status


def session_not_found(name: str) -> Status:
    return failure(
        grpc.StatusCode.NOT_FOUND,
        f"session {name!r} is unknown or has ended",
        "SESSION_NOT_FOUND",
        {"session": name},
    )


def _abort(context: grpc.ServicerContext, status: Status) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status))


def _logprobs(text: str, request: CompleteRequest) -> list[TokenLogprob]:
    if not request.HasField("logprobs"):
        return []
    likeliest = [TokenLogprob.Alternative(token=b"e", logprob=-0.5)] * request.logprobs
    return [TokenLogprob(token=c.encode(), logprob=-1.0, top=likeliest) for c in text]


def _scored(text: str) -> ScoreResponse:
    """Every character -0.5, but nothing for the first."""
    tokens = [TokenLogprob(token=c.encode(), logprob=-0.5) for c in text]
    tokens[0].ClearField("logprob")
    return ScoreResponse(tokens=tokens, total_logprob=-0.5 * (len(text) - 1), model="tiny/1")

"""The services of the contract: requests in, domain calls, answers out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc.aio
from unrolled.v1 import (
    completion_pb2,
    completion_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

from unrolled_server.conversation import Conversation
from unrolled_server.errors import InvalidField
from unrolled_server.models import Models
from unrolled_server.recording import (
    Recording,
    recorded_deltas,
    recorded_outcome,
    recorded_response,
    response,
)
from unrolled_server.scoring import Scores
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.snapshots import Snapshots
from unrolled_server.turns import Turns
from unrolled_server.wire import (
    checkpoint_id,
    complete_turn,
    delta_message,
    expected_position,
    export_message,
    idle_ttl,
    max_age,
    outcome_message,
    rewind_target,
    score_turn,
    seed,
    session_message,
    snapshot_ttl,
)
from unrolled_server.writing import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class CompletionService(completion_pb2_grpc.CompletionServiceServicer):
    """Turns, whole or streamed. A stream left unread for `write_timeout` seconds fails."""

    def __init__(self, turns: Turns, write_timeout: float) -> None:
        self._turns = turns
        self._writer = Writer(write_timeout)

    async def Complete(
        self, request: completion_pb2.CompleteRequest, context: Context
    ) -> completion_pb2.CompleteResponse:
        asked = complete_turn(request, in_one_message=True)
        if (answer := await self._turns.answered(asked)) is not None:
            return recorded_response(answer)
        recording = Recording(asked.key, whole=True)
        async with await self._turns.begin(asked, recording.answer) as turn:
            async for delta in turn:
                recording.add(delta_message(delta, turn.model.vocabulary))
        return response(recording.said(), outcome_message(turn.outcome))

    # grpc.aio takes coroutines that write to the context for streams; the stubs' types do not.
    async def StreamComplete(  # type: ignore[override]
        self, request: completion_pb2.CompleteRequest, context: Context
    ) -> None:
        event = completion_pb2.CompleteEvent
        asked = complete_turn(request)
        if (answer := await self._turns.answered(asked)) is not None:
            for part in recorded_deltas(answer):
                await self._writer.write(context, event(delta=part))
            await self._writer.write(context, event(outcome=recorded_outcome(answer)))
            return
        recording = Recording(asked.key)
        async with await self._turns.begin(asked, recording.answer) as turn:
            async for delta in turn:
                part = delta_message(delta, turn.model.vocabulary)
                recording.add(part)
                await self._writer.write(context, event(delta=part))
        await self._writer.write(context, event(outcome=outcome_message(turn.outcome)))

    async def Converse(  # type: ignore[override]
        self, requests: AsyncIterator[completion_pb2.ConverseRequest], context: Context
    ) -> None:
        async def send(response: completion_pb2.ConverseResponse) -> None:
            await self._writer.write(context, response)

        await Conversation(self._turns, send).run(requests)

    async def Score(
        self, request: completion_pb2.ScoreRequest, context: Context
    ) -> completion_pb2.ScoreResponse:
        scores = Scores(request.HasField("logprobs"))
        async with await self._turns.begin(score_turn(request)) as turn:
            async for delta in turn:
                scores.add(delta, turn.model.vocabulary)
        return scores.response(turn.model.label)


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Sessions as resources."""

    def __init__(self, sessions: SessionKeeper, models: Models, snapshots: Snapshots) -> None:
        self._sessions = sessions
        self._models = models
        self._snapshots = snapshots

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Context
    ) -> session_pb2.CreateSessionResponse:
        model = self._models.model(_needed("model", request.model))
        session = await self._sessions.create(
            model, seed(request), idle_ttl(request), undo=request.undo, max_age=max_age(request)
        )
        return session_pb2.CreateSessionResponse(session=session_message(session.view))

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        session = await self._sessions.load(_needed("name", request.name))
        return session_pb2.GetSessionResponse(session=session_message(session.view))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidField("page_size", f"{request.page_size} is not in [1, {MAX_PAGE}]")
        size = request.page_size or DEFAULT_PAGE
        page, after = await self._sessions.page(request.model, size, request.page_token)
        if request.model and not (page or after or request.page_token):
            # Sessions of a model that is gone are listed; without any, the name is a wrong one.
            self._models.manifest(request.model)
        return session_pb2.ListSessionsResponse(
            sessions=map(session_message, page), next_page_token=after
        )

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.ForkSessionResponse:
        session = await self._sessions.fork(_needed("name", request.name), seed(request))
        return session_pb2.ForkSessionResponse(session=session_message(session.view))

    async def ExportSession(
        self, request: session_pb2.ExportSessionRequest, context: Context
    ) -> session_pb2.ExportSessionResponse:
        name = _needed("name", request.name)
        return export_message(await self._snapshots.export(name, snapshot_ttl(request)))

    async def ImportSession(
        self, request: session_pb2.ImportSessionRequest, context: Context
    ) -> session_pb2.ImportSessionResponse:
        session = await self._snapshots.restore(
            request.snapshot, idle_ttl(request), undo=request.undo, max_age=max_age(request)
        )
        return session_pb2.ImportSessionResponse(session=session_message(session.view))

    async def CheckpointSession(
        self, request: session_pb2.CheckpointSessionRequest, context: Context
    ) -> session_pb2.CheckpointSessionResponse:
        name, id_ = _needed("name", request.name), checkpoint_id(request)
        session, _ = await self._sessions.change(
            name, expected_position(request), lambda standing: standing.with_checkpoint(id_)
        )
        return session_pb2.CheckpointSessionResponse(session=session_message(session))

    async def RewindSession(
        self, request: session_pb2.RewindSessionRequest, context: Context
    ) -> session_pb2.RewindSessionResponse:
        name, id_ = _needed("name", request.name), rewind_target(request)
        session, _ = await self._sessions.change(
            name, expected_position(request), lambda standing: standing.rewound(id_)
        )
        return session_pb2.RewindSessionResponse(session=session_message(session))

    async def DeleteCheckpoint(
        self, request: session_pb2.DeleteCheckpointRequest, context: Context
    ) -> session_pb2.DeleteCheckpointResponse:
        name, id_ = _needed("name", request.name), checkpoint_id(request)
        session, _ = await self._sessions.change(
            name, None, lambda standing: standing.without_checkpoint(id_)
        )
        return session_pb2.DeleteCheckpointResponse(session=session_message(session))

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Context
    ) -> session_pb2.DeleteSessionResponse:
        await self._sessions.delete(_needed("name", request.name))
        return session_pb2.DeleteSessionResponse()


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """What is served, and what failed to load."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=self._models.listed)

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        manifest = self._models.manifest(_needed("name", request.name))
        return model_pb2.GetModelResponse(model=manifest)


def _needed(field: str, value: str) -> str:
    if not value:
        raise InvalidField(field, "must not be empty")
    return value

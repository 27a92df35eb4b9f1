"""Request messages, built in one place for the synchronous and the asyncio client.

All raise TypeError or ValueError, naming the option, for what the request cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypedDict

from unrolled.fields import duration, message, token_ids
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest, ScoreRequest, TokenIds
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import (
    CheckpointSessionRequest,
    CreateSessionRequest,
    DeleteCheckpointRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ImportSessionRequest,
    ListSessionsRequest,
    RewindSessionRequest,
)

# Text, or token ids of the model's vocabulary.
Prompt = str | Sequence[int]


class CompletionOptions(TypedDict, total=False):
    """How a completion is drawn. Left out or None: the server's default.

    max_tokens: tokens to draw at most, default 256; 0 only advances the session.
    temperature: at least 0, default 1; 0 is greedy.
    top_k: keep the k likeliest tokens; default 0, all.
    top_p: keep the smallest set of tokens that reaches this probability, in (0, 1]; default 1.
    min_p: drop tokens less likely than this share of the likeliest, in [0, 1]; default 0.
    seed: key of the random draws; default the session's, without a session a random one.
    stop: end before the first of these in the completion; at most 16 of 1 to 256 bytes.
    logprobs: 0 for those of the drawn tokens, up to 20 for those of the likeliest N too.
    expected_position: refuse with FailedPrecondition unless the session stands here.
    request_id: a new name for the turn, 1 to 128 characters, which makes it safe to repeat: a turn
        of the session that was committed under it, with the same options, is answered again as it
        was (`outcome.replayed`), and the session does not move.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    expected_position: int | None
    request_id: str | None


def complete(
    prompt: Prompt | None,
    model: str | None,
    session: str | None,
    options: CompletionOptions,
) -> CompleteRequest:
    unknown = options.keys() - CompletionOptions.__optional_keys__
    if unknown:
        raise TypeError(f"unknown options of a completion: {', '.join(sorted(unknown))}")
    text, tokens = _told("prompt", prompt)
    fields: CompletionOptions = {**options, "stop": _stops(options.get("stop"))}
    return message(
        CompleteRequest, model=model, session=session, prompt=text, prompt_tokens=tokens, **fields
    )


def score(
    text: Prompt, model: str | None, session: str | None, logprobs: int | None
) -> ScoreRequest:
    words, tokens = _told("text", text)
    return message(
        ScoreRequest, model=model, session=session, text=words, tokens=tokens, logprobs=logprobs
    )


def get_model(name: str) -> GetModelRequest:
    return message(GetModelRequest, name=name)


def create_session(
    model: str,
    seed: int | None,
    idle_ttl: float | timedelta | None,
    max_age: float | timedelta | None,
    undo: bool,
) -> CreateSessionRequest:
    return message(
        CreateSessionRequest,
        model=model,
        seed=seed,
        idle_ttl=duration("idle_ttl", idle_ttl),
        max_age=duration("max_age", max_age),
        undo=undo,
    )


def get_session(name: str) -> GetSessionRequest:
    return message(GetSessionRequest, name=name)


def list_sessions(model: str | None) -> ListSessionsRequest:
    return message(ListSessionsRequest, model=model)


def delete_session(name: str) -> DeleteSessionRequest:
    return message(DeleteSessionRequest, name=name)


def fork_session(name: str, seed: int | None) -> ForkSessionRequest:
    return message(ForkSessionRequest, name=name, seed=seed)


def export_session(name: str, ttl: float | timedelta | None) -> ExportSessionRequest:
    return message(ExportSessionRequest, name=name, ttl=duration("ttl", ttl))


def import_session(
    snapshot: bytes,
    idle_ttl: float | timedelta | None,
    max_age: float | timedelta | None,
    undo: bool,
) -> ImportSessionRequest:
    return message(
        ImportSessionRequest,
        snapshot=snapshot,
        idle_ttl=duration("idle_ttl", idle_ttl),
        max_age=duration("max_age", max_age),
        undo=undo,
    )


def checkpoint_session(
    name: str, checkpoint: str, expected_position: int | None
) -> CheckpointSessionRequest:
    return message(
        CheckpointSessionRequest,
        name=name,
        checkpoint=checkpoint,
        expected_position=expected_position,
    )


def rewind_session(
    name: str, checkpoint: str | None, expected_position: int | None
) -> RewindSessionRequest:
    _refuse_empty(checkpoint)
    return message(
        RewindSessionRequest, name=name, checkpoint=checkpoint, expected_position=expected_position
    )


def delete_checkpoint(name: str, checkpoint: str) -> DeleteCheckpointRequest:
    return message(DeleteCheckpointRequest, name=name, checkpoint=checkpoint)


def open_command(
    model: str | None,
    session: str | None,
    seed: int | None,
    idle_ttl: float | timedelta | None,
    max_age: float | timedelta | None,
    undo: bool,
) -> ConverseRequest:
    opening = message(
        ConverseRequest.Open,
        model=model,
        session=session,
        seed=seed,
        idle_ttl=duration("idle_ttl", idle_ttl),
        max_age=duration("max_age", max_age),
        undo=undo,
    )
    return ConverseRequest(open=opening)


def feed_command(
    text: Prompt, expected_position: int | None, request_id: str | None
) -> ConverseRequest:
    return ConverseRequest(feed=_feed(text, None, expected_position, request_id))


def complete_command(prompt: Prompt | None, options: CompletionOptions) -> ConverseRequest:
    return ConverseRequest(complete=complete(prompt, None, None, options))


def score_command(
    text: Prompt, logprobs: int | None, expected_position: int | None, request_id: str | None
) -> ConverseRequest:
    return ConverseRequest(score=_feed(text, logprobs, expected_position, request_id))


def stop_command(command_id: str | None) -> ConverseRequest:
    return ConverseRequest(stop=message(ConverseRequest.Stop, command_id=command_id))


def checkpoint_command(checkpoint: str, expected_position: int | None) -> ConverseRequest:
    command = message(
        ConverseRequest.Checkpoint, checkpoint=checkpoint, expected_position=expected_position
    )
    return ConverseRequest(checkpoint=command)


def rewind_command(checkpoint: str | None, expected_position: int | None) -> ConverseRequest:
    _refuse_empty(checkpoint)
    command = message(
        ConverseRequest.Rewind, checkpoint=checkpoint, expected_position=expected_position
    )
    return ConverseRequest(rewind=command)


def _refuse_empty(checkpoint: str | None) -> None:
    if checkpoint == "":
        raise ValueError("a checkpoint has a name; None takes the last turn back")


def _feed(
    text: Prompt, logprobs: int | None, expected_position: int | None, request_id: str | None
) -> ConverseRequest.Feed:
    words, tokens = _told("text", text)
    return message(
        ConverseRequest.Feed,
        text=words,
        tokens=tokens,
        logprobs=logprobs,
        expected_position=expected_position,
        request_id=request_id,
    )


def _told(option: str, told: Prompt | None) -> tuple[str | None, TokenIds | None]:
    """Text and token ids, one of which is None."""
    if isinstance(told, bytes | bytearray | memoryview):
        # Bytes are a sequence of int, and would silently pass for token ids.
        raise TypeError(f"{option}: text or a sequence of token ids; decode bytes first")
    if told is None or isinstance(told, str):
        return told, None
    return None, token_ids(option, told)


def _stops(stop: str | Sequence[str] | None) -> Sequence[str]:
    if stop is None:
        return ()
    if isinstance(stop, Iterator):
        # It could be read but once, and a misfit in it not be named.
        return tuple(stop)
    return (stop,) if isinstance(stop, str) else stop

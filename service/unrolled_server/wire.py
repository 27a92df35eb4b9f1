"""Messages of the contract to domain objects and back, with every range checked."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from google.protobuf import duration_pb2, timestamp_pb2
from unrolled.v1 import completion_pb2, session_pb2

from unrolled_server.checkpoints import LAST_TURN
from unrolled_server.config import MAX_TTL_SECONDS
from unrolled_server.errors import InvalidField, NotImplementedYet
from unrolled_server.snapshots import Export
from unrolled_server.types import (
    Delta,
    Durability,
    Logprobs,
    Outcome,
    RequestKey,
    SessionView,
    TurnRequest,
)
from unrolled_server.vocabulary import Vocabulary

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_REQUEST_ID = 128
MAX_CHECKPOINT_ID = 63
CHECKPOINT_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_CHECKPOINT_ID - 1}}}")
NO_PAYLOAD = frozenset({"request_id", "session", "model"})
"""Fields that say which turn it is, and where it runs: in a stream, `open` says that."""


def complete_turn(
    message: completion_pb2.CompleteRequest, *, in_one_message: bool = False
) -> TurnRequest:
    """The turn that a CompleteRequest asks for. Raises InvalidField."""
    field = message.WhichOneof("input")
    tell: str | Sequence[int] | None = None
    if field == "prompt":
        tell = message.prompt
    elif field == "prompt_tokens":
        tell = message.prompt_tokens.ids
    return TurnRequest(
        model=message.model,
        session=message.session,
        tell=tell,
        field=field or "prompt",
        max_tokens=_at_least("max_tokens", message.max_tokens)
        if message.HasField("max_tokens")
        else None,
        temperature=_temperature(message),
        top_k=_at_least("top_k", message.top_k),
        top_p=_share("top_p", _optional(message, "top_p", 1.0), zero_allowed=False),
        min_p=_share("min_p", message.min_p, zero_allowed=True),
        seed=seed(message),
        stop=_stops(message.stop),
        logprobs=_logprobs(message),
        expected_position=expected_position(message),
        key=_key("complete", message),
        in_one_message=in_one_message,
    )


def score_turn(message: completion_pb2.ScoreRequest) -> TurnRequest:
    """The turn, which changes nothing, that a ScoreRequest asks for. Raises InvalidField."""
    field, tell = _needed_input(message)
    return TurnRequest(
        model=message.model,
        session=message.session,
        tell=tell,
        field=field,
        max_tokens=0,
        logprobs=_logprobs(message) or 0,
        scores=True,
        reads_only=True,
        in_one_message=message.HasField("logprobs"),
    )


def feed_turn(
    message: completion_pb2.ConverseRequest.Feed, session: str, scores: bool
) -> TurnRequest:
    """The turn of a feed or score command. Raises InvalidField, NotImplementedYet."""
    if message.HasField("logprobs") and not scores:
        raise NotImplementedYet("logprobs")
    field, tell = _needed_input(message)
    return TurnRequest(
        model="",
        session=session,
        tell=tell,
        field=field,
        max_tokens=0,
        logprobs=(_logprobs(message) or 0) if scores else None,
        expected_position=expected_position(message),
        key=_key("score" if scores else "feed", message),
        scores=scores,
        in_one_message=scores and message.HasField("logprobs"),
    )


def _needed_input(
    message: completion_pb2.ScoreRequest | completion_pb2.ConverseRequest.Feed,
) -> tuple[str, str | Sequence[int]]:
    """The field that says what is told, and what that is. Raises InvalidField."""
    field = message.WhichOneof("input")
    if field is None:
        raise InvalidField("text", "text or tokens are needed")
    return field, message.text if field == "text" else message.tokens.ids


def delta_message(delta: Delta, vocabulary: Vocabulary) -> completion_pb2.Delta:
    """A delta as it is sent."""
    return completion_pb2.Delta(
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=()
        if delta.logprobs is None
        else logprob_messages(delta.token_ids, delta.logprobs, vocabulary),
    )


def logprob_messages(
    tokens: list[int], logprobs: Logprobs, vocabulary: Vocabulary
) -> Iterable[completion_pb2.TokenLogprob]:
    """Log-probabilities of `tokens` as they are sent."""
    rows = zip(
        tokens,
        logprobs.chosen.tolist(),
        logprobs.unset.tolist(),
        logprobs.top_ids.tolist(),
        logprobs.top.tolist(),
        strict=True,
    )
    for token, logprob, unset, top_ids, top in rows:
        yield completion_pb2.TokenLogprob(
            token_id=token,
            token=vocabulary.token(token),
            logprob=None if unset else logprob,
            top=[
                completion_pb2.TokenLogprob.Alternative(
                    token_id=other, token=vocabulary.token(other), logprob=value
                )
                for other, value in zip(top_ids, top, strict=True)
                if other >= 0
            ],
        )


def outcome_message(outcome: Outcome) -> completion_pb2.Outcome:
    """An outcome as it is sent."""
    ending = outcome.ending
    return completion_pb2.Outcome(
        finish_reason=f"FINISH_REASON_{ending.reason.value}",
        matched_stop=ending.matched_stop,
        position=ending.past.position,
        usage=completion_pb2.Usage(
            prompt_tokens=ending.told, completion_tokens=ending.drawn, cached_tokens=ending.cached
        ),
        session=outcome.session,
        model=outcome.model,
        seed=outcome.seed,
        durability=completion_pb2.DURABILITY_UNSPECIFIED
        if outcome.durability is None
        else f"DURABILITY_{outcome.durability.value}",
    )


def session_message(session: SessionView) -> session_pb2.Session:
    """A session as it is sent."""
    expires = session.expires
    before = {each.id: each.position for each in session.checkpoints}
    undo_position = before.pop(LAST_TURN, None)
    return session_pb2.Session(
        name=session.name,
        model=session.model,
        fingerprint=session.fingerprint,
        position=session.position,
        seed=session.seed,
        state_bytes=session.state_bytes,
        create_time=_timestamp(session.created),
        use_time=_timestamp(session.used),
        expire_time=None if expires is None else _timestamp(expires),
        checkpoints=(
            session_pb2.Checkpoint(id=id_, position=position) for id_, position in before.items()
        ),
        undo=session.undo,
        undo_position=undo_position,
        end_time=None if session.latest is None else _timestamp(session.latest),
    )


def standing_message(
    session: SessionView, durability: Durability
) -> completion_pb2.ConverseResponse.Standing:
    """A session that was changed by something other than a turn, as it is sent."""
    return completion_pb2.ConverseResponse.Standing(
        session=session_message(session), durability=f"DURABILITY_{durability.value}"
    )


def checkpoint_id(
    message: session_pb2.CheckpointSessionRequest
    | session_pb2.DeleteCheckpointRequest
    | completion_pb2.ConverseRequest.Checkpoint,
) -> str:
    """The checkpoint that the message names. Raises InvalidField."""
    if not message.checkpoint:
        raise InvalidField("checkpoint", "must not be empty")
    return _checkpoint_id(message.checkpoint)


def rewind_target(
    message: session_pb2.RewindSessionRequest | completion_pb2.ConverseRequest.Rewind,
) -> str:
    """The checkpoint to go to, LAST_TURN for the place before that. Raises InvalidField."""
    return _checkpoint_id(message.checkpoint) if message.checkpoint else LAST_TURN


def _checkpoint_id(text: str) -> str:
    if not CHECKPOINT_ID.fullmatch(text):
        problem = (
            f'is not 1 to {MAX_CHECKPOINT_ID} ASCII letters, digits, ".", "_" and "-", '
            "the first a letter or digit"
        )
        raise InvalidField("checkpoint", problem)
    return text


NewSession: TypeAlias = (
    session_pb2.CreateSessionRequest
    | session_pb2.ImportSessionRequest
    | completion_pb2.ConverseRequest.Open
)
"""Asks for one, with a life of its own."""


def seed(
    message: completion_pb2.CompleteRequest
    | session_pb2.CreateSessionRequest
    | session_pb2.ForkSessionRequest
    | completion_pb2.ConverseRequest.Open,
) -> int | None:
    """What draws begin with; None: the message leaves it open."""
    return message.seed if message.HasField("seed") else None


def idle_ttl(message: NewSession) -> float | None:
    """Seconds of idle time after which the session ends; None: the server's default.

    Raises InvalidField.
    """
    return _lifetime("idle_ttl", message.idle_ttl) if message.HasField("idle_ttl") else None


def max_age(message: NewSession) -> float | None:
    """Seconds after which the session ends however it is used; None: the server's default.

    Raises InvalidField.
    """
    return _lifetime("max_age", message.max_age) if message.HasField("max_age") else None


def snapshot_ttl(message: session_pb2.ExportSessionRequest) -> float | None:
    """Seconds for which the snapshot can be imported; None: for ever. Raises InvalidField."""
    return _lifetime("ttl", message.ttl) if message.HasField("ttl") else None


def export_message(export: Export) -> session_pb2.ExportSessionResponse:
    """A sealed snapshot as it is sent."""
    return session_pb2.ExportSessionResponse(
        snapshot=export.sealed,
        session=session_message(export.session),
        expire_time=None if export.expires is None else _timestamp(export.expires),
    )


def _lifetime(field: str, duration: duration_pb2.Duration) -> float:
    whole, nanos = duration.seconds, duration.nanos
    if not 0 <= nanos < 1_000_000_000:
        raise InvalidField(field, f"nanos {nanos} is not in [0, 1000000000)")
    if not (0, 0) < (whole, nanos) <= (MAX_TTL_SECONDS, 0):
        said = f"{whole}.{nanos:09}".rstrip("0").rstrip(".")
        raise InvalidField(field, f"{said} s is not in (0, {MAX_TTL_SECONDS}] s")
    return whole + nanos / 1e9


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    whole, part = divmod(seconds, 1.0)
    return timestamp_pb2.Timestamp(seconds=int(whole), nanos=int(part * 1e9))


def _key(
    command: str, message: completion_pb2.CompleteRequest | completion_pb2.ConverseRequest.Feed
) -> RequestKey | None:
    """What a repetition of the turn is known by; None where it has no request_id.

    The payload is hashed as it was asked, before defaults and limits are applied: those may be
    others after a restart. Its form is that of this version of the server.
    """
    if not message.request_id:
        return None
    if len(message.request_id) > MAX_REQUEST_ID:
        problem = f"{len(message.request_id)} characters are over the limit {MAX_REQUEST_ID}"
        raise InvalidField("request_id", problem)
    payload = copy.deepcopy(message)
    for field in NO_PAYLOAD.intersection(payload.DESCRIPTOR.fields_by_name):
        payload.ClearField(field)
    asked = command.encode() + b"\0" + payload.SerializeToString(deterministic=True)
    return RequestKey(message.request_id, hashlib.sha256(asked).digest())


def _optional(message: completion_pb2.CompleteRequest, field: str, default: float) -> float:
    value: float = getattr(message, field) if message.HasField(field) else default
    return value


def _temperature(message: completion_pb2.CompleteRequest) -> float:
    value = _optional(message, "temperature", 1.0)
    if not (math.isfinite(value) and value >= 0):
        raise InvalidField("temperature", f"{value:g} is not a finite number of at least 0")
    return value


def _at_least(field: str, value: float) -> int:
    if value < 0:
        raise InvalidField(field, f"{value} is less than 0")
    return int(value)


def _share(field: str, value: float, zero_allowed: bool) -> float:
    if not (0 < value <= 1 or (zero_allowed and value == 0)):
        raise InvalidField(field, f"{value!r} is not in {'[' if zero_allowed else '('}0, 1]")
    return value


def _stops(stops: Iterable[str]) -> tuple[str, ...]:
    found = tuple(stops)
    if len(found) > MAX_STOPS:
        raise InvalidField("stop", f"{len(found)} strings are over the limit {MAX_STOPS}")
    for place, stop in enumerate(found):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            problem = f"{len(stop.encode())} bytes are not in [1, {MAX_STOP_BYTES}]"
            raise InvalidField(f"stop[{place}]", problem)
    return found


def _logprobs(
    message: completion_pb2.CompleteRequest
    | completion_pb2.ScoreRequest
    | completion_pb2.ConverseRequest.Feed,
) -> int | None:
    if not message.HasField("logprobs"):
        return None
    if not 0 <= message.logprobs <= MAX_LOGPROBS:
        raise InvalidField("logprobs", f"{message.logprobs} is not in [0, {MAX_LOGPROBS}]")
    return message.logprobs


def expected_position(
    message: completion_pb2.CompleteRequest
    | completion_pb2.ConverseRequest.Feed
    | completion_pb2.ConverseRequest.Checkpoint
    | completion_pb2.ConverseRequest.Rewind
    | session_pb2.CheckpointSessionRequest
    | session_pb2.RewindSessionRequest,
) -> int | None:
    """Where the session has to stand; None: anywhere. Raises InvalidField."""
    if not message.HasField("expected_position"):
        return None
    return _at_least("expected_position", message.expected_position)

"""What can go wrong with a request, in terms of the contract.

A ServerError knows its canonical code and the reason that callers can act on; it knows
nothing of gRPC. One interceptor turns it into a status.

    ServerError
    +-- FieldError            names a field
    |   +-- InvalidField      its value
    |   |   +-- UnknownText   text that the vocabulary lacks
    |   |   +-- RequestIdReused
    |   +-- NotImplementedYet
    +-- ModelNotFound
    +-- SessionNotFound
    +-- SessionBusy
    +-- CheckpointNotFound
    +-- TooManyCheckpoints
    +-- NothingToUndo         no turn, or not kept where it began
    +-- PositionMismatch
    +-- AnswerNotKept         of a turn that was run before
    +-- NothingToContinue
    +-- Overloaded            too many turns wait
    +-- TooManySessions
    +-- SlowReader
    +-- Draining
    +-- SnapshotsDisabled     there is no key to seal them
    +-- ModelNotServed        that a stored session is of
    +-- RecordCorrupt         of a stored session
    +-- Fenced                another server has taken the session over
    +-- StoreFull
    +-- StoreUnavailable
    +-- Unauthenticated       the call has no API key, or an unknown one
"""

from __future__ import annotations

from typing import ClassVar

MAX_TEXT = 200
"""Characters of a text in an error at most: it may quote the caller, and a client refuses
trailers of more than a few kilobytes."""


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


class ServerError(Exception):
    """A failure that the caller is told about."""

    code: ClassVar[str]
    """Name of the canonical gRPC code."""
    reason: ClassVar[str]
    """Name of the ErrorReason without its prefix."""
    retry_after: ClassVar[float | None] = None
    """Seconds after which another try makes sense; None where none does."""

    def __init__(self, message: str, **metadata: str) -> None:
        self.message = _short(message)
        self.metadata = {key: _short(value) for key, value in metadata.items()}
        super().__init__(self.message)


class FieldError(ServerError):
    """Something is the matter with `field`, a path in the request."""

    def __init__(self, field: str, problem: str, **metadata: str) -> None:
        super().__init__(f"{field}: {problem}", field=field, **metadata)
        self.field = field
        self.problem = _short(problem)

    def put_inside(self, message: str) -> None:
        """The request turned out to be the field `message` of a larger one."""
        self.field = f"{message}.{self.field}"
        if "field" in self.metadata:
            self.metadata["field"] = self.field
        self.message = _short(f"{self.field}: {self.problem}")


class InvalidField(FieldError):
    """The value of `field` is outside what the contract allows."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"


class UnknownText(InvalidField):
    """The text has a part, at `offset` characters, that the vocabulary lacks."""

    reason = "UNKNOWN_TEXT"

    def __init__(self, field: str, offset: int, text: str) -> None:
        super().__init__(
            field, f"the model does not know {text!r} at offset {offset}", offset=str(offset)
        )


class RequestIdReused(InvalidField):
    """The session has another request on record under this request_id."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__("request_id", f"{request_id!r} is on record with a different payload")
        self.metadata = {"request_id": request_id}


class ModelNotFound(ServerError):
    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"

    def __init__(self, model: str, why: str = "is not served") -> None:
        super().__init__(f"model {model!r} {why}", model=model)


class SessionNotFound(ServerError):
    code = "NOT_FOUND"
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session: str) -> None:
        super().__init__(f"session {session!r} is unknown or has ended", session=session)


class SessionBusy(ServerError):
    code = "ABORTED"
    reason = "SESSION_BUSY"

    def __init__(self, session: str) -> None:
        super().__init__(f"session {session!r} has another turn under way", session=session)


class CheckpointNotFound(ServerError):
    code = "NOT_FOUND"
    reason = "CHECKPOINT_NOT_FOUND"

    def __init__(self, session: str, checkpoint: str) -> None:
        super().__init__(
            f"session {session!r} has no checkpoint {checkpoint!r}",
            session=session,
            checkpoint=checkpoint,
        )


class TooManyCheckpoints(ServerError):
    code = "FAILED_PRECONDITION"
    reason = "TOO_MANY_CHECKPOINTS"

    def __init__(self, session: str, limit: int) -> None:
        super().__init__(
            f"session {session!r} has {limit} checkpoints, its limit: delete one",
            session=session,
            limit=str(limit),
        )


class NothingToUndo(ServerError):
    code = "FAILED_PRECONDITION"
    reason = "NOTHING_TO_UNDO"

    def __init__(self, session: str) -> None:
        super().__init__(
            f"session {session!r} has no turn to take back: it has had none since it was made or"
            " rewound, or was not made with `undo`",
            session=session,
        )


class PositionMismatch(ServerError):
    code = "FAILED_PRECONDITION"
    reason = "POSITION_MISMATCH"

    def __init__(self, session: str, position: int, expected: int) -> None:
        super().__init__(
            f"expected_position: the session stands at {position}, not at {expected}",
            session=session,
            position=str(position),
        )


class AnswerNotKept(ServerError):
    """The turn was committed before, and the record had no room for its answer."""

    code = "FAILED_PRECONDITION"
    reason = "POSITION_MISMATCH"

    def __init__(self, session: str, position: int) -> None:
        super().__init__(
            "request_id: this turn was committed before, and there was no room to keep its answer;"
            f" the session stands at {position}",
            session=session,
            position=str(position),
        )


class NothingToContinue(ServerError):
    code = "FAILED_PRECONDITION"
    reason = "NOTHING_TO_CONTINUE"

    def __init__(self, session: str, model: str) -> None:
        super().__init__(
            f"there is nothing to continue from: give a prompt, for {model!r} has no start token",
            session=session,
        )


class Overloaded(ServerError):
    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    retry_after = 1.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} turns are under way or wait already", limit=str(limit))


class TooManySessions(ServerError):
    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_SESSIONS"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the server holds {limit} sessions, its limit", limit=str(limit))


class SlowReader(ServerError):
    code = "RESOURCE_EXHAUSTED"
    reason = "SLOW_READER"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the stream was not read for {seconds:g} s")


class Draining(ServerError):
    code = "UNAVAILABLE"
    reason = "DRAINING"
    retry_after = 1.0

    def __init__(self, consequence: str = "takes no new turns") -> None:
        super().__init__(f"the server is shutting down and {consequence}")


class SnapshotsDisabled(ServerError):
    code = "FAILED_PRECONDITION"
    reason = "SNAPSHOTS_DISABLED"

    def __init__(self) -> None:
        super().__init__(
            "sessions are neither exported nor imported here: the server has no --seal-key-file"
        )


class ModelNotServed(ServerError):
    """The session is in the store, and its model is not in the repository."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_NOT_SERVED"

    def __init__(self, session: str, model: str, fingerprint: str) -> None:
        super().__init__(
            f"session {session!r} is of {model} with fingerprint {fingerprint}, not served",
            session=session,
            model=model,
            fingerprint=fingerprint,
        )


class RecordCorrupt(ServerError):
    code = "DATA_LOSS"
    reason = "RECORD_CORRUPT"

    def __init__(self, session: str) -> None:
        super().__init__(
            f"session {session!r} is lost: its record does not match its checksum", session=session
        )


class Fenced(ServerError):
    """The turn was not applied: the session has gone on elsewhere, or may do so."""

    code = "ABORTED"
    reason = "FENCED"

    def __init__(self, session: str) -> None:
        super().__init__(
            f"session {session!r} was taken over by another server; this turn was not applied",
            session=session,
        )


class StoreFull(ServerError):
    code = "RESOURCE_EXHAUSTED"
    reason = "STORE_FULL"

    def __init__(self, store: str) -> None:
        super().__init__(f"the session store ({store}) has no room left", store=store)


class StoreUnavailable(ServerError):
    code = "UNAVAILABLE"
    reason = "STORE_UNAVAILABLE"
    retry_after = 1.0

    def __init__(self, store: str) -> None:
        super().__init__(f"the session store ({store}) does not answer", store=store)


class Unauthenticated(ServerError):
    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__("an API key is needed: authorization: Bearer KEY")


class NotImplementedYet(FieldError):
    """A part of the contract that this release does not act on."""

    code = "UNIMPLEMENTED"
    reason = "NOT_IMPLEMENTED"

    def __init__(self, field: str) -> None:
        super().__init__(field, "this release does not act on it")

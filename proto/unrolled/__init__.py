"""Client for unrolled, a server of recurrent language models.

    import unrolled

    with unrolled.Client("127.0.0.1:50051") as client:
        with client.create_session("shakespeare-lstm") as session:
            for delta in session.stream("ROMEO:", max_tokens=200):
                print(delta.text, end="", flush=True)

Answers are the messages of the contract, unrolled.v1; errors are UnrolledError.
"""

import unrolled._grpc_at_error_level  # noqa: F401 - comes first
from unrolled.client import AsyncClient, Client
from unrolled.completion_stream import AsyncCompletionStream, CompletionStream
from unrolled.conversation import AsyncConversation, Conversation
from unrolled.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SessionBusy,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UnrolledError,
    error_from_status,
)
from unrolled.requests import CompletionOptions, Prompt
from unrolled.security import Tls
from unrolled.session import AsyncSession, Session, SessionOpening
from unrolled.v1.completion_pb2 import (
    CompleteResponse,
    ConverseResponse,
    Delta,
    Durability,
    FinishReason,
    Outcome,
    ScoreResponse,
    TokenLogprob,
    Usage,
)
from unrolled.v1.model_pb2 import Cell, Model, Precision, Vocabulary

__all__ = [
    "Aborted",
    "AsyncClient",
    "AsyncCompletionStream",
    "AsyncConversation",
    "AsyncSession",
    "Cancelled",
    "Cell",
    "Client",
    "CompleteResponse",
    "CompletionOptions",
    "CompletionStream",
    "Conversation",
    "ConverseResponse",
    "DeadlineExceeded",
    "Delta",
    "Durability",
    "FailedPrecondition",
    "FieldViolation",
    "FinishReason",
    "InvalidArgument",
    "Model",
    "NotFound",
    "Outcome",
    "Precision",
    "Prompt",
    "ResourceExhausted",
    "ScoreResponse",
    "Session",
    "SessionBusy",
    "SessionOpening",
    "Tls",
    "TokenLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnrolledError",
    "Usage",
    "Vocabulary",
    "error_from_status",
]

from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from unrolled.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_END: _ClassVar[FinishReason]
    FINISH_REASON_STOPPED: _ClassVar[FinishReason]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]
    DURABILITY_PROCESS_CRASH: _ClassVar[Durability]
    DURABILITY_FSYNC: _ClassVar[Durability]
    DURABILITY_REPLICATED: _ClassVar[Durability]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_END: FinishReason
FINISH_REASON_STOPPED: FinishReason
DURABILITY_UNSPECIFIED: Durability
DURABILITY_MEMORY: Durability
DURABILITY_PROCESS_CRASH: Durability
DURABILITY_FSYNC: Durability
DURABILITY_REPLICATED: Durability

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("model", "session", "prompt", "prompt_tokens", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "logprobs", "expected_position", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    session: str
    prompt: str
    prompt_tokens: TokenIds
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: int
    expected_position: int
    request_id: str
    def __init__(self, model: _Optional[str] = ..., session: _Optional[str] = ..., prompt: _Optional[str] = ..., prompt_tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[int] = ..., expected_position: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "outcome")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    outcome: Outcome
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class CompleteEvent(_message.Message):
    __slots__ = ("delta", "outcome")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    delta: Delta
    outcome: Outcome
    def __init__(self, delta: _Optional[_Union[Delta, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("finish_reason", "matched_stop", "position", "usage", "session", "model", "seed", "durability", "replayed")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    matched_stop: str
    position: int
    usage: Usage
    session: str
    model: str
    seed: int
    durability: Durability
    replayed: bool
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., matched_stop: _Optional[str] = ..., position: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., session: _Optional[str] = ..., model: _Optional[str] = ..., seed: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., replayed: bool = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob", "top")
    class Alternative(_message.Message):
        __slots__ = ("token_id", "token", "logprob")
        TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
        TOKEN_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        token_id: int
        token: bytes
        logprob: float
        def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ...) -> None: ...
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: bytes
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob.Alternative]
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[bytes] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob.Alternative, _Mapping]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "session", "text", "tokens", "logprobs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    model: str
    session: str
    text: str
    tokens: TokenIds
    logprobs: int
    def __init__(self, model: _Optional[str] = ..., session: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., logprobs: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("tokens", "total_logprob", "model")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    total_logprob: float
    model: str
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., total_logprob: _Optional[float] = ..., model: _Optional[str] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("command_id", "open", "feed", "complete", "score", "stop", "checkpoint", "rewind")
    class Open(_message.Message):
        __slots__ = ("model", "session", "seed", "undo", "idle_ttl", "max_age")
        MODEL_FIELD_NUMBER: _ClassVar[int]
        SESSION_FIELD_NUMBER: _ClassVar[int]
        SEED_FIELD_NUMBER: _ClassVar[int]
        UNDO_FIELD_NUMBER: _ClassVar[int]
        IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
        MAX_AGE_FIELD_NUMBER: _ClassVar[int]
        model: str
        session: str
        seed: int
        undo: bool
        idle_ttl: _duration_pb2.Duration
        max_age: _duration_pb2.Duration
        def __init__(self, model: _Optional[str] = ..., session: _Optional[str] = ..., seed: _Optional[int] = ..., undo: bool = ..., idle_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_age: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    class Feed(_message.Message):
        __slots__ = ("text", "tokens", "logprobs", "expected_position", "request_id")
        TEXT_FIELD_NUMBER: _ClassVar[int]
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
        REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
        text: str
        tokens: TokenIds
        logprobs: int
        expected_position: int
        request_id: str
        def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., logprobs: _Optional[int] = ..., expected_position: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...
    class Stop(_message.Message):
        __slots__ = ("command_id",)
        COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
        command_id: str
        def __init__(self, command_id: _Optional[str] = ...) -> None: ...
    class Checkpoint(_message.Message):
        __slots__ = ("checkpoint", "expected_position")
        CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
        checkpoint: str
        expected_position: int
        def __init__(self, checkpoint: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...
    class Rewind(_message.Message):
        __slots__ = ("checkpoint", "expected_position")
        CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
        checkpoint: str
        expected_position: int
        def __init__(self, checkpoint: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REWIND_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    open: ConverseRequest.Open
    feed: ConverseRequest.Feed
    complete: CompleteRequest
    score: ConverseRequest.Feed
    stop: ConverseRequest.Stop
    checkpoint: ConverseRequest.Checkpoint
    rewind: ConverseRequest.Rewind
    def __init__(self, command_id: _Optional[str] = ..., open: _Optional[_Union[ConverseRequest.Open, _Mapping]] = ..., feed: _Optional[_Union[ConverseRequest.Feed, _Mapping]] = ..., complete: _Optional[_Union[CompleteRequest, _Mapping]] = ..., score: _Optional[_Union[ConverseRequest.Feed, _Mapping]] = ..., stop: _Optional[_Union[ConverseRequest.Stop, _Mapping]] = ..., checkpoint: _Optional[_Union[ConverseRequest.Checkpoint, _Mapping]] = ..., rewind: _Optional[_Union[ConverseRequest.Rewind, _Mapping]] = ...) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("command_id", "opened", "delta", "score", "outcome", "error", "checkpointed", "rewound")
    class Standing(_message.Message):
        __slots__ = ("session", "durability")
        SESSION_FIELD_NUMBER: _ClassVar[int]
        DURABILITY_FIELD_NUMBER: _ClassVar[int]
        session: _session_pb2.Session
        durability: Durability
        def __init__(self, session: _Optional[_Union[_session_pb2.Session, _Mapping]] = ..., durability: _Optional[_Union[Durability, str]] = ...) -> None: ...
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTED_FIELD_NUMBER: _ClassVar[int]
    REWOUND_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    opened: _session_pb2.Session
    delta: Delta
    score: ScoreResponse
    outcome: Outcome
    error: _status_pb2.Status
    checkpointed: ConverseResponse.Standing
    rewound: ConverseResponse.Standing
    def __init__(self, command_id: _Optional[str] = ..., opened: _Optional[_Union[_session_pb2.Session, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., score: _Optional[_Union[ScoreResponse, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., checkpointed: _Optional[_Union[ConverseResponse.Standing, _Mapping]] = ..., rewound: _Optional[_Union[ConverseResponse.Standing, _Mapping]] = ...) -> None: ...

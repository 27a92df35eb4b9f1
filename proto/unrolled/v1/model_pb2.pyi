from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cell(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CELL_UNSPECIFIED: _ClassVar[Cell]
    CELL_RNN_TANH: _ClassVar[Cell]
    CELL_RNN_RELU: _ClassVar[Cell]
    CELL_LSTM: _ClassVar[Cell]
    CELL_GRU: _ClassVar[Cell]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]
    PRECISION_FP16: _ClassVar[Precision]
    PRECISION_INT8: _ClassVar[Precision]
CELL_UNSPECIFIED: Cell
CELL_RNN_TANH: Cell
CELL_RNN_RELU: Cell
CELL_LSTM: Cell
CELL_GRU: Cell
PRECISION_UNSPECIFIED: Precision
PRECISION_FP32: Precision
PRECISION_FP16: Precision
PRECISION_INT8: Precision

class Model(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "cell", "precision", "layers", "parameters", "vocabulary", "states", "state_bytes", "files", "parity", "source", "status", "status_detail", "weights_sha256", "graph_revision", "quantized_weights")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Model.Status]
        STATUS_READY: _ClassVar[Model.Status]
        STATUS_FAILED: _ClassVar[Model.Status]
    STATUS_UNSPECIFIED: Model.Status
    STATUS_READY: Model.Status
    STATUS_FAILED: Model.Status
    class Layer(_message.Message):
        __slots__ = ("input_size", "hidden_size", "projection_size")
        INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
        HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
        PROJECTION_SIZE_FIELD_NUMBER: _ClassVar[int]
        input_size: int
        hidden_size: int
        projection_size: int
        def __init__(self, input_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., projection_size: _Optional[int] = ...) -> None: ...
    class StateTensor(_message.Message):
        __slots__ = ("input", "output", "shape", "initial")
        INPUT_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_FIELD_NUMBER: _ClassVar[int]
        SHAPE_FIELD_NUMBER: _ClassVar[int]
        INITIAL_FIELD_NUMBER: _ClassVar[int]
        input: str
        output: str
        shape: _containers.RepeatedScalarFieldContainer[int]
        initial: _containers.RepeatedScalarFieldContainer[float]
        def __init__(self, input: _Optional[str] = ..., output: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., initial: _Optional[_Iterable[float]] = ...) -> None: ...
    class File(_message.Message):
        __slots__ = ("name", "sha256", "bytes")
        NAME_FIELD_NUMBER: _ClassVar[int]
        SHA256_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        name: str
        sha256: str
        bytes: int
        def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...
    class Parity(_message.Message):
        __slots__ = ("reference", "steps", "max_abs_logprob_error", "greedy_identical", "tolerance", "scope")
        REFERENCE_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        MAX_ABS_LOGPROB_ERROR_FIELD_NUMBER: _ClassVar[int]
        GREEDY_IDENTICAL_FIELD_NUMBER: _ClassVar[int]
        TOLERANCE_FIELD_NUMBER: _ClassVar[int]
        SCOPE_FIELD_NUMBER: _ClassVar[int]
        reference: str
        steps: int
        max_abs_logprob_error: float
        greedy_identical: bool
        tolerance: float
        scope: str
        def __init__(self, reference: _Optional[str] = ..., steps: _Optional[int] = ..., max_abs_logprob_error: _Optional[float] = ..., greedy_identical: bool = ..., tolerance: _Optional[float] = ..., scope: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CELL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STATUS_DETAIL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    GRAPH_REVISION_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    fingerprint: str
    cell: Cell
    precision: Precision
    layers: _containers.RepeatedCompositeFieldContainer[Model.Layer]
    parameters: int
    vocabulary: Vocabulary
    states: _containers.RepeatedCompositeFieldContainer[Model.StateTensor]
    state_bytes: int
    files: _containers.RepeatedCompositeFieldContainer[Model.File]
    parity: Model.Parity
    source: str
    status: Model.Status
    status_detail: str
    weights_sha256: str
    graph_revision: int
    quantized_weights: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., cell: _Optional[_Union[Cell, str]] = ..., precision: _Optional[_Union[Precision, str]] = ..., layers: _Optional[_Iterable[_Union[Model.Layer, _Mapping]]] = ..., parameters: _Optional[int] = ..., vocabulary: _Optional[_Union[Vocabulary, _Mapping]] = ..., states: _Optional[_Iterable[_Union[Model.StateTensor, _Mapping]]] = ..., state_bytes: _Optional[int] = ..., files: _Optional[_Iterable[_Union[Model.File, _Mapping]]] = ..., parity: _Optional[_Union[Model.Parity, _Mapping]] = ..., source: _Optional[str] = ..., status: _Optional[_Union[Model.Status, str]] = ..., status_detail: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., graph_revision: _Optional[int] = ..., quantized_weights: _Optional[_Iterable[str]] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("kind", "size", "tokens", "start_token", "end_tokens", "unknown_token", "joiner")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Vocabulary.Kind]
        KIND_CHARACTER: _ClassVar[Vocabulary.Kind]
        KIND_BYTE: _ClassVar[Vocabulary.Kind]
        KIND_WORD: _ClassVar[Vocabulary.Kind]
        KIND_TOKENIZER: _ClassVar[Vocabulary.Kind]
        KIND_SENTENCEPIECE: _ClassVar[Vocabulary.Kind]
    KIND_UNSPECIFIED: Vocabulary.Kind
    KIND_CHARACTER: Vocabulary.Kind
    KIND_BYTE: Vocabulary.Kind
    KIND_WORD: Vocabulary.Kind
    KIND_TOKENIZER: Vocabulary.Kind
    KIND_SENTENCEPIECE: Vocabulary.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    JOINER_FIELD_NUMBER: _ClassVar[int]
    kind: Vocabulary.Kind
    size: int
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    start_token: int
    end_tokens: _containers.RepeatedScalarFieldContainer[int]
    unknown_token: int
    joiner: str
    def __init__(self, kind: _Optional[_Union[Vocabulary.Kind, str]] = ..., size: _Optional[int] = ..., tokens: _Optional[_Iterable[bytes]] = ..., start_token: _Optional[int] = ..., end_tokens: _Optional[_Iterable[int]] = ..., unknown_token: _Optional[int] = ..., joiner: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

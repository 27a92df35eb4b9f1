"""PyTorch's tensors as files of `torch.save` describe them: a view of a storage of raw numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.readers.pickling.inert import OddTensor, Reference

STORAGES: Mapping[str, str] = {
    f"{name}Storage": kind
    for name, kind in (
        *(("Float", "float32"), ("Double", "float64"), ("Half", "float16")),
        *(("BFloat16", "bfloat16"), ("ComplexFloat", "complex64"), ("ComplexDouble", "complex128")),
        *(("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8")),
        *(("Byte", "uint8"), ("Bool", "bool"), ("Untyped", "uint8"), ("_Untyped", "uint8")),
        *(("QInt8", "qint8"), ("QUInt8", "quint8"), ("QInt32", "qint32")),
        *(("QUInt4x2", "quint4x2"), ("QUInt2x4", "quint2x4")),
    )
}
"""The type of the numbers, by the name of the class."""
_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("qint8", "quint8", "quint4x2", "quint2x4"), 1),
    "bfloat16": 2,
    "qint32": 4,
}
"""Of the numbers that NumPy lacks."""
_NUMPY = frozenset(
    (
        *("float16", "float32", "float64", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
TYPES = frozenset((*_NUMPY, *_BYTES))
"""Names of PyTorch's dtypes that a storage can have."""


@dataclass(eq=False)
class Storage:
    """Numbers of one type, which a legacy file holds behind everything that refers to them."""

    kind: str
    """Name of its dtype."""
    count: int
    data: bytes | None = None
    """Exactly `count` numbers, once read."""
    is_big_endian: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TYPES or not is_count(self.count):
            raise TypeError("not a storage")

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * item_size(self.kind)

    @cached_property
    def numbers(self) -> NDArray[Any]:
        """[count], bfloat16 widened to float32. Raises ValueError where there are no data."""
        if self.data is None or len(self.data) != self.size:
            raise ValueError("a storage without its data")
        return _numbers(self.data, self.kind, self.is_big_endian)


def _numbers(data: bytes, kind: str, is_big_endian: bool) -> NDArray[Any]:
    stored = np.dtype("uint16" if kind == "bfloat16" else kind)
    numbers = np.frombuffer(data, stored.newbyteorder(">" if is_big_endian else "<"))
    native = numbers.astype(stored, copy=False)
    if kind == "bfloat16":
        # The upper half of a float32.
        return (native.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return native


def item_size(kind: str) -> int:
    """Bytes of one number."""
    return _BYTES[kind] if kind in _BYTES else np.dtype(kind).itemsize


def is_count(value: object) -> bool:
    """Whether it is a whole number that may count items or bytes of a file."""
    return isinstance(value, int) and 0 <= value < 2**48


@dataclass(eq=False)
class StoredTensor:
    """A view of a storage; checked against its size when made."""

    storage: Storage
    offset: int
    """In numbers, like the strides."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str
    """Name of its dtype, that of the storage unless that is of bytes."""
    start: int = 0
    """Where in the storage's own numbers a view that a legacy file saved begins."""

    def __post_init__(self) -> None:
        counts = (self.offset, self.start, *self.shape, *self.strides)
        if not all(is_count(count) for count in counts) or len(self.shape) != len(self.strides):
            raise ValueError("not a view of a storage")
        if len(self.shape) > 32 or self._reach > self._available:
            raise ValueError("a tensor that reaches beyond its storage")

    @property
    def _available(self) -> int:
        """How many numbers of `kind` the storage holds."""
        return self.storage.size // item_size(self.kind)

    @property
    def _reach(self) -> int:
        """Numbers of the storage up to the tensor's last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return self.start + self.offset + 1 + sum((size - 1) * step for size, step in steps)

    @property
    def repeats(self) -> bool:
        """Whether it holds more numbers than its storage: it cannot be a trained weight."""
        return _product(self.shape) > self._available

    def load(self) -> NDArray[Any]:
        """The numbers, as a view that cannot be written to."""
        numbers = self.storage.numbers
        if self.kind != self.storage.kind:
            numbers = _numbers(numbers.tobytes(), self.kind, self.storage.is_big_endian)
        if 0 in self.shape:
            return np.zeros(self.shape, numbers.dtype)
        strides = [step * numbers.itemsize for step in self.strides]
        first = numbers[self.start + self.offset :]
        return np.lib.stride_tricks.as_strided(first, self.shape, strides, writeable=False)


def _product(shape: tuple[int, ...]) -> int:
    """Exact: NumPy's would overflow."""
    product = 1
    for size in shape:
        product *= size
    return product


@dataclass(frozen=True, eq=False)
class StorageView:
    """Part of a storage, as legacy files save it."""

    storage: Storage
    start: int


def storage_type(reference: object) -> str:
    """The type of numbers that a storage class holds. Raises TypeError where it is none."""
    name = reference.name if isinstance(reference, Reference) else ""
    if name not in STORAGES:
        raise TypeError("not a storage class")
    return STORAGES[name]


def _rebuild_tensor(storage: object, offset: int, shape: Any, strides: Any, *_: object) -> object:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    view = StorageView(storage, 0) if isinstance(storage, Storage) else storage
    if not isinstance(view, StorageView):
        raise TypeError("a tensor without a storage")
    return _tensor(view.storage, offset, shape, strides, view.storage.kind, view.start)


def _rebuild_typed_tensor(
    storage: Storage, offset: int, shape: Any, strides: Any, _: object, __: object, kind: object
) -> object:
    """torch._utils._rebuild_tensor_v3, whose storage is of bytes."""
    name = kind.name if isinstance(kind, Reference) else ""
    if name not in _NUMPY:
        return OddTensor(f"tensor of {name}")
    return _tensor(storage, offset, shape, strides, name, 0)


def _tensor(
    storage: Storage, offset: int, shape: Any, strides: Any, kind: str, start: int
) -> object:
    if kind in _BYTES and kind != "bfloat16":
        return OddTensor("quantised tensor")
    tensor = StoredTensor(storage, offset, tuple(shape), tuple(strides), kind, start)
    return OddTensor("tensor that repeats the numbers of its storage") if tensor.repeats else tensor


def _rebuild_from_type(builder: object, _: object, arguments: Any, __: object = None) -> object:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, or of a subclass."""
    builders = {f"torch._utils.{name}": make for name, make in _PLAIN.items()}
    known = builders.get(builder.full_name) if isinstance(builder, Reference) else None
    return known(*arguments) if known else OddTensor("tensor of a subclass")


def _first(value: object, *_: object) -> object:
    """A parameter is its tensor, a device its kind, a list with its type the list."""
    return value


_PLAIN: Mapping[str, Callable[..., object]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_typed_tensor,
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
}


def _odd(kind: str) -> Callable[..., object]:
    tensor = OddTensor(kind)
    return lambda *_: tensor


TORCH_BUILDERS: Mapping[str, Callable[..., object]] = {
    **{f"torch._utils.{name}": builder for name, builder in _PLAIN.items()},
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    # Releases before 0.4 call the class itself.
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _first,
    "torch.serialization._get_layout": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    **{
        f"torch.jit._pickle.build_{kind}list": _first
        for kind in ("int", "double", "bool", "tensor", "complex")
    },
    "torch._utils._rebuild_qtensor": _odd("quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _odd("sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _odd("nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("tensor without data (meta)"),
    "torch._utils._rebuild_wrapper_subclass": _odd("tensor of a subclass"),
    "torch._utils._rebuild_device_tensor_from_numpy": lambda array, *_: array,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
}

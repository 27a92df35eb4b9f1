"""What the names in a pickle stand for: builders of our own, inert objects, or a refusal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unrolled_export.errors import CheckpointError, PickleNeeded
from unrolled_export.readers.pickling.inert import Opaque, Reference
from unrolled_export.readers.pickling.machine import set_entries
from unrolled_export.readers.pickling.numpy_arrays import NUMPY_BUILDERS, NumpyArray, NumpyType
from unrolled_export.readers.pytorch_files.storage import TORCH_BUILDERS, TYPES

_NAME = re.compile(r"[\w.<>]{1,200}")
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules of Python 2."""
_STANDARD = sys.stdlib_module_names | {
    *("__builtin__", "commands", "copy_reg", "exceptions", "popen2", "urllib2", "UserDict"),
    *("ConfigParser", "Queue", "StringIO", "cPickle", "cStringIO", "thread", "imp", "nt", "os2"),
}

_HARMLESS = re.compile(
    r"builtins\.(int|long|float|complex|bool|str|unicode|bytes|object|type|slice|range|Ellipsis)|"
    r"datetime\.(datetime|date|time|timedelta|timezone)|decimal\.Decimal|uuid\.UUID|"
    r"pathlib\.(Pure)?(Posix|Windows)?Path|fractions\.Fraction|collections\.deque|"
    r"(argparse\.|types\.Simple)Namespace|(types|builtins)\.NoneType|"
    r"torch\.(cuda\.|storage\.)?_?\w*Storage|torch\.Tensor|torch\.\w+_format|"
    rf"torch\.(strided|float8_\w+|{'|'.join(sorted(TYPES))})|torch\.per_\w+_\w+|"
    r"numpy\.(ndarray|bool_?|str_|bytes_|u?int\d+|float\d+|complex\d+)|"
    r"torch\.nn\.backends\.thnn\._get_thnn_function_backend|__torch__(\..+)?"
)
"""Made inert without asking: values of the standard library, types, TorchScript's own classes."""
_INERT_CALLS = re.compile(
    r"functools\.partial|logging\.(getLogger|Logger|RootLogger)|re\._compile|"
    r"operator\.(itemgetter|attrgetter|methodcaller|getitem)|itertools\.count|random\.Random|"
    r"numpy\.random\._pickle\.__\w+_ctor|torch\.Generator"
)
"""Functions and classes met in real models beside their own: made inert where pickles may be."""
_QUANTISED = re.compile(r"torch\.ScriptObject|torch\.(ao\.)?nn\.quantized\..*")
"""Packed weights, which only PyTorch's own code can unpack, and modules that hold them."""
_GETATTR = "builtins.getattr"
_LOAD_BYTES = "torch.storage._load_from_bytes"


class Names:
    """The names in the pickles of one file, which of them need permission, and a budget."""

    def __init__(self, file: Path, size: int, load_bytes: Callable[[bytes], object] | None) -> None:
        """`size` of the pickles in bytes; `load_bytes` reads a file of torch.save inside one."""
        self._file = file
        self._budget = 16 * size + 2**20
        self._load_bytes = load_bytes
        self._classes: dict[str, None] = {}

    def check_permitted(self, allow_pickle: bool) -> None:
        """Raise PickleNeeded for the classes met, unless it is allowed, and CheckpointError where
        permission would not help."""
        if quantised := next(filter(_QUANTISED.fullmatch, self._classes), None):
            raise CheckpointError(
                self._file,
                f"holds quantised weights ({quantised}): save the state_dict of the float32 model "
                "that they were made from",
            )
        if self._classes and not allow_pickle:
            names = ", ".join(list(self._classes)[:4])
            more = f" and {len(self._classes) - 4} more" if len(self._classes) > 4 else ""
            raise PickleNeeded(
                self._file,
                f"holds objects of classes ({names}{more}): such a pickle runs code when it is "
                "loaded in the usual way; --allow-pickle reads it with a reader that imports and "
                "calls nothing",
            )

    def spend(self, amount: int) -> None:
        """Raise ValueError where copies take far more memory than the file."""
        self._budget -= amount
        if self._budget < 0:
            raise ValueError("a pickle that grows without end")

    def find(self, module: str, name: str) -> Reference:
        """Raises CheckpointError for a function of the standard library."""
        if not (_NAME.fullmatch(module) and _NAME.fullmatch(name)):
            raise ValueError("not the name of a class")
        module = _RENAMED.get(module, module).replace("numpy.core", "numpy._core")
        reference = Reference(module, name)
        if _HARMLESS.fullmatch(reference.full_name) or reference.full_name in _KNOWN:
            return reference
        if _is_standard(reference) and not (_is_inert(reference) or _is_class(reference)):
            raise self._hostile(reference)
        self._classes[reference.full_name] = None
        return reference

    def make(self, maker: object, arguments: tuple[object, ...], *, is_class: bool) -> object:
        """Raises CheckpointError for a function that is not known to be harmless."""
        if not isinstance(maker, Reference):
            raise TypeError("neither a class nor a function")
        self.spend(_size(arguments))
        if maker.full_name in _KNOWN:
            return self._call(maker.full_name, arguments)
        if _is_inert(maker) or _HARMLESS.fullmatch(maker.full_name):
            return Opaque(maker.full_name, arguments)
        if _is_standard(maker):
            raise self._hostile(maker)
        if not (is_class or _is_class(maker)):
            raise self._error(f"asks to call {maker.full_name}, a function that is not known here")
        return Opaque(maker.full_name, arguments)

    def build(self, target: object, state: object) -> None:
        """Raises TypeError where the target has no state."""
        if isinstance(state, tuple):
            self.spend(_size(state))
        if isinstance(target, (NumpyArray, NumpyType)):
            target.set_state(state)
        elif isinstance(target, Opaque):
            self._set_attributes(target, state)
        elif isinstance(target, Reference):
            raise TypeError("a class has no state")
        # A map of the standard library or a tensor: PyTorch's attributes say nothing of weights.

    def persistent(self, key: object) -> object:
        """Raises CheckpointError: a plain pickle has nothing outside it."""
        raise CheckpointError(self._file, "refers to data outside the file")

    def _call(self, name: str, arguments: tuple[object, ...]) -> object:
        if name == _GETATTR:
            return self._attribute(*arguments)
        if name == _LOAD_BYTES:
            return self._load_inner(*arguments)
        if name in _REMAKERS:
            target, *rest = arguments
            return _REMAKERS[name](self.make(target, (), is_class=True), *rest)
        return _BUILDERS[name](*arguments)

    def _attribute(self, owner: object = None, name: object = None) -> Reference:
        """Of a class: members of enumerations, PyTorch's functions. Nothing is looked up."""
        if not isinstance(owner, Reference) or _is_standard(owner):
            raise self._error(
                "asks for builtins.getattr, as a hostile file would (so does a torch.compile'd "
                "module: save its state_dict)"
            )
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError("not the name of an attribute")
        return Reference(owner.module, f"{owner.name}.{name}")

    def _load_inner(self, content: object) -> object:
        """A storage in a plain pickle: a legacy file of torch.save in bytes."""
        if self._load_bytes is None or not isinstance(content, bytes):
            raise TypeError("not bytes of a storage")
        return self._load_bytes(content)

    def _set_attributes(self, target: Opaque, state: object) -> None:
        """From a map of attributes, or a pair of them (the second those in slots)."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        maps = [part for part in parts if isinstance(part, dict)]
        if len(maps) + sum(part is None for part in parts) < len(parts):
            target.items.append(state)
            return
        for attributes in filter(None, maps):
            if target.state:
                self.spend(len(target.state) + len(attributes))
            target.state = {**target.state, **attributes} if target.state else attributes

    def _hostile(self, reference: Reference) -> CheckpointError:
        return self._error(f"asks for {reference.full_name}, as a hostile file would")

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self._file, f"{problem}: nothing of it was run")


def _is_standard(reference: Reference) -> bool:
    """Whether Python itself brings it."""
    return reference.module.partition(".")[0] in _STANDARD


def _is_class(reference: Reference) -> bool:
    """Whether it is written as classes are."""
    return reference.name.rpartition(".")[2].lstrip("_")[:1].isupper()


def _is_inert(reference: Reference) -> bool:
    return _INERT_CALLS.fullmatch(reference.full_name) is not None


def _size(arguments: tuple[object, ...]) -> int:
    """What copying the arguments once would take."""
    sized = (str, bytes, bytearray, tuple, list, dict)
    return 8 + sum(len(argument) for argument in arguments if isinstance(argument, sized))


def _map(pairs: Any = ()) -> dict[object, object]:
    """An OrderedDict, Counter or dict, of a map or a list of pairs."""
    made: dict[object, object] = {}
    set_entries(made, pairs.items() if isinstance(pairs, dict) else pairs)
    return made


def _default_map(_: object = None, pairs: Any = ()) -> dict[object, object]:
    return _map(pairs)


def _collection(name: str) -> Callable[..., object]:
    return lambda items=(): Opaque(f"builtins.{name}", items=list(items))


def _bytes(content: Any = b"", encoding: object = "latin1") -> bytes:
    """`bytes`, `bytearray` and `_codecs.encode`, with which Python 2 and 3 spell bytes."""
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise TypeError("not bytes")
    return bytes(content)


def _list(items: Any = ()) -> list[object]:
    return list(items)


def _tuple(items: Any = ()) -> tuple[object, ...]:
    return tuple(items)


def _object_with_items(made: object, base: object, items: object = None) -> object:
    """copyreg._reconstructor: an instance, and its value as of the built-in class it extends."""
    if isinstance(made, Opaque) and isinstance(items, list):
        made.items = items
    elif isinstance(made, Opaque) and isinstance(items, dict):
        made.entries = items
    elif isinstance(made, Opaque) and items is not None:
        made.arguments = (items,)
    return made


def _object_of_class(made: object, *arguments: object) -> object:
    """copyreg.__newobj__ and __newobj_ex__."""
    if isinstance(made, Opaque):
        made.arguments = arguments
    return made


_REMAKERS: Mapping[str, Callable[..., object]] = {
    "copyreg._reconstructor": _object_with_items,
    "copyreg.__newobj__": _object_of_class,
    "copyreg.__newobj_ex__": _object_of_class,
}
"""Functions whose first argument is the class of what they return."""

_BUILDERS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": _map,
    "collections.Counter": _map,
    "collections.defaultdict": _default_map,
    "builtins.dict": _map,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _collection("set"),
    "builtins.frozenset": _collection("frozenset"),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
    **NUMPY_BUILDERS,
    **TORCH_BUILDERS,
}
"""All that is called for a pickle; the arguments are the pickle's own."""
_KNOWN = frozenset((*_BUILDERS, *_REMAKERS, _GETATTR, _LOAD_BYTES))

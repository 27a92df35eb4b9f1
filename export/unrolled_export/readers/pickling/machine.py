"""The pickle machine: runs a pickle's opcodes over inert objects.

The standard unpickler imports and calls what a pickle names; this one leaves both to `World`,
which knows a few builders of its own and makes everything else inert. It also hashes no key that
is deep or huge, never recurses, and takes memory in proportion to the pickle.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from unrolled_export.errors import CheckpointError
from unrolled_export.readers.pickling.inert import OddTensor, Opaque, Reference

_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
"""Opcodes that push their argument."""
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LARGEST_KEY = 2**61 - 1
"""CPython hashes whole numbers modulo this: larger ones could be made to collide."""


class World(Protocol):
    """What the names in a pickle mean."""

    def find(self, module: str, name: str) -> object:
        """What stands for a class or function."""

    def make(self, maker: object, arguments: tuple[object, ...], *, is_class: bool) -> object:
        """What stands for the result of calling `maker`, surely a class if `is_class`."""

    def build(self, target: object, state: object) -> None:
        """Give `target` its state."""

    def persistent(self, key: object) -> object:
        """What the pickle left outside under `key`."""

    def spend(self, amount: int) -> None:
        """Account for copying `amount` bytes or items. Raises ValueError where it adds up."""


def load_pickle(file: Path, stream: BinaryIO, world: World) -> object:
    """The object that the next pickle of `stream` describes.

    Raises CheckpointError, naming `file`, where the pickle is damaged or `world` refuses it.
    """
    start = stream.tell()
    try:
        with warnings.catch_warnings():
            # Damaged text makes the standard library's decoders warn of odd escapes.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _Machine(world).run(stream)
    except CheckpointError:
        raise
    # All that a wrong stack, argument or text makes the machine's own operations raise.
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        problem = f"damaged, cut off, or not a pickle (the pickle at byte {start} makes no sense)"
        raise CheckpointError(file, problem) from error


class _Machine:
    def __init__(self, world: World) -> None:
        self._world = world
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self, stream: BinaryIO) -> object:
        for opcode, argument, _ in pickletools.genops(stream):
            self._step(opcode.name, argument)
        return self._pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._stack.append(self._pop_many(_TUPLES[name]))
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        else:
            raise ValueError(f"opcode {name}")

    def _pop(self) -> Any:
        self._check_depth(1)
        return self._stack.pop()

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        self._check_depth(count)
        taken = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return taken

    def _pop_to_mark(self) -> tuple[Any, ...]:
        mark = self._marks.pop()
        taken = tuple(self._stack[mark:])
        del self._stack[mark:]
        return taken

    def _top(self) -> Any:
        self._check_depth(1)
        return self._stack[-1]

    def _check_depth(self, count: int) -> None:
        """Refuse to reach below the last mark."""
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise ValueError("stack underflow")

    def _mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def _pop_mark(self, _: object) -> None:
        self._pop_to_mark()

    def _drop(self, _: object) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _duplicate(self, _: object) -> None:
        self._stack.append(self._top())

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, _: object) -> None:
        self._stack.append(self._pop_to_mark())

    def _list(self, _: object) -> None:
        self._stack.append(list(self._pop_to_mark()))

    def _empty_list(self, _: object) -> None:
        self._stack.append([])

    def _empty_dict(self, _: object) -> None:
        self._stack.append({})

    def _empty_set(self, _: object) -> None:
        self._stack.append(Opaque("builtins.set"))

    def _frozenset(self, _: object) -> None:
        self._stack.append(Opaque("builtins.frozenset", items=list(self._pop_to_mark())))

    def _dict(self, _: object) -> None:
        pairs = self._pop_to_mark()
        self._stack.append({})
        self._set_items(pairs)

    def _append(self, _: object) -> None:
        self._extend((self._pop(),))

    def _appends(self, _: object) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: Iterable[object]) -> None:
        target = self._top()
        if isinstance(target, Opaque):
            target = target.items
        if not isinstance(target, list):
            raise TypeError("not a list")
        target.extend(values)

    def _set_item(self, _: object) -> None:
        self._set_items(self._pop_many(2))

    def _set_all_items(self, _: object) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, flat: tuple[Any, ...]) -> None:
        target = self._top()
        if isinstance(target, Opaque):
            target = target.entries
        if not isinstance(target, dict):
            raise TypeError("not a map")
        set_entries(target, zip(flat[::2], flat[1::2], strict=True))

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(self._world.find(module, name))

    def _stack_global(self, _: object) -> None:
        module, name = self._pop_many(2)
        self._stack.append(self._world.find(module, name))

    def _reduce(self, _: object) -> None:
        self._make(*self._pop_many(2), is_class=False)

    def _new_object(self, _: object) -> None:
        self._make(*self._pop_many(2), is_class=True)

    def _new_object_ex(self, _: object) -> None:
        maker, arguments, named = self._pop_many(3)
        self._world.spend(len(arguments))
        self._make(maker, (*arguments, named), is_class=True)

    def _instance(self, names: str) -> None:
        arguments = self._pop_to_mark()
        self._global(names)
        self._make(self._pop(), arguments, is_class=True)

    def _object(self, _: object) -> None:
        maker, *arguments = self._pop_to_mark()
        self._make(maker, tuple(arguments), is_class=True)

    def _make(self, maker: object, arguments: object, *, is_class: bool) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are not a tuple")
        self._stack.append(self._world.make(maker, arguments, is_class=is_class))

    def _build(self, _: object) -> None:
        state = self._pop()
        self._world.build(self._top(), state)

    def _persistent(self, key: str) -> None:
        self._stack.append(self._world.persistent(key))

    def _binary_persistent(self, _: object) -> None:
        self._stack.append(self._world.persistent(self._pop()))

    def _nothing(self, _: object) -> None:
        """PROTO, FRAME and STOP: the decoding has seen to them."""


def set_entries(target: dict[object, object], pairs: Iterable[tuple[object, object]]) -> None:
    """Add pairs of key and value. Raises TypeError for a key that is not safe to hash."""
    for key, value in pairs:
        target[_checked_key(key)] = value


def _checked_key(key: object) -> object:
    """The hash of a tuple takes time and stack in proportion to its depth, or exponentially."""
    parts = key if isinstance(key, tuple) and len(key) <= 64 else (key,)
    if not all(_is_flat_key(part) for part in parts):
        raise TypeError("not a key")
    return key


def _is_flat_key(key: object) -> bool:
    if isinstance(key, int):
        return -_LARGEST_KEY < key < _LARGEST_KEY
    if isinstance(key, (tuple, list, dict)):
        return False
    return (
        key is None
        or isinstance(key, (str, bytes, float, Opaque, Reference, OddTensor))
        or (
            # Whatever else is hashed by identity.
            type(key).__hash__ is object.__hash__
        )
    )


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": _Machine._duplicate,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "EMPTY_LIST": _Machine._empty_list,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "DICT": _Machine._dict,
    "EMPTY_DICT": _Machine._empty_dict,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_all_items,
    "EMPTY_SET": _Machine._empty_set,
    "ADDITEMS": _Machine._appends,
    "FROZENSET": _Machine._frozenset,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new_object,
    "NEWOBJ_EX": _Machine._new_object_ex,
    "INST": _Machine._instance,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "PERSID": _Machine._persistent,
    "BINPERSID": _Machine._binary_persistent,
    "PROTO": _Machine._nothing,
    "FRAME": _Machine._nothing,
    "STOP": _Machine._nothing,
}
"""All others, of the extension registry and of buffers outside the pickle, are refused."""

"""What callers give, as fields of messages: what a field cannot hold is refused by its name here.

That is all that is checked here: the ranges of the contract are the server's.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, MutableSequence, Sequence
from datetime import timedelta
from typing import SupportsFloat, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from unrolled.v1.completion_pb2 import TokenIds

_MessageT = TypeVar("_MessageT", bound=Message)

_MISFITS = (TypeError, ValueError, OverflowError)
_FITTING = {
    FieldDescriptor.TYPE_INT32: f"a whole number from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.TYPE_INT64: f"a whole number from {-(2**63)} to {2**63 - 1}",
    FieldDescriptor.TYPE_UINT64: f"a whole number from 0 to {2**64 - 1}",
    FieldDescriptor.TYPE_FLOAT: "a floating-point number",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "True or False",
}


def message(kind: type[_MessageT], **options: object) -> _MessageT:
    """`kind(**options)`, where None leaves a field unset.

    Raises TypeError or ValueError naming the option whose value its field cannot hold.
    """
    make = cast("Callable[..., _MessageT]", kind)
    try:
        return make(**options)
    except _MISFITS:
        for name, value in options.items():
            _refuse_misfit(kind, name, value, name)
        raise


def token_ids(option: str, ids: object) -> TokenIds:
    """Raises TypeError or ValueError naming the option and its first id that cannot be one."""
    try:
        listed = list(cast("Sequence[int]", ids))
    except TypeError:
        raise TypeError(f"{option}: text or a sequence of token ids, not {_shown(ids)}") from None
    try:
        return TokenIds(ids=listed)
    except _MISFITS:
        _refuse_misfit(TokenIds, "ids", listed, option)
        raise


def duration(option: str, time: float | timedelta | None) -> Duration | None:
    """A time in seconds. Raises TypeError or ValueError naming the option."""
    if time is None:
        return None
    made = Duration()
    span = time if isinstance(time, timedelta) else _span(option, time)
    made.FromTimedelta(span)
    return made


def seconds(option: str, time: float) -> float:
    """A number of seconds, infinity too. Raises TypeError or ValueError naming the option."""
    # A text has none of this, and float() would read it.
    if not isinstance(time, SupportsFloat):
        raise TypeError(f"{option}: a number of seconds, not {_shown(time)}")
    try:
        number = float(time)
    except OverflowError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{option}: a number of seconds, not {_shown(time)}")
    return number


def _span(option: str, time: float) -> timedelta:
    try:
        return timedelta(seconds=seconds(option, time))
    except OverflowError:
        raise ValueError(f"{option}: at most 3,650 days, not {_shown(time)} seconds") from None


def _refuse_misfit(kind: type[Message], name: str, value: object, option: str) -> None:
    """Raises if this value does not fit; of several, for the first that does not."""
    is_repeated = isinstance(getattr(kind(), name), MutableSequence)
    if not (is_repeated and isinstance(value, list | tuple)):
        _try(kind, name, value, option, value)
        return
    for place, one in enumerate(value):
        _try(kind, name, [one], f"{option}[{place}]", one)


def _try(kind: type[Message], name: str, value: object, option: str, given: object) -> None:
    make = cast("Callable[..., Message]", kind)
    try:
        make(**{name: value})
    except UnicodeError as error:
        raise ValueError(f"{option}: {error}") from None
    except _MISFITS as error:
        refused = TypeError if isinstance(error, TypeError) else ValueError
        fitting = _FITTING[kind.DESCRIPTOR.fields_by_name[name].type]
        raise refused(f"{option}: {fitting}, not {_shown(given)}") from None


def _shown(value: object) -> str:
    """It may be long."""
    return reprlib.repr(value)

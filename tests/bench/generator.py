"""The load generator: a process of its own, so that it shares no interpreter with what runs here.

Loads are asyncio functions of this package; their arguments and results are pickled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class Generator:
    """Runs one load at a time; `with` ends the process."""

    def __init__(self) -> None:
        # Not forked: gRPC does not survive it.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def run(
        self,
        load: Callable[_Arguments, Coroutine[Any, Any, _Answer]],
        *arguments: _Arguments.args,
        **options: _Arguments.kwargs,
    ) -> _Answer:
        """Run `load` in the process and wait for it; raises what it raises."""
        return self._pool.submit(_run, partial(load, *arguments, **options)).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


# One event loop for all loads: gRPC still calls into a load's loop after its calls were cancelled.
_loop = asyncio.Runner()


def _run(load: Callable[[], Coroutine[Any, Any, _Answer]]) -> _Answer:
    return _loop.run(load())

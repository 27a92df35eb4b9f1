"""A completion while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from unrolled.errors import translated
from unrolled.v1.completion_pb2 import CompleteEvent, CompleteRequest, Delta, Outcome

if TYPE_CHECKING:
    import grpc.aio


class _Ending:
    """Keeps the outcome, and passes it on to whom it concerns."""

    def __init__(self, on_outcome: Callable[[Outcome], None] | None) -> None:
        self._on_outcome = on_outcome
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        """How the turn ended. Raises RuntimeError before all deltas were read."""
        if self._outcome is None:
            raise RuntimeError("the completion has no outcome yet: read it to its end first")
        return self._outcome

    def _note(self, event: CompleteEvent) -> None:
        if event.HasField("outcome"):
            self._outcome = event.outcome
            if self._on_outcome is not None:
                self._on_outcome(event.outcome)


class CompletionStream(_Ending):
    """Iterates over the deltas of one completion; then `outcome` says how it ended.

    Errors come from the iteration. Leaving `with`, or calling `cancel`, before the end cancels
    the turn, which then leaves no trace; the session is free again a moment later.
    """

    def __init__(
        self,
        call: grpc._CallIterator[CompleteEvent],
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        super().__init__(on_outcome)
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        with translated():
            for event in self._call:
                if event.HasField("delta"):
                    return event.delta
                self._note(event)
        raise StopIteration

    def cancel(self) -> None:
        """Gives the turn up; a reader in another thread gets Cancelled."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncCompletionStream(_Ending):
    """CompletionStream for asyncio: `async for`, `async with`."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[CompleteRequest, CompleteEvent],
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        super().__init__(on_outcome)
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        with translated():
            async for event in self._call:
                if event.HasField("delta"):
                    return event.delta
                self._note(event)
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Gives the turn up; a reader in another task gets Cancelled."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

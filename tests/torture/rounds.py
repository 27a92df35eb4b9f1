"""Rounds: a server is started, 64 streams hold it to the past and go on, and it is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import grpc
import grpc.aio
from support.calls import SECONDS, async_connected
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled_server import failpoints

from torture.outage import Outage, live_through
from torture.stores import TorturedStore
from torture.stream import Stream
from torture.uninterrupted import Uninterrupted

MODELS = ("lstm", "gru")
"""Of the test repository; streams take turns in choosing one."""
STREAMS = 64
FROM_OUTSIDE = "from outside"
"""Killed by another process, when the clients have heard so many messages."""
LAST_TURNS = 2
"""Of each stream in the end, with nothing that kills."""
MESSAGES_BEFORE_OUTAGE = 10 * STREAMS
STATUS_DETAILS = "grpc-status-details-bin"
ROUND_SECONDS = 120.0
"""After which a round hangs."""


@dataclass(frozen=True)
class Kill:
    """What ends a server."""

    place: str
    """A failpoint, or FROM_OUTSIDE."""
    reach: int
    """Which time that it is reached."""

    def __str__(self) -> str:
        if self.place == FROM_OUTSIDE:
            return f"{self.place}, after {self.reach} messages"
        return f"at {self.place}, reached {self.reach} times"

    @property
    def failpoints(self) -> str:
        """What the server's environment says."""
        return "" if self.place == FROM_OUTSIDE else f"{self.place}=kill:{self.reach}"


def kills(places: Sequence[str], count: int, seed: int) -> Iterator[Kill]:
    """Each of the places, and one from outside, in turns, at random times."""
    chance, each = random.Random(seed), (*places, FROM_OUTSIDE)
    for number in range(count):
        place = each[number % len(each)]
        # One transaction commits many turns.
        most = 2 * STREAMS // 4 if place.startswith("store.") else 4 * STREAMS
        yield Kill(place, chance.randint(1, most))


@dataclass(frozen=True)
class Round:
    """What came of one server."""

    serving: float
    """Seconds from its start until it served."""
    acknowledged: int
    """Turns."""
    replayed: int
    """Of these, those that the server before had committed."""
    kill: Kill | None

    def __str__(self) -> str:
        end = "not killed" if self.kill is None else f"killed {self.kill}"
        return (
            f"serving after {self.serving:.3f} s, {self.replayed:2} turns replayed,"
            f" {self.acknowledged - self.replayed:4} taken, {end}"
        )


class Torture:
    """Streams of turns, and the servers that are killed under them, one after the other."""

    def __init__(self, repository: Repository, store: TorturedStore) -> None:
        self._models = repository.path
        self._store = store
        self._trigger = _Trigger()
        self._streams = [
            Stream(
                model,
                repository.recipes[model].characters,
                seed,
                store.durability,
                self._trigger.message_heard,
            )
            for seed, model in zip(range(STREAMS), cycle(MODELS), strict=False)
        ]
        self._oracles = [
            Uninterrupted(repository, model, self._streams[place :: len(MODELS)])
            for place, model in enumerate(MODELS)
        ]

    def rounds(self, kills: Iterable[Kill]) -> Iterator[Round]:
        """One round for each kill, and a last one in which nothing is killed.

        Raises AssertionError, perhaps in a group, where a server is wrong.
        """
        with asyncio.Runner() as runner:
            for kill in (*kills, None):
                with _naming(kill):
                    done = self._round(runner, kill)
                yield done

    def outages(self, seconds: float) -> Iterator[Outage]:
        """One server lives through each way for its store to be gone, for `seconds` and under load.

        Raises AssertionError, perhaps in a group, where the server is wrong.
        """
        store = self._store
        if not store.absences:
            return
        with (
            asyncio.Runner() as runner,
            running_server(self._models, *store.flags, *store.impatient) as server,
        ):
            # Every turn that is refused has a line.
            server.follow_log()
            for absence in store.absences:
                outage, before = Outage(absence, seconds), self._replayed()
                runner.run(self._live_through(outage, server))
                outage.acknowledged = self._catch_up()
                outage.replayed = self._replayed() - before
                yield outage

    async def _live_through(self, outage: Outage, server: RunningServer) -> None:
        under_load = asyncio.Event()
        self._trigger.arm(under_load.set, MESSAGES_BEFORE_OUTAGE)
        async with asyncio.timeout(outage.seconds + ROUND_SECONDS):
            await live_through(outage, server, self._streams, under_load, LAST_TURNS)

    def _replayed(self) -> int:
        """Turns that were answered from the record so far."""
        return sum(stream.replayed for stream in self._streams)

    def _catch_up(self) -> int:
        """Hold what was acknowledged since the last time to the oracles; how many turns."""
        return sum(oracle.catch_up() for oracle in self._oracles)

    def compare_with_torch(self) -> float:
        """How far PyTorch differs at most, in nats. Raises AssertionError where that is too far."""
        return max(oracle.compare_with_torch() for oracle in self._oracles)

    def _round(self, runner: asyncio.Runner, kill: Kill | None) -> Round:
        environment = {failpoints.VARIABLE: "" if kill is None else kill.failpoints}
        before = self._replayed()
        started = time.perf_counter()
        with running_server(self._models, *self._store.flags, environment=environment) as server:
            serving = time.perf_counter() - started
            runner.run(self._go_on(server, kill))
            ended = server.process.poll() if kill is None else server.process.wait(SECONDS)
        assert ended == (None if kill is None else -signal.SIGKILL), f"the server ended: {ended}"
        acknowledged = self._catch_up()
        return Round(serving, acknowledged, self._replayed() - before, kill)

    async def _go_on(self, server: RunningServer, kill: Kill | None) -> None:
        """Until the server is gone; in the last round, LAST_TURNS of each stream."""
        is_meant = kill is not None and kill.place == FROM_OUTSIDE
        self._trigger.arm(server.process.kill if is_meant else None, kill.reach if kill else 0)
        turns = LAST_TURNS if kill is None else None
        async with (
            asyncio.timeout(ROUND_SECONDS),
            async_connected(server.address) as stubs,
            asyncio.TaskGroup() as group,
        ):
            for stream in self._streams:
                going_on = stream.go_on(stubs, turns)
                group.create_task(going_on if kill is None else _until_gone(going_on))


class _Trigger:
    """Does something once clients have heard so many messages."""

    def __init__(self) -> None:
        self._action: Callable[[], object] | None = None
        self._messages_left = 0

    def arm(self, action: Callable[[], object] | None, messages: int) -> None:
        """From now on it is this; None: nothing."""
        self._action, self._messages_left = action, messages

    def message_heard(self) -> None:
        """A client has heard one."""
        self._messages_left -= 1
        if self._action is not None and self._messages_left == 0:
            self._action()


async def _until_gone(going_on: Coroutine[None, None, None]) -> None:
    """Nobody is there any more: that alone is no failure."""
    try:
        await going_on
    except grpc.aio.AioRpcError as error:
        # What a server says itself has details.
        is_said = any(key == STATUS_DETAILS for key, _ in error.trailing_metadata())
        if error.code() != grpc.StatusCode.UNAVAILABLE or is_said:
            raise


@contextmanager
def _naming(kill: Kill | None) -> Iterator[None]:
    """Errors say which round it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the round that was to end so: {kill}")
        raise

"""The way to a Redis server: connections, a limit of time, errors in our terms.

Nothing is tried twice here: whether a write that got no answer was done is not known, and who may
repeat it is the caller's matter. A connection that was closed meanwhile is noticed before it is
used, so that the first call after a restart succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from unrolled_server.errors import ServerError, StoreFull, StoreUnavailable
from unrolled_server.logs import log_event
from unrolled_server.redis_connection import TlsSource, connection_pool
from unrolled_server.redis_url import tls_options, without_password
from unrolled_server.store import StoreOpenError, StoreStats

logger = logging.getLogger(__name__)

NAME = "redis"
"""What errors call this store."""
OLDEST = (7, 0)
"""The first version of Redis with PEXPIREAT GT and PEXPIRETIME."""

Argument: TypeAlias = "bytes | str | int | float"


class RedisLink:
    """Calls to one Redis server, each answered within `timeout` seconds or not at all."""

    def __init__(self, url: str, timeout: float, tls: TlsSource | None = None) -> None:
        """rediss:// needs `tls`. Raises StoreOpenError where the URL is none."""
        self.timeout = timeout
        self.stats = StoreStats()
        self._shown = without_password(url)
        self._clock = time.monotonic
        self._offset: float | None = None
        """What Redis's clock, in seconds since the epoch, is ahead of ours: not more than that."""
        self._is_reachable = True
        self._pool = connection_pool(url, timeout, tls)
        self.client: Redis = Redis.from_pool(self._pool)
        options = tls_options(url)
        self._unverified = "" if options is None else options.unverified

    async def open(self) -> None:
        """See whether Redis is there, and such that it can keep sessions. Raises StoreOpenError."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._read_clock()
                facts = await self.client.info("server")
                memory = await self.client.info("memory")
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise StoreOpenError(f"{self._shown}: {error}") from error
        except (RedisError, OSError) as error:
            problem = str(error) or f"no answer in {self.timeout:g} s"
            raise StoreOpenError(f"{self._shown}: {problem}") from error
        version = str(facts["redis_version"])
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            needed = ".".join(map(str, OLDEST))
            raise StoreOpenError(f"{self._shown}: Redis {version}; {needed} or later is needed")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log_event(logger, logging.WARNING, "store_may_evict_sessions", maxmemory_policy=policy)
        if self._unverified:
            log_event(logger, logging.WARNING, "store_not_verified", unverified=self._unverified)

    def script(self, text: str) -> AsyncScript:
        """A script that Redis keeps, to be run by its digest."""
        return self.client.register_script(text)

    def now(self) -> float:
        """What Redis's clock says, in seconds since the epoch, or a little before that."""
        if self._offset is None:
            raise RuntimeError("the link is not open")
        return self._clock() + self._offset

    def deadline(self, until: float = math.inf) -> int:
        """Microseconds of Redis's clock after which nobody waits for what is asked for now.

        until: of time.monotonic, in seconds, where nobody waits for longer than that.
        """
        return int((self.now() + min(self.timeout, until - self._clock())) * 1e6)

    async def run(
        self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument] = ()
    ) -> Any:
        """What a script returns. Raises StoreUnavailable, StoreFull."""
        async with self.answering():
            return await script(keys=keys, args=arguments)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[Redis]:
        """Calls of the client, together within the time. Raises StoreUnavailable, StoreFull."""
        try:
            async with asyncio.timeout(self.timeout):
                yield self.client
        except (RedisError, OSError) as error:
            raise await self._failure(error) from error

    async def is_copied(self, one: Redis, replicas: int, seconds: float) -> bool:
        """Whether so many replicas confirm in time what was written through this client alone."""
        try:
            async with asyncio.timeout(seconds):
                return int(await one.wait(replicas, max(1, int(seconds * 1000)))) >= replicas
        except (RedisError, OSError):
            return False

    async def ping(self) -> bool:
        """Whether Redis answers in time; the log hears of it when that changes."""
        problem = ""
        try:
            async with asyncio.timeout(self.timeout):
                await self._read_clock()
        except (RedisError, OSError) as error:
            problem = str(error) or f"no answer in {self.timeout:g} s"
        is_reachable = not problem
        if is_reachable != self._is_reachable:
            self._is_reachable = is_reachable
            if is_reachable:
                log_event(logger, logging.INFO, "store_reachable", store=self._shown)
            else:
                log_event(
                    logger, logging.ERROR, "store_unreachable", store=self._shown, error=problem
                )
        return is_reachable

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _read_clock(self) -> None:
        """Compare the clocks; a slow answer says too little."""
        asked = self._clock()
        seconds, microseconds = await self.client.time()
        answered = self._clock()
        if self._offset is None or answered - asked < self.timeout / 4:
            self._offset = seconds + microseconds / 1e6 - answered

    async def _failure(self, error: Exception) -> ServerError:
        """What the caller is told; what only the operator can use goes to the log."""
        if isinstance(error, OutOfMemoryError):
            self.stats.errors["full"] += 1
            log_event(logger, logging.ERROR, "store_full", store=NAME)
            return StoreFull(NAME)
        self.stats.errors["unavailable"] += 1
        if isinstance(error, ReadOnlyError):
            # Another server is the primary now, and new connections may lead there.
            await self._pool.disconnect(inuse_connections=False)
        is_outage = isinstance(error, RedisConnectionError | RedisTimeoutError | OSError)
        level = logging.DEBUG if is_outage else logging.ERROR
        log_event(logger, level, "store_failed", store=NAME, error=str(error) or "no answer")
        return StoreUnavailable(NAME)

"""Connections to a Redis server: how they are made, and in what words they fail to be.

redis-py makes a context of TLS for every connection, which takes tens of milliseconds with a
system's authorities and holds up the event loop. Here all have one.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from redis.asyncio import BlockingConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from unrolled_server.redis_url import CA, CERT, TLS_OPTIONS, check, without_password
from unrolled_server.store import StoreOpenError

TlsSource: TypeAlias = Callable[[], ssl.SSLContext]
"""The context for the next connection."""

MAX_CONNECTIONS = 64
HANDSHAKE = 0.9
"""Of the time for a call, what a handshake may take: less, so that it is known to be at fault."""
OF_ANOTHER_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""
CLOSED = {
    "redis": "it may want TLS, which is rediss://",
    "rediss": f"it may want a certificate of this server, or another one: {CERT}",
}
"""Why Redis may close a connection at once, by the scheme of the URL."""


class TlsConnection(SSLConnection):
    """One whose TLS is as `tls` has it when it is made. Its errors say what may be done."""

    def __init__(self, *, tls: TlsSource, handshake_timeout: float, **options: Any) -> None:
        # Should redis-py come to make connections in another way than below, its own context
        # counts, which trusts whom the system trusts.
        super().__init__(**options)
        self._tls = tls
        self._handshake_timeout = handshake_timeout

    def _connection_arguments(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "ssl": self._tls(),
            "ssl_handshake_timeout": self._handshake_timeout,
            "ssl_shutdown_timeout": self._handshake_timeout,
        }

    async def _connect(self) -> None:
        """Raises RedisConnectionError, OSError."""
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except ssl.SSLCertVerificationError as error:
            raise RedisConnectionError(_distrust(error)) from error
        except (ssl.SSLError, ConnectionAbortedError, ConnectionResetError) as error:
            # asyncio says that it was aborted when it has taken too long.
            problem = f"TLS was not agreed on: {error}; redis:// is for Redis without TLS"
            raise RedisConnectionError(problem) from error


def connection_pool(url: str, timeout: float, tls: TlsSource | None) -> BlockingConnectionPool:
    """Connections that are made when they are needed; rediss:// needs `tls`.

    Raises StoreOpenError.
    """
    try:
        return BlockingConnectionPool(
            **_address(url, timeout, tls),
            max_connections=MAX_CONNECTIONS,
            # Calls have a limit of their own, for all that they wait for.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            # With these on, a pool does not see that a connection was closed.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    except (ValueError, RedisError, OSError) as error:
        raise StoreOpenError(f"{without_password(url)}: {error}") from error


def _address(url: str, timeout: float, tls: TlsSource | None) -> dict[str, Any]:
    """Where connections lead, and how they begin. Raises ValueError."""
    check(url)
    address: dict[str, Any] = {
        name: value for name, value in parse_url(url).items() if name not in TLS_OPTIONS
    }
    scheme = url.partition(":")[0]
    if scheme in CLOSED:
        address["redis_connect_func"] = partial(_greet, CLOSED[scheme])
    if scheme == "rediss":
        if tls is None:
            raise ValueError("there is no context for TLS")
        address["connection_class"] = TlsConnection
        address |= {"tls": tls, "handshake_timeout": HANDSHAKE * timeout}
    return address


async def _greet(if_closed: str, connection: AbstractConnection) -> None:
    """Introduce ourselves on a new connection. Raises RedisError."""
    try:
        await connection.on_connect()
    except RedisConnectionError as error:
        # Its subclasses are answers.
        if type(error) is not RedisConnectionError:
            raise
        raise RedisConnectionError(f"{error}; {if_closed}") from error


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate is not trusted, and what to do about it."""
    reason = error.verify_message.rstrip(".")
    if error.verify_code in OF_ANOTHER_NAME:
        return f"its certificate is for another host: {reason}"
    return f"its certificate is not trusted: {reason}; {CA} says whom to trust"

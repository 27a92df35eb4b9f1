"""Where sessions are kept, as --store says, and what goes on there beside calls."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext

from unrolled_server.cached_sessions import CachedSessions
from unrolled_server.config import Config
from unrolled_server.errors import ServerError
from unrolled_server.logs import log_event
from unrolled_server.models import Models
from unrolled_server.redis_url import is_redis, without_password
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.sessions import Sessions
from unrolled_server.shared_keeper import SharedKeeper
from unrolled_server.sqlite_store import SqliteStore
from unrolled_server.store import StoreOpenError
from unrolled_server.stored_keeper import StoredKeeper
from unrolled_server.types import Durability

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 1.0
SESSIONS_FILE = "sessions.db"
"""In --data-dir."""
DURABILITY = {"full": Durability.FSYNC, "normal": Durability.PROCESS_CRASH}


async def open_sessions(
    config: Config, models: Models, store_tls: Callable[[], SSLContext] | None
) -> SessionKeeper:
    """All sessions there are; a store at rediss:// needs `store_tls`. Raises StoreOpenError."""
    most, idle_ttl, max_age = config.max_sessions, config.session_ttl, config.session_max_age
    if config.store == "memory":
        return SessionKeeper(Sessions(most, idle_ttl, max_age=max_age))
    memory = CachedSessions(most, idle_ttl, max_age=max_age)
    if is_redis(config.store):
        return await _in_redis(config, models, memory, store_tls)
    return _in_file(config, models, memory)


async def close_sessions(sessions: SessionKeeper) -> None:
    """Finish what is under way."""
    try:
        await sessions.close()
    except ServerError as error:
        log_event(logger, logging.ERROR, "store_not_closed", error=error.message)


async def follow_expiry(sessions: SessionKeeper) -> None:
    """End sessions whose time is over, for ever."""
    while True:
        # Of very many, some end at a time: what else there is to do comes in between.
        try:
            more = await sessions.expire()
        except ServerError:
            # The store has logged it.
            more = False
        except Exception:
            logger.exception("expiry_failed")
            more = False
        await asyncio.sleep(0 if more else EXPIRY_SECONDS)


def _in_file(config: Config, models: Models, memory: CachedSessions) -> SessionKeeper:
    """Sessions in an SQLite file. Raises StoreOpenError."""
    kind, _, path = config.store.partition(":")
    file = Path(path) if path else _made_data_dir(config) / SESSIONS_FILE
    try:
        store = SqliteStore(file, DURABILITY[config.store_sync])
    except StoreOpenError as error:
        raise StoreOpenError(f"--store {kind}:{error}") from error
    stored = sum(store.count().values())
    log_event(logger, logging.INFO, "store_opened", store=f"{kind}:{file}", sessions=stored)
    return StoredKeeper(memory, models, store)


def _made_data_dir(config: Config) -> Path:
    """The folder of what outlives the server. Raises StoreOpenError."""
    path = config.data_dir
    if path is None:
        # XDG Base Directory Specification 0.8.
        path = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "unrolled"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose a folder with --data-dir, or --store memory"
        raise StoreOpenError(f"--store sqlite: {path}: {error.strerror}; {remedy}") from error
    return path


async def _in_redis(
    config: Config, models: Models, memory: CachedSessions, tls: Callable[[], SSLContext] | None
) -> SessionKeeper:
    """Sessions in Redis. Raises StoreOpenError."""
    # Its client takes an eighth of a server's start to import.
    from unrolled_server.redis_store import RedisStore

    try:
        store = RedisStore(config.store, config.store_timeout, config.store_replicas, tls)
        await store.open()
    except StoreOpenError as error:
        raise StoreOpenError(f"--store {error}") from error
    stored = sum(store.count().values())
    log_event(
        logger, logging.INFO, "store_opened", store=without_password(config.store), sessions=stored
    )
    return SharedKeeper(memory, models, store)

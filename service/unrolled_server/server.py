"""Puts the parts together, and takes them apart again without losing a turn."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from unrolled.v1 import (
    completion_pb2,
    completion_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

from unrolled_server import failpoints
from unrolled_server.access import Access
from unrolled_server.config import Config
from unrolled_server.engine import Engine
from unrolled_server.errors import ServerError
from unrolled_server.interceptor import CallInterceptor
from unrolled_server.lane import Delivery, Lane
from unrolled_server.logs import log_event
from unrolled_server.metrics import NoRpcMetrics, ReloadMetrics, RpcMetrics, server_registry
from unrolled_server.metrics_endpoint import PATH, MetricsEndpoint
from unrolled_server.models import Models
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.redis_store import RedisStore
from unrolled_server.redis_url import is_redis, without_password
from unrolled_server.repository import load_models
from unrolled_server.runner import RunnerConfig, check_device
from unrolled_server.running import AnyRunner
from unrolled_server.services import CompletionService, ModelService, SessionService
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.sessions import Sessions
from unrolled_server.shared_sessions import SharedSessions
from unrolled_server.snapshots import Snapshots
from unrolled_server.sqlite_store import SqliteStore
from unrolled_server.stats import EngineStats, Tally, Unasked
from unrolled_server.stopping import StopSignals
from unrolled_server.store import StoreOpenError
from unrolled_server.stored_sessions import StoredSessions
from unrolled_server.turn_times import slow_turns
from unrolled_server.turns import TurnLimits, Turns
from unrolled_server.types import Durability
from unrolled_server.vocabulary import Vocabulary

if TYPE_CHECKING:
    from unrolled_server.tracing import Tracer

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 16 << 20
LAST_WRITES_SECONDS = 5.0
"""What readers get, once no turn is under way, to read what is on its way to them."""
EXPIRY_SECONDS = 1.0
SESSIONS_FILE = "sessions.db"
"""In --data-dir."""
WATCH_SECONDS = 0.5
LIVENESS = "liveness"
"""A service for health checks alone, which serves for as long as the process does."""
DURABILITY = {"full": Durability.FSYNC, "normal": Durability.PROCESS_CRASH}
SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (completion_pb2, "CompletionService"),
        (session_pb2, "SessionService"),
        (model_pb2, "ModelService"),
    )
)
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # A port that somebody else listens on is an error, not to be shared silently.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Proxies ping also while they have no call to make.
    ("grpc.keepalive_permit_without_calls", 1),
)


class BindError(Exception):
    """The server cannot listen where it should."""


class TracingError(Exception):
    """Traces cannot be made."""


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way; a second one ends that.

    Raises DeviceError where the device is not there, BindError where a port is taken,
    FileError, StoreOpenError, FailpointSyntaxError, TracingError.
    """
    check_device(config.device)
    failpoints.arm(os.environ)
    access = Access(config)
    tracer = None if config.otlp_endpoint is None else _tracer(config.otlp_endpoint)
    stop = StopSignals()
    models = _load(config)
    sessions = await _keeper(config, models)
    limits = TurnLimits(
        config.max_tokens, config.max_prompt_bytes, config.max_rows + config.max_waiting
    )
    watchers = [slow_turns(config.slow_turn)] if config.slow_turn else []
    if tracer is not None:
        watchers.append(tracer.turn)
    prefixes = PrefixCache(config.prefix_cache_bytes)
    turns = Turns(models, sessions, limits, prefixes, watchers)
    registry = server_registry(models, sessions, prefixes, config.max_rows, config.max_waiting)
    checks = health.HealthServicer()
    calls = NoRpcMetrics() if config.metrics_port is None else RpcMetrics(registry)
    interceptor = CallInterceptor(calls, access.keys, tracer)
    server = _server(config, turns, Snapshots(sessions, models, access.sealer), interceptor, checks)
    port = _bind(server, access, config.host, config.port)
    metrics = _serve_metrics(config, registry)
    await server.start()
    await checks.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
    await _set_health(checks, any(models.ready()))
    if access.exposes_keys:
        log_event(logger, logging.WARNING, "api_keys_come_in_plain_text", host=config.host)
    log_event(
        logger,
        logging.INFO,
        "serving",
        version=version("unrolled"),
        grpc=_address(config.host, port),
        tls=access.has_tls,
        metrics=_metrics_url(config, metrics),
        models=sum(1 for _ in models.ready()),
    )
    if not any(models.ready()):
        log_event(logger, logging.WARNING, "no_model_is_ready", models=config.models)
    reloaders = access.reloaders(ReloadMetrics(registry))
    watch = asyncio.create_task(_watch(sessions, models, checks))
    tasks = [
        asyncio.create_task(work)
        for work in (_expire(sessions), *(each.follow() for each in reloaders))
    ]
    await stop.asked.wait()
    log_event(logger, logging.INFO, "draining")
    watch.cancel()
    await _set_health(checks, False)
    if cut_short := await turns.drain(config.drain_timeout, stop.at_once):
        log_event(logger, logging.WARNING, "turns_cut_short", turns=cut_short)
    await _end_calls(server, stop.at_once)
    for task in tasks:
        task.cancel()
    await _close(sessions)
    for model in models.ready():
        model.engine.close()
    if metrics is not None:
        metrics.close()
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    log_event(logger, logging.INFO, "stopped")


def _load(config: Config) -> Models:
    delivery = Delivery(config.flush_tokens, config.flush_interval, config.flush_rate)
    loop = asyncio.get_running_loop()
    tally = Unasked if config.metrics_port is None else Tally

    def start_engine(label: str, runners: Sequence[AnyRunner], vocabulary: Vocabulary) -> Engine:
        rows, more = divmod(config.max_rows, len(runners))
        lanes = [
            Lane(
                label,
                runner,
                vocabulary,
                rows + (place < more),
                delivery,
                loop,
                stats=EngineStats(tally),
            )
            for place, runner in enumerate(runners)
        ]
        engine = Engine(lanes)
        engine.start()
        return engine

    runner_config = RunnerConfig(config.device, config.threads)
    return load_models(config.models, config.max_rows, runner_config, start_engine)


async def _keeper(config: Config, models: Models) -> SessionKeeper:
    """Where sessions are kept. Raises StoreOpenError."""
    kind, _, path = config.store.partition(":")
    memory = Sessions(
        config.max_sessions,
        config.session_ttl,
        spills=kind != "memory",
        max_age=config.session_max_age,
    )
    if kind == "memory":
        return SessionKeeper(memory)
    if is_redis(config.store):
        return await _shared(config, models, memory)
    file = Path(path) if path else _made_data_dir(config) / SESSIONS_FILE
    try:
        store = SqliteStore(file, DURABILITY[config.store_sync])
    except StoreOpenError as error:
        raise StoreOpenError(f"--store {kind}:{error}") from error
    stored = sum(store.count().values())
    log_event(logger, logging.INFO, "store_opened", store=f"{kind}:{file}", sessions=stored)
    return StoredSessions(memory, models, store)


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


async def _shared(config: Config, models: Models, memory: Sessions) -> SessionKeeper:
    """Sessions in Redis. Raises StoreOpenError."""
    try:
        store = RedisStore(config.store, config.store_timeout, config.store_replicas)
        await store.open()
    except StoreOpenError as error:
        raise StoreOpenError(f"--store {error}") from error
    stored = sum(store.count().values())
    log_event(
        logger, logging.INFO, "store_opened", store=without_password(config.store), sessions=stored
    )
    return SharedSessions(memory, models, store)


async def _close(sessions: SessionKeeper) -> None:
    try:
        await sessions.close()
    except ServerError as error:
        log_event(logger, logging.ERROR, "store_not_closed", error=error.message)


def _server(
    config: Config,
    turns: Turns,
    snapshots: Snapshots,
    interceptor: CallInterceptor,
    checks: health.HealthServicer,
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[interceptor], options=OPTIONS)
    completions = CompletionService(turns, config.write_timeout)
    completion_pb2_grpc.add_CompletionServiceServicer_to_server(completions, server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(
        SessionService(turns.sessions, turns.models, snapshots), server
    )
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(turns.models), server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server
    )
    return server


def _bind(server: grpc.aio.Server, access: Access, host: str, port: int) -> int:
    address = _address(host, port)
    try:
        return access.open_port(server, address)
    except RuntimeError as error:
        raise BindError(f"--port {port}: cannot listen on {address}") from error


def _address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _serve_metrics(config: Config, registry: CollectorRegistry) -> MetricsEndpoint | None:
    if config.metrics_port is None:
        return None
    try:
        return MetricsEndpoint(config.host, config.metrics_port, registry)
    except OSError as error:
        raise BindError(f"--metrics-port {config.metrics_port}: {error.strerror}") from error


async def _end_calls(server: grpc.aio.Server, at_once: asyncio.Event) -> None:
    ending = asyncio.create_task(server.stop(LAST_WRITES_SECONDS))
    hurrying = asyncio.create_task(at_once.wait())
    await asyncio.wait({ending, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not ending.done():
        await server.stop(None)
    await ending


def _metrics_url(config: Config, metrics: MetricsEndpoint | None) -> str:
    return "off" if metrics is None else f"http://{_address(config.host, metrics.port)}{PATH}"


def _tracer(endpoint: str) -> Tracer:
    """Raises TracingError where OpenTelemetry is not installed."""
    try:
        from unrolled_server.tracing import Tracer
    except ModuleNotFoundError as error:
        remedy = "pip install '.[tracing]'"
        raise TracingError(f"--otlp-endpoint needs {error.name}: {remedy}") from error
    return Tracer(endpoint)


async def _set_health(checks: health.HealthServicer, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse
    for service in ("", *SERVICES):
        await checks.set(service, status.SERVING if serving else status.NOT_SERVING)


async def _watch(sessions: SessionKeeper, models: Models, checks: health.HealthServicer) -> None:
    """Serve only while sessions can be got at."""
    was_reachable = True
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        is_reachable = await sessions.is_reachable()
        if is_reachable != was_reachable:
            was_reachable = is_reachable
            await _set_health(checks, is_reachable and any(models.ready()))


async def _expire(sessions: SessionKeeper) -> None:
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

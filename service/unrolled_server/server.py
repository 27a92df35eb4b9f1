"""Puts the parts together, and takes them apart again without losing a turn."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from unrolled.v1 import (
    completion_pb2,
    completion_pb2_grpc,
    error_pb2,  # noqa: F401 - no message has a field of it, and reflection is to tell of it
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

from unrolled_server import failpoints
from unrolled_server.access import Access
from unrolled_server.config import Config
from unrolled_server.delivery import Flushing
from unrolled_server.engine import Engine
from unrolled_server.health_checks import HealthChecks
from unrolled_server.interceptor import CallInterceptor
from unrolled_server.lane import Lane
from unrolled_server.logs import log_event
from unrolled_server.metrics import NoRpcMetrics, ReloadMetrics, RpcMetrics
from unrolled_server.metrics_endpoint import PATH, MetricsEndpoint
from unrolled_server.metrics_registry import server_registry
from unrolled_server.models import Models
from unrolled_server.opening import RunnerConfig, check_device
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.repository import load_models
from unrolled_server.running import AnyRunner
from unrolled_server.services import CompletionService, ModelService, SessionService
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.session_stores import close_sessions, follow_expiry, open_sessions
from unrolled_server.snapshots import Snapshots
from unrolled_server.stats import EngineStats, Tally, Unasked
from unrolled_server.stopping import StopSignals, leave_while_starting
from unrolled_server.tasks import TurnLimits
from unrolled_server.turn_times import SlowTurns, TurnWatcher
from unrolled_server.turns import Turns
from unrolled_server.vocabulary import Vocabulary

if TYPE_CHECKING:
    from unrolled_server.tracing import Tracer

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 16 << 20
LAST_WRITES_SECONDS = 5.0
"""What readers get, once no turn is under way, to read what is on its way to them."""
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


LAST_STATUS_SECONDS = 0.5
"""What they get where the server is to end at once."""


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
    leave_while_starting()
    server = await _put_together(config)
    stop = StopSignals()
    await server.start()
    await stop.asked.wait()
    await server.end(stop.at_once)


@dataclass(frozen=True)
class Server:
    """The parts of a server, which is bound to its ports."""

    config: Config
    access: Access
    tracer: Tracer | None
    turns: Turns
    registry: CollectorRegistry
    checks: HealthChecks
    calls: grpc.aio.Server
    port: int
    metrics: MetricsEndpoint | None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """What goes on beside calls."""

    async def start(self) -> None:
        """Take calls."""
        models, sessions = self.turns.models, self.turns.sessions
        reloaders = self.access.reloaders(ReloadMetrics(self.registry))
        await self.calls.start()
        await self.checks.start(models)
        self._say_that_it_serves()
        work = (
            self.checks.watch(sessions, models),
            follow_expiry(sessions),
            *(each.follow() for each in reloaders),
        )
        self.tasks.extend(asyncio.create_task(each) for each in work)

    async def end(self, at_once: asyncio.Event) -> None:
        """Finish what is under way, or not, if `at_once` is set, and let go of everything."""
        log_event(logger, logging.INFO, "draining")
        await self.checks.end()
        if cut_short := await self.turns.drain(self.config.drain_timeout, at_once):
            log_event(logger, logging.WARNING, "turns_cut_short", turns=cut_short)
        self.checks.end_watches()
        await _end_calls(self.calls, at_once)
        # Until here the store is to know which sessions have turns under way.
        for task in self.tasks:
            task.cancel()
        await close_sessions(self.turns.sessions)
        for model in self.turns.models.ready():
            model.engine.close()
        if self.metrics is not None:
            self.metrics.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        log_event(logger, logging.INFO, "stopped")

    def _say_that_it_serves(self) -> None:
        config, access = self.config, self.access
        if access.exposes_keys:
            log_event(logger, logging.WARNING, "api_keys_come_in_plain_text", host=config.host)
        ready = sum(1 for _ in self.turns.models.ready())
        log_event(
            logger,
            logging.INFO,
            "serving",
            version=version("unrolled"),
            grpc=_address(config.host, self.port),
            tls=access.has_tls,
            metrics=_metrics_url(config, self.metrics),
            models=ready,
        )
        if not ready:
            log_event(logger, logging.WARNING, "no_model_is_ready", models=config.models)


async def _put_together(config: Config) -> Server:
    """All parts, bound to the ports. Raises what `serve` does."""
    access = Access(config)
    tracer = None if config.otlp_endpoint is None else _tracer(config.otlp_endpoint)
    models = _load(config)
    sessions = await open_sessions(config, models, access.store_tls)
    turns = _turns(config, models, sessions, tracer)
    registry = server_registry(
        models, sessions, turns.prefixes, config.max_rows, config.max_waiting
    )
    checks = HealthChecks(SERVICES)
    rpc_metrics = NoRpcMetrics() if config.metrics_port is None else RpcMetrics(registry)
    interceptor = CallInterceptor(rpc_metrics, access.keys, tracer)
    snapshots = Snapshots(sessions, models, access.sealer)
    calls = _calls(config, turns, snapshots, interceptor, checks)
    port = _bind(calls, access, config.host, config.port)
    metrics = _serve_metrics(config, registry)
    return Server(config, access, tracer, turns, registry, checks, calls, port, metrics)


def _turns(config: Config, models: Models, sessions: SessionKeeper, tracer: Tracer | None) -> Turns:
    limits = TurnLimits(
        config.max_tokens, config.max_prompt_bytes, config.max_rows + config.max_waiting
    )
    watchers: list[TurnWatcher] = [SlowTurns(config.slow_turn)] if config.slow_turn else []
    if tracer is not None:
        watchers.append(tracer.turn)
    return Turns(models, sessions, limits, PrefixCache(config.prefix_cache_bytes), watchers)


def _load(config: Config) -> Models:
    flushing = Flushing(config.flush_tokens, config.flush_interval, config.flush_rate)
    loop = asyncio.get_running_loop()
    tally = Unasked if config.metrics_port is None else Tally

    def start_engine(label: str, runners: Sequence[AnyRunner], vocabulary: Vocabulary) -> Engine:
        lanes = [
            Lane(label, runner, vocabulary, flushing, loop, stats=EngineStats(tally))
            for runner in runners
        ]
        engine = Engine(lanes)
        engine.start()
        return engine

    runner_config = RunnerConfig(config.device, config.threads)
    return load_models(config.models, config.max_rows, runner_config, start_engine)


def _calls(
    config: Config,
    turns: Turns,
    snapshots: Snapshots,
    interceptor: CallInterceptor,
    checks: HealthChecks,
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[interceptor], options=OPTIONS)
    completions = CompletionService(turns, config.write_timeout)
    completion_pb2_grpc.add_CompletionServiceServicer_to_server(completions, server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(
        SessionService(turns.sessions, turns.models, snapshots), server
    )
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(turns.models), server)
    health_pb2_grpc.add_HealthServicer_to_server(checks.servicer, server)
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
    # Calls that have just failed are still to say why.
    await asyncio.wait({ending}, timeout=LAST_STATUS_SECONDS)
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

"""Puts metrics together: what is running, its limits, its parts, its process."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Gauge, Info, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from unrolled_server.models import Models
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.server_collector import ServerCollector
from unrolled_server.session_keeper import SessionKeeper


def server_registry(
    models: Models, sessions: SessionKeeper, prefixes: PrefixCache, max_rows: int, max_waiting: int
) -> CollectorRegistry:
    """A registry with everything but the calls, and with what the process uses.

    max_rows, max_waiting: turns of one model that advance at once, and that wait for a row.
    """
    # Of no use to Prometheus, and a third of the page.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    Info("unrolled_build", "What is running.", registry=registry).info(_build())
    for name, text, value in (
        ("rows_active_limit", "Rows in the batch of a model at most.", max_rows),
        ("rows_waiting_limit", "Turns of a model that wait at most.", max_waiting),
    ):
        Gauge(f"unrolled_{name}", text, registry=registry).set(value)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(ServerCollector(models, sessions, prefixes))
    return registry


def _build() -> dict[str, str]:
    """What a session's bits depend on, with the CPU."""
    for runtime in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return {"version": version("unrolled"), "onnxruntime": version(runtime)}
        except PackageNotFoundError:
            continue
    return {"version": version("unrolled"), "onnxruntime": ""}

"""A server's page of metrics, made by Prometheus' own client library from what is observed here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

BOUNDS = (20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 1.0)


class Server:
    """The metrics of a server that has just begun, with one model."""

    def __init__(self, started: float = 1_700_000_000.0, model: str = "tiny/1") -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.model = model
        Gauge("process_start_time_seconds", "-", registry=registry).set(started)
        self.memory = Gauge("process_resident_memory_bytes", "-", registry=registry)
        self.cpu = Counter("process_cpu_seconds", "-", registry=registry)
        Info("unrolled_build", "-", registry=registry).info({"version": "7.8.9"})
        labels = ["model", "status", "cell", "precision", "device", "fingerprint"]
        self.models = Gauge("unrolled_model_info", "-", labels, registry=registry)
        self.add_model(model)
        self.sessions = Gauge("unrolled_sessions", "-", ["model", "tier"], registry=registry)
        self.sessions_limit = Gauge("unrolled_sessions_limit", "-", registry=registry)
        self.active_limit = Gauge("unrolled_rows_active_limit", "-", registry=registry)
        self.handled = Counter("unrolled_rpc_handled", "-", ["method", "code"], registry=registry)
        self.active, self.waiting, self.parked = (
            Gauge(f"unrolled_rows_{name}", "-", ["model"], registry=registry)
            for name in ("active", "waiting", "parked")
        )
        self.drawn, self.told, self.scored = (
            Counter(f"unrolled_{name}_tokens", "-", ["model"], registry=registry)
            for name in ("generated", "prompt", "scored")
        )
        self.replays = self._counter("replays")
        self.state_bytes = self._gauge("session_state_bytes")
        self.first_token = self._histogram("time_to_first_token_seconds", "model")
        self.inter_token = self._histogram("inter_token_latency_seconds", "model")
        self.batch = self._histogram("batch_rows", "model")
        self.steps = self._histogram("step_duration_seconds", "model", "part")

    def add_model(self, name: str, status: str = "ready") -> None:
        self.models.labels(name, status, "lstm", "fp32", "cpu", "ab" * 6).set(1)

    def add_store(self) -> None:
        """From now on it has metrics of a store."""
        self.commit = self._histogram("commit_duration_seconds")
        self.evicted = self._counter("evictions", "reason")
        self.store_errors = self._counter("store_errors", "kind")
        self.damaged = self._counter("store_corrupt_records")
        self.store_size, self.store_free = (
            Gauge(f"unrolled_store_{name}_bytes", "-", registry=self.registry)
            for name in ("size", "free")
        )

    def page(self) -> str:
        return generate_latest(self.registry).decode()

    def _gauge(self, name: str) -> Gauge:
        return Gauge(f"unrolled_{name}", "-", ["model"], registry=self.registry)

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(f"unrolled_{name}", "-", labels, registry=self.registry)

    def _histogram(self, name: str, *labels: str) -> Histogram:
        return Histogram(f"unrolled_{name}", "-", labels, buckets=BOUNDS, registry=self.registry)


class Answers:
    """What an HTTP server answers, to be changed while it runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.body = b""


@contextmanager
def answering(port: int = 0) -> Iterator[Answers]:
    """An HTTP server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.status)
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        answers = Answers(f"http://127.0.0.1:{server.server_port}/metrics")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()

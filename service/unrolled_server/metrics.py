"""Metrics that are counted as things happen: calls, and files that are read again.

No label holds the name of a session or of anything a caller chose.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RPC_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class RpcMetrics:
    """Calls as the interceptor sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter(
            "unrolled_rpc_started", "Calls begun.", ["method"], registry=registry
        )
        self._handled = Counter(
            "unrolled_rpc_handled", "Calls ended.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "unrolled_rpc_duration_seconds",
            "Time from the begin of a call to its end.",
            ["method"],
            buckets=RPC_SECONDS,
            registry=registry,
        )

    def begin(self, method: str) -> None:
        """A call has begun."""
        self._started.labels(method).inc()

    def end(self, method: str, code: str, seconds: float) -> None:
        """A call has ended, `seconds` after it began."""
        self._handled.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def unknown(self) -> None:
        """Somebody called a method that is not there."""
        self._started.labels("other").inc()
        self._handled.labels("other", "UNIMPLEMENTED").inc()


class NoRpcMetrics:
    """The same where nobody asks for metrics."""

    def begin(self, method: str) -> None: ...

    def end(self, method: str, code: str, seconds: float) -> None: ...

    def unknown(self) -> None: ...


class ReloadMetrics:
    """Files that are read again while the server runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.good = Gauge(
            "unrolled_files_good",
            "1 while what is in use is what the files say, 0 while they are bad and the last"
            " good ones stay.",
            ["files"],
            registry=registry,
        )
        self._reloads = Counter(
            "unrolled_file_reloads",
            "Changes of files, by whether they could be used.",
            ["files", "result"],
            registry=registry,
        )
        # Without TLS there is no such series: nothing is about to expire.
        self._registry = registry
        self._expiry: Gauge | None = None

    def reloaded(self, files: str, *, good: bool) -> None:
        """Count a change of the files, for better or worse."""
        self.good.labels(files).set(good)
        self._reloads.labels(files, "good" if good else "bad").inc()

    def use_until(self, expiry: float) -> None:
        """The certificate in use is good until then, in seconds since the epoch."""
        if self._expiry is None:
            self._expiry = Gauge(
                "unrolled_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, in seconds since the epoch.",
                registry=self._registry,
            )
        self._expiry.set(expiry)

"""The metrics endpoint: /metrics for Prometheus, a hint for people at /, nothing elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

PATH = "/metrics"
_TEXT = [("Content-Type", "text/plain; charset=utf-8")]


class MetricsEndpoint:
    """An HTTP server in threads of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Listen on `port`, 0 for a free one. Raises OSError."""
        self._server = _listening(host, port, _application(registry))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics").start()

    def close(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()


def _application(registry: CollectorRegistry) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            # OpenMetrics would say nothing more, and takes twice the time to write.
            return metrics({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)
        known = environ["PATH_INFO"] == "/"
        start_response("200 OK" if known else "404 Not Found", _TEXT)
        return [f"Prometheus metrics of unrolled-server are at {PATH}\n".encode()]

    return answer


def _listening(host: str, port: int, application: WSGIApplication) -> WSGIServer:
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

    class Server(ThreadingWSGIServer):
        address_family = family

    return make_server(host, port, application, Server, _QuietHandler)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10
    """Seconds for which a connection may say nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Prometheus asks all the time: that is no event."""

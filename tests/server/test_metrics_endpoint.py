"""The metrics endpoint answers what it is for, and says where that is."""

from __future__ import annotations

import gzip
import os
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest
from support.calls import SECONDS, Stubs, connected, refused
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import CompleteRequest


def get(url: str, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, media type and body of an answer to a request for another path."""
    request = urllib.request.Request(url.removesuffix("/metrics") + path, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read().decode()


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=up"])
def test_metrics(server: RunningServer, path: str) -> None:
    status, kind, _ = get(server.metrics_url, path)
    assert (status, kind) == (200, "text/plain")


def test_prometheus_gets_the_format_that_is_fast_to_write(server: RunningServer) -> None:
    # What Prometheus 3 sends.
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4"
    headers = {"Accept": accept, "Accept-Encoding": "gzip"}
    request = urllib.request.Request(server.metrics_url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        assert answer.headers.get_content_type() == "text/plain"
        assert b"# TYPE unrolled_rpc_started_total counter" in gzip.decompress(answer.read())


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/metrics/", 404), ("/favicon.ico", 404), ("/metricsx", 404)],
)
def test_everything_else_says_where_they_are(server: RunningServer, path: str, status: int) -> None:
    got, _, body = get(server.metrics_url, path)
    assert got == status
    assert "/metrics" in body
    assert "unrolled_" not in body


def test_only_reading_is_answered(server: RunningServer) -> None:
    assert get(server.metrics_url, "/metrics", "POST")[0] == 405


def test_requests_for_metrics_are_no_events(repository: Repository) -> None:
    with running_server(repository.path, "--log-level", "debug") as running:
        get(running.metrics_url, "/metrics")
        get(running.metrics_url, "/nowhere")
        _, log = running.terminate()
    assert [line.split("event=")[1] for line in log.splitlines()] == ["draining", "stopped"]


def test_an_endpoint_at_an_address_of_ipv6(repository: Repository) -> None:
    with running_server(repository.path, "--host", "::1") as running:
        assert running.metrics_url.startswith("http://[::1]:")
        assert get(running.metrics_url, "/metrics")[0] == 200


def test_nothing_says_when_it_was_made(stubs: Stubs, metrics: Metrics) -> None:
    stubs.create("lstm")
    page = metrics.text()
    assert "unrolled_rpc_handled_total" in page
    assert "_created" not in page


def test_what_is_running(metrics: Metrics) -> None:
    facts = {"version": version("unrolled"), "onnxruntime": onnxruntime.__version__}
    assert metrics.value("unrolled_build_info", **facts) == 1


def listening(pid: int) -> int:
    """Sockets of a process that take connections (proc(5), net/tcp: state 0A is LISTEN)."""
    process = Path(f"/proc/{pid}")
    tables = [(process / "net" / name).read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    return sum(target(file) in sockets for file in (process / "fd").iterdir())


def target(file: Path) -> str:
    """What a descriptor leads to; nothing where it has been closed meanwhile."""
    with suppress(FileNotFoundError):
        return os.readlink(file)
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_metrics_that_are_off(repository: Repository, server: RunningServer) -> None:
    assert listening(server.process.pid) == 2
    with (
        running_server(repository.path, "--metrics-port", "off") as running,
        connected(running.address) as stubs,
    ):
        assert running.metrics_url == "off"
        assert listening(running.process.pid) == 1
        turn = CompleteRequest(model="lstm", prompt="a", max_tokens=5)
        assert len(stubs.completions.Complete(turn, timeout=SECONDS).token_ids) == 5
        assert refused(stubs.completions.Complete, CompleteRequest(model="x")).code == "NOT_FOUND"
        assert running.terminate()[0] == 0


def test_limits(repository: Repository) -> None:
    flags = ("--max-rows", "3", "--max-waiting", "5", "--max-sessions", "7")
    with running_server(repository.path, *flags) as running:
        value = Metrics(running.metrics_url).value
        assert value("unrolled_rows_active_limit") == 3
        assert value("unrolled_rows_waiting_limit") == 5
        assert value("unrolled_sessions_limit") == 7

"""unrolled health: the standard health service, as an exit status."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest
from client.command import run
from client.fake_service import FakeService
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from support.server import RunningServer


@dataclass(frozen=True)
class Checked:
    """gRPC's own health service, alone on a server."""

    target: str
    health: HealthServicer


@pytest.fixture
def checked() -> Iterator[Checked]:
    health = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_HealthServicer_to_server(health, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield Checked(target, health)
    finally:
        server.stop(None).wait()


def test_a_server_that_serves(checked: Checked) -> None:
    checked.health.set("", HealthCheckResponse.SERVING)
    done = run("--server", checked.target, "health")

    assert (done.stdout, done.stderr, done.returncode) == (f"{checked.target} is serving\n", "", 0)


@pytest.mark.parametrize(
    ("status", "said"), [("NOT_SERVING", "not serving"), ("UNKNOWN", "unknown"), (9, "9")]
)
def test_any_other_answer_is_1(checked: Checked, status: str | int, said: str) -> None:
    number = HealthCheckResponse.ServingStatus.Value(status) if isinstance(status, str) else status
    checked.health.set("", number)
    done = run("--server", checked.target, "health")

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == f"unrolled: {checked.target} is {said}\n"


def test_one_service_of_several(checked: Checked) -> None:
    checked.health.set("", HealthCheckResponse.SERVING)
    checked.health.set("a.Good", HealthCheckResponse.SERVING)
    checked.health.set("a.Bad", HealthCheckResponse.NOT_SERVING)

    def ask(service: str) -> tuple[int, str, str]:
        done = run("health", "--server", checked.target, "--service", service)
        return done.returncode, done.stdout, done.stderr

    assert ask("a.Good") == (0, f"a.Good at {checked.target} is serving\n", "")
    assert ask("a.Bad") == (1, "", f"unrolled: a.Bad at {checked.target} is not serving\n")
    assert ask("a.None") == (1, "", f"unrolled: {checked.target} knows no service a.None\n")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = f"127.0.0.1:{closed.getsockname()[1]}"
    done = run("--server", target, "health")

    assert (done.stdout, done.returncode) == ("", 1)
    assert f"is a server running at {target}?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_silence_ends_with_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        done = run("--server", target, "health", "--timeout", "50ms")

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == f"unrolled: {target} did not answer in 0.05 s\n"


def test_a_server_without_a_health_service(fake: FakeService) -> None:
    done = run("--server", fake.target, "health")

    assert (done.stdout, done.returncode) == ("", 1)
    assert "(UNIMPLEMENTED)" in done.stderr


@pytest.mark.parametrize("timeout", ["0", "-1s", "soon", "1h", "inf", "nan", "\u0661"])
def test_wrong_usage_is_2(timeout: str) -> None:
    assert run("health", f"--timeout={timeout}").returncode == 2


def test_unrolled_server_serves(server: RunningServer) -> None:
    for service in ((), ("--service", "unrolled.v1.CompletionService")):
        assert run("--server", server.address, "health", *service).returncode == 0

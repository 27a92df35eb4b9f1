"""Several servers behind a real Envoy, with the configuration of deploy/."""

from __future__ import annotations

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
import unrolled
import yaml
from support.calls import LONG, SECONDS, unread_turn
from support.envoy import DEPLOYED, Envoy, envoy_program, running_envoy
from support.metrics import Metrics, eventually
from support.models import Repository
from support.server import RunningServer, running_server, wait_for_event
from unrolled.routing import SESSION_HEADER
from unrolled.v1.completion_pb2 import CompleteEvent, CompleteRequest
from unrolled_server.errors import Draining
from unrolled_server.interceptor import REASON
from unrolled_server.server import OPTIONS

CONFIG: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())
REPLICAS: dict[str, Any] = CONFIG["static_resources"]["clusters"][0]
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
COMPLETE = "unrolled.v1.CompletionService/Complete"
STREAM = "unrolled.v1.CompletionService/StreamComplete"
ONCE = (("grpc.enable_retries", 0),)
"""A client that leaves it to Envoy to try again."""


@dataclass(frozen=True, eq=False)
class Replica:
    server: RunningServer
    metrics: Metrics

    @property
    def asked(self) -> float:
        """Sessions that this one was asked for."""
        method = "unrolled.v1.SessionService/GetSession"
        return self.metrics.value("unrolled_rpc_handled_total", method=method, code="NOT_FOUND")


@contextmanager
def running_replicas(repository: Repository, number: int) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running_server(repository.path, "--store", "memory"))
            for _ in range(number)
        ]
        yield [Replica(each, Metrics(each.metrics_url)) for each in servers]


def addresses(replicas: Sequence[Replica]) -> list[str]:
    return [each.server.address for each in replicas]


def asked_for(client: unrolled.Client, name: str, replicas: Sequence[Replica]) -> Replica:
    """The one replica that is asked for this session, which is nowhere, again and again."""
    before = {each: each.asked for each in replicas}
    for _ in range(4):
        with pytest.raises(unrolled.NotFound):
            client.session(name)

    def counted() -> dict[Replica, float]:
        return {each: each.asked - past for each, past in before.items()}

    # A server counts a call once it has answered it.
    eventually(lambda: sum(counted().values()) == 4, "four calls counted")
    (owner,) = [each for each, number in counted().items() if number]
    return owner


def owners(client: unrolled.Client, replicas: Sequence[Replica]) -> dict[str, Replica]:
    """Sessions, so many that every replica has two, and whose they are."""
    found: dict[str, Replica] = {}
    while any(list(found.values()).count(each) < 2 for each in replicas):
        name = f"sessions/{len(found):032x}"
        found[name] = asked_for(client, name, replicas)
    return found


def test_envoy_takes_the_configuration_without_a_warning() -> None:
    command = [envoy_program(), "--mode", "validate", "--config-path", str(DEPLOYED)]
    command += ["--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [f"configuration '{DEPLOYED}' OK"]
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_session_stays_with_its_replica_until_that_leaves(repository: Repository) -> None:
    with (
        running_replicas(repository, 3) as replicas,
        running_envoy(addresses(replicas)) as envoy,
        unrolled.Client(envoy.address, options=ONCE) as client,
    ):
        before = owners(client, replicas)
        leaving, *rest = replicas
        assert leaving.server.terminate()[0] == 0
        envoy.wait_for_healthy(2)
        # asked_for fails where several are asked, or none.
        after = {name: asked_for(client, name, rest) for name in before}
        assert leaving in before.values()
        assert set(after.values()) <= set(rest)


@contextmanager
def one_of_two_ends(repository: Repository) -> Iterator[tuple[Envoy, Replica, grpc.Call]]:
    """Two servers, one of them told to end while it has a turn, which Envoy is not yet aware of.

    Envoy, the other server, and the turn.
    """
    with (
        running_replicas(repository, 2) as replicas,
        running_envoy(addresses(replicas), checks_every="3600s") as envoy,
        unread_turn(envoy.address, CompleteRequest(model="lstm", prompt="a")) as call,
    ):
        # Not by its row, which leaves the batch once its reader is behind.
        (ending,) = [
            each
            for each in replicas
            if each.metrics.value("unrolled_rpc_started_total", method=STREAM)
        ]
        (other,) = [each for each in replicas if each is not ending]
        ending.server.process.terminate()
        wait_for_event(ending.server, "draining")
        yield envoy, other, call


def test_what_a_server_that_ends_refuses_goes_to_another(repository: Repository) -> None:
    with (
        one_of_two_ends(repository) as (envoy, other, _),
        unrolled.Client(envoy.address, options=ONCE) as client,
    ):
        # No request_id: a client would not dare to repeat these.
        for _ in range(20):
            client.complete("a", model="lstm", max_tokens=1)
        retried = envoy.count("upstream_rq_retry")
        assert retried
        assert envoy.count("upstream_rq_retry_success") == retried
        assert other.metrics.value("unrolled_rpc_handled_total", method=COMPLETE, code="OK") == 20


def test_turns_that_a_server_has_end_whole_when_it_ends(repository: Repository) -> None:
    with one_of_two_ends(repository) as (_, _, call):
        events = list(cast("Iterator[CompleteEvent]", call))
    assert events[-1].outcome.usage.completion_tokens == LONG


def test_a_server_that_nobody_reaches_fails_no_call(repository: Repository) -> None:
    with (
        running_replicas(repository, 2) as replicas,
        running_envoy(addresses(replicas), checks_every="3600s") as envoy,
        unrolled.Client(envoy.address, options=ONCE) as client,
    ):
        replicas[0].server.process.kill()
        replicas[0].server.process.wait()

        def is_ejected() -> bool:
            client.complete("a", model="lstm", max_tokens=1)
            return envoy.count("outlier_detection.ejections_enforced_total") > 0

        eventually(is_ejected, "the server that is gone was ejected")


def test_a_stream_whose_server_dies_is_unavailable(repository: Repository) -> None:
    with (
        running_replicas(repository, 1) as (replica,),
        running_envoy([replica.server.address]) as envoy,
        unrolled.Client(envoy.address) as client,
    ):
        stream = client.stream("a", model="lstm", max_tokens=65_536)
        assert next(stream).text
        replica.server.process.kill()
        with pytest.raises(unrolled.Unavailable):
            list(stream)


def test_what_is_answered_costs_no_server_its_place(repository: Repository) -> None:
    with (
        running_replicas(repository, 1) as (replica,),
        running_envoy([replica.server.address], checks_every="3600s") as envoy,
        grpc.insecure_channel(envoy.address, options=ONCE) as channel,
    ):
        unknown: Any = channel.unary_unary("/unrolled.v1.CompletionService/NoSuchMethod")
        for _ in range(20):
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                unknown(b"", timeout=SECONDS)
        assert envoy.count("membership_healthy") == 1


def test_prometheus_learns_of_envoy_and_of_nothing_else(repository: Repository) -> None:
    with (
        running_replicas(repository, 1) as (replica,),
        running_envoy(addresses([replica])) as envoy,
    ):
        assert Metrics(f"http://{envoy.observation}/metrics").value(
            "envoy_cluster_membership_healthy", envoy_cluster_name="replicas"
        )
        with urllib.request.urlopen(f"http://{envoy.observation}/ready", timeout=SECONDS) as ready:
            assert ready.status == 200
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{envoy.observation}/config_dump", timeout=SECONDS)


def test_envoy_that_takes_no_more_connections_says_that_it_is_ready(
    repository: Repository,
) -> None:
    with (
        running_replicas(repository, 1) as replicas,
        running_envoy(addresses(replicas), connections=1) as envoy,
        connected_to(envoy),
    ):
        eventually(lambda: envoy.downstream("cx_active") == 1, "one connection")
        with connected_to(envoy) as refused:
            assert not received(refused)
        url = f"http://{envoy.observation}/ready"
        with urllib.request.urlopen(url, timeout=SECONDS) as ready:
            assert ready.status == 200


def connected_to(envoy: Envoy) -> socket.socket:
    host, _, port = envoy.address.rpartition(":")
    return socket.create_connection((host, int(port)), SECONDS)


def received(connection: socket.socket) -> bytes:
    """What comes before it is closed."""
    with suppress(ConnectionResetError):
        return connection.recv(1)
    return b""


def test_pings_are_as_rare_as_servers_want_them() -> None:
    options = dict(OPTIONS)
    http2 = REPLICAS["typed_extension_protocol_options"][HTTP]["explicit_http_config"]
    interval = http2["http2_protocol_options"]["connection_keepalive"]["interval"]
    accepted = int(options["grpc.http2.min_ping_interval_without_data_ms"])
    assert 1000 * int(interval.removesuffix("s")) > accepted
    assert options["grpc.keepalive_permit_without_calls"] == 1


def test_client_server_and_envoy_mean_the_same_headers() -> None:
    (proxy,) = CONFIG["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    (host,) = proxy["typed_config"]["route_config"]["virtual_hosts"]
    (route,) = [each["route"] for each in host["routes"]]
    assert route["hash_policy"] == [{"header": {"header_name": SESSION_HEADER}}]
    (header,) = route["retry_policy"]["retriable_headers"]
    assert header == {"name": REASON, "string_match": {"exact": Draining.reason}}

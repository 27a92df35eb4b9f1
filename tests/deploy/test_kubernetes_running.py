"""Real servers and a real Envoy, started and ended as their Pods say."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
import unrolled
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.calls import SECONDS, unread_turn
from support.envoy import DEPLOYED, Envoy, running_envoy
from support.kustomize import (
    Object,
    built,
    container_of,
    image_settings,
    mounted,
    mounts_of,
    pod_of,
    pod_settings,
    probes_of,
    secrets_of,
)
from support.metrics import Metrics, eventually
from support.models import Repository
from support.server import RunningServer, running_server, started
from unrolled.v1.completion_pb2 import CompleteRequest

NAME = "unrolled"
"""What clients call the server, and the probes."""


class SecretVolume:
    """A Secret as a node mounts it: files are links by way of `..data`, which moves at a change."""

    def __init__(self, folder: Path, mode: int) -> None:
        self.folder = folder
        self.mode = mode
        self._changes = 0

    def write(self, content: dict[str, bytes]) -> None:
        self._changes += 1
        fresh = self.folder / f"..{self._changes}"
        fresh.mkdir(parents=True)
        for name, text in content.items():
            (fresh / name).write_bytes(text)
            (fresh / name).chmod(self.mode)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        data = self.folder / "..data"
        old = data.resolve() if data.is_symlink() else None
        (self.folder / "..data_tmp").symlink_to(fresh.name)
        (self.folder / "..data_tmp").rename(data)
        if old is not None:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


@dataclass(frozen=True)
class Keys:
    """What is in all Secrets of a server."""

    issued: trustme.LeafCert
    api_key: str
    seal_key: str

    def content(self) -> dict[str, dict[str, bytes]]:
        """Files by the names of Secrets."""
        digest = hashlib.sha256(self.api_key.encode()).hexdigest()
        sealing = base64.b64encode(self.seal_key.encode() * 32).decode()
        return {
            "unrolled-tls": {
                "tls.crt": b"".join(each.bytes() for each in self.issued.cert_chain_pems),
                "tls.key": self.issued.private_key_pem.bytes(),
            },
            "unrolled-api-keys": {"api.keys": f"alice {digest}\n".encode()},
            "unrolled-seal-keys": {"seal.keys": f"{self.seal_key} {sealing}\n".encode()},
        }


class Machine:
    """The folders of a Pod, somewhere else."""

    def __init__(self, workload: Object, folder: Path, models: Path) -> None:
        self.workload = workload
        self._folder = folder
        self._models = models
        self.secrets = {
            each["secretName"]: SecretVolume(
                self.path(mounted(workload, each)), each["defaultMode"]
            )
            for each in secrets_of(workload)
        }

    def path(self, name: str) -> Path:
        return self._folder / name.lstrip("/")

    def put(self, keys: Keys) -> None:
        """Let the Secrets be these."""
        content = keys.content()
        for name, volume in self.secrets.items():
            volume.write(content[name])

    def copy_models(self) -> None:
        """What the Pod does before its server starts."""
        (copier,) = pod_of(self.workload)["initContainers"]
        *program, source, _ = copier["command"]
        target = self.path(mounts_of(self.workload)["models"]["mountPath"])
        target.mkdir(parents=True, exist_ok=True)
        own = source.replace("/models", str(self._models))
        subprocess.run([*program, own, target], check=True, timeout=60)

    @contextmanager
    def server(self) -> Iterator[RunningServer]:
        """A server with the Pod's settings, on free ports of this machine."""
        self.copy_models()
        for mount in container_of(self.workload)["volumeMounts"]:
            self.path(mount["mountPath"]).mkdir(parents=True, exist_ok=True)
        settings = image_settings() | pod_settings(self.workload)
        environment = {
            name: str(self.path(value)) if value.startswith("/") else value
            for name, value in settings.items()
        }
        # Tests keep sessions in memory unless they say where.
        environment.setdefault("UNROLLED_STORE", "")
        command = [sys.executable, "-m", "unrolled_server", "--host", "127.0.0.1"]
        command += ["--port", "0", "--metrics-port", "0"]
        with started(command, environment=environment) as running:
            yield running


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def base(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(built("base").server(), tmp_path_factory.mktemp("base"), repository.path)


@pytest.fixture
def secured(repository: Repository, ca: trustme.CA, tmp_path: Path) -> Machine:
    machine = Machine(built("secured").server(), tmp_path, repository.path)
    machine.put(Keys(ca.issue_cert(NAME), "first", "a"))
    return machine


def health(address: str, service: str) -> int:
    """What a server says of one of its services."""
    with grpc.insecure_channel(address) as channel:
        # Its published types know no methods.
        stub: Any = HealthStub(channel)
        answer: HealthCheckResponse = stub.Check(HealthCheckRequest(service=service), SECONDS)
        return answer.status


def test_a_pod_that_starts_again_keeps_models_and_sessions(base: Machine) -> None:
    with base.server() as server, unrolled.Client(server.address) as client:
        name = client.create_session("lstm", seed=1).name
        assert server.terminate()[0] == 0
    # The same Pod on the same node: what was copied lies there already.
    with base.server() as server, unrolled.Client(server.address) as client:
        assert client.session(name).model == "lstm/1"


def test_probes_are_answered(base: Machine) -> None:
    asked = [probe["grpc"]["service"] for _, probe in probes_of(base.workload)]
    assert asked == ["liveness", "liveness", ""]
    with base.server() as server:
        for service in asked:
            assert health(server.address, service) == HealthCheckResponse.SERVING


def test_a_server_that_cannot_serve_is_not_started_again_and_again(tmp_path: Path) -> None:
    probes = {kind: probe["grpc"]["service"] for kind, probe in probes_of(built("base").server())}
    with running_server(tmp_path) as server:
        said = {kind: health(server.address, service) for kind, service in probes.items()}
    assert said == {
        "startupProbe": HealthCheckResponse.SERVING,
        "livenessProbe": HealthCheckResponse.SERVING,
        "readinessProbe": HealthCheckResponse.NOT_SERVING,
    }


def test_with_tls_probes_are_commands_that_succeed(secured: Machine) -> None:
    with secured.server() as server:
        for kind, probe in probes_of(secured.workload):
            done = ask(secured, server, probe)
            assert done.returncode == 0, done.stderr
            assert ("liveness" in done.stdout) == (kind != "readinessProbe")
    for _, probe in probes_of(secured.workload):
        assert ask(secured, server, probe).returncode == 1


def ask(machine: Machine, server: RunningServer, probe: Object) -> subprocess.CompletedProcess[str]:
    """Run the command of a probe."""
    name, *arguments = probe["exec"]["command"]
    own = []
    for each in arguments:
        flag, equals, value = each.partition("=")
        if flag == "--server":
            value = server.address
        own.append(f"{flag}{equals}{machine.path(value) if value.startswith('/') else value}")
    command = [str(Path(sys.executable).with_name(name)), *own]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def test_secrets_are_followed_when_they_change(secured: Machine, ca: trustme.CA) -> None:
    fresh = Keys(ca.issue_cert(NAME), "second", "b")
    with secured.server() as server:
        tls = unrolled.Tls(ca=secured.path("/etc/unrolled/tls/tls.crt"), server_name=NAME)
        with unrolled.Client(server.address, tls=tls, api_key="first") as client:
            # Another certificate is for connections from now on.
            client.create_session("lstm").export()
            secured.put(fresh)
            metrics = Metrics(server.metrics_url)
            for files in ("tls", "api_keys", "seal_keys"):
                metrics.wait_for("unrolled_file_reloads_total", 1, files=files, result="good")
            with pytest.raises(unrolled.Unauthenticated):
                client.create_session("lstm")
        host, _, port = server.address.rpartition(":")
        shown = ssl.get_server_certificate((host, int(port)))
        expected = fresh.issued.cert_chain_pems[0].bytes().decode()
        assert shown.split() == expected.split()
        tls = unrolled.Tls(ca=secured.path("/etc/unrolled/tls/tls.crt"), server_name=NAME)
        with unrolled.Client(server.address, tls=tls, api_key="second") as client:
            snapshot = client.create_session("lstm").export()
        # Its header has the name of the key.
        assert b"\x01b" in snapshot[:32]
        assert server.process.poll() is None


def test_keys_with_the_modes_that_kubernetes_gives_by_default_are_refused(
    secured: Machine, ca: trustme.CA
) -> None:
    secured.secrets["unrolled-seal-keys"].mode = 0o644
    secured.put(Keys(ca.issue_cert(NAME), "first", "a"))
    with pytest.raises(RuntimeError, match="other users may read"), secured.server():
        pass


class Relay(socketserver.ThreadingTCPServer):
    """Envoy's admin interface at a port of this machine."""

    daemon_threads = True

    def __init__(self, envoy: Envoy) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.envoy = envoy
        self.asked: list[bytes] = []
        """The first line of each request that was answered."""


class _Relayed(socketserver.StreamRequestHandler):
    server: Relay

    def handle(self) -> None:
        lines: list[bytes] = []
        while not lines or lines[-1].strip():
            lines.append(self.rfile.readline())
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.server.envoy.admin))
            admin.sendall(b"".join(lines))
            while data := admin.recv(65536):
                self.wfile.write(data)
        self.server.asked.append(lines[0].strip())


@contextmanager
def relayed(envoy: Envoy) -> Iterator[Relay]:
    with Relay(envoy) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()


def drain_options() -> list[str]:
    """Of the arguments that Envoy has in its Pod, those that a test does not set itself."""
    args = container_of(built("replicas").one("Deployment", "envoy"))["args"]
    assert args[:5] == [
        "--config-path",
        f"/etc/envoy/{DEPLOYED.name}",
        "--disable-hot-restart",
        "--concurrency",
        "2",
    ]
    return list(args[5:])


def test_envoy_ends_once_its_calls_have(repository: Repository) -> None:
    once = (("grpc.enable_retries", 0),)
    with (
        running_server(repository.path, "--store", "memory") as server,
        running_envoy([server.address], options=drain_options()) as envoy,
        relayed(envoy) as relay,
        unrolled.Client(envoy.address, options=once) as client,
    ):
        client.complete("a", model="lstm", max_tokens=1)
        with unread_turn(envoy.address, CompleteRequest(model="lstm", prompt="a")):
            command = shlex.split(
                f"bash {DEPLOYED.with_name('drain.sh')} {relay.server_address[1]} 0"
            )
            drain = subprocess.Popen(command, env={**os.environ, "LC_ALL": "C"})
            try:
                eventually(lambda: len(relay.asked) > 3, "the script waits for the turn")
                assert drain.poll() is None
                assert b"POST /drain_listeners?graceful" in relay.asked[0]
                # Whoever still comes is served, and told to connect anew.
                before = envoy.downstream("cx_drain_close")
                client.complete("a", model="lstm", max_tokens=1)
                assert envoy.downstream("cx_drain_close") == before + 1
            except BaseException:
                drain.kill()
                raise
        assert drain.wait(SECONDS) == 0

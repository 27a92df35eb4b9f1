"""What installs what: pins, lower bounds, and what an import pulls in."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HERE = {each.metadata["Name"] for each in distributions()}
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, Requirement]:
    """What a file of requirements pins, with the files that it names."""
    pinned: dict[str, Requirement] = {}
    for line in (REQUIREMENTS / name).read_text().splitlines():
        if line.startswith("-r "):
            pinned |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            pinned[canonicalize_name(requirement.name)] = requirement
    return pinned


def needed(distribution: str) -> set[str]:
    """Names that an installed distribution requires on this machine, without its extras."""
    wanted = [Requirement(line) for line in requires(distribution) or []]
    applicable = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    return {canonicalize_name(requirement.name) for requirement in applicable}


@pytest.mark.parametrize("name", [file.name for file in REQUIREMENTS.glob("*.txt")])
def test_every_requirement_is_one_exact_version(name: str) -> None:
    exact = re.compile(r"==[^*,]+$")
    assert [str(pin) for pin in pins(name).values() if not exact.match(str(pin.specifier))] == []


@pytest.mark.parametrize(
    "declared",
    [
        *PROJECT["dependencies"],
        *(line for extra in ("server", "export", "top", "tracing") for line in EXTRAS[extra]),
    ],
)
def test_what_the_project_needs_is_pinned_within_its_bounds(declared: str) -> None:
    wanted = Requirement(declared)
    (version,) = pins("serve.txt")[canonicalize_name(wanted.name)].specifier
    assert wanted.specifier.contains(version.version)


@pytest.mark.parametrize("name", ["server.txt", "serve.txt", "test.txt"])
def test_what_a_pinned_package_needs_is_pinned_too(name: str) -> None:
    pinned = pins(name)
    here = [each for each, pin in pinned.items() if pin.marker is None or pin.marker.evaluate()]
    assert {
        each: needed(each) - pinned.keys() for each in here if needed(each) - pinned.keys()
    } == {}


@pytest.mark.parametrize(("image", "runtime"), [("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")])
def test_an_image_has_what_the_server_needs_and_the_same_onnxruntime(
    image: str, runtime: str
) -> None:
    pinned, here = pins(f"{image}.txt"), pins("serve.txt")
    extras = ("server", "tokenizers", "top", "tracing")
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    names = {canonicalize_name(Requirement(line).name) for line in wanted}
    other = {"onnxruntime", "onnxruntime-gpu"} - {runtime}
    assert names - pinned.keys() == other
    assert pinned[runtime].specifier == here[runtime].specifier


@pytest.mark.skipif("onnxruntime-gpu" not in HERE, reason="there is no such onnxruntime here")
def test_an_image_for_cuda_has_the_libraries_that_onnxruntime_names() -> None:
    extras = [
        Requirement(line)
        for line in requires("onnxruntime-gpu") or []
        if "extra ==" in line and ("cuda" in line or "cudnn" in line)
    ]
    pinned = pins("gpu.txt")
    assert {extra.name for extra in extras} >= {"nvidia-cuda-runtime", "nvidia-cudnn-cu13"}
    for extra in extras:
        (version,) = pinned[canonicalize_name(extra.name)].specifier
        assert extra.specifier.contains(version.version)


def test_serving_installs_no_torch() -> None:
    assert "torch" not in pins("serve.txt")


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("unrolled", {"numpy", "onnxruntime", "onnx", "torch", "unrolled_server"}),
        ("unrolled.__main__", {"numpy", "onnxruntime", "onnx", "torch", "unrolled_server"}),
        ("unrolled_server.__main__", {"torch", "onnx", "unrolled_export"}),
        ("unrolled_export.__main__", {"torch", "unrolled_server"}),
    ],
)
def test_an_import_loads_nothing_heavy(module: str, foreign: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert module.partition(".")[0] in loaded
    assert foreign.isdisjoint(loaded)


@pytest.mark.parametrize("folder", ["proto", "service", "export", "deploy", "tests"])
def test_top_level_folders_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()

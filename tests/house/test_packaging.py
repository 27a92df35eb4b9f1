"""What installs what: pins, lower bounds, and what an import pulls in."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(*names: str) -> dict[str, Requirement]:
    lines = [line for name in names for line in (REQUIREMENTS / name).read_text().splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def needed(distribution: str) -> set[str]:
    """Names that an installed distribution requires on this machine, without its extras."""
    wanted = [Requirement(line) for line in requires(distribution) or []]
    applicable = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    return {canonicalize_name(requirement.name) for requirement in applicable}


@pytest.mark.parametrize("name", ["serve.txt", "test.txt", "stubs.txt"])
def test_every_requirement_is_one_exact_version(name: str) -> None:
    exact = re.compile(r"==[^*,]+$")
    assert [str(pin) for pin in pins(name).values() if not exact.match(str(pin.specifier))] == []


@pytest.mark.parametrize(
    "declared",
    [*PROJECT["dependencies"], *EXTRAS["server"], *EXTRAS["export"]],
)
def test_what_the_project_needs_is_pinned_within_its_bounds(declared: str) -> None:
    wanted = Requirement(declared)
    (version,) = pins("serve.txt")[canonicalize_name(wanted.name)].specifier
    assert wanted.specifier.contains(version.version)


@pytest.mark.parametrize("names", [["serve.txt"], ["serve.txt", "test.txt"]])
def test_what_a_pinned_package_needs_is_pinned_too(names: list[str]) -> None:
    pinned = pins(*names)
    here = [name for name, pin in pinned.items() if pin.marker is None or pin.marker.evaluate()]
    assert {
        name: needed(name) - pinned.keys() for name in here if needed(name) - pinned.keys()
    } == {}


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

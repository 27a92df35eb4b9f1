"""What `make bench-cuda` does that needs no device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from unrolled_server.device_runner import DeviceRunner
from unrolled_server.types import MAX_STEPS, Floats, Tokens

from bench.cuda import __main__ as bench_cuda
from bench.cuda import checks, served, timings
from bench.cuda.__main__ import Bench
from bench.cuda.checks import TOLERANCES, differing_bits, error_fp16, error_fp32
from bench.cuda.models import SMALL, SMALL_HALF, SUBJECTS, Subject, prepare
from bench.cuda.timings import STEPS, Rates, engine_rates, tokens_per_second


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the checks; the two small ones and one with fused layers."""
    folder = tmp_path_factory.mktemp("models")
    prepare(folder, (SMALL, SMALL_HALF, replace(SMALL, fused=True)))
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_device_it_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.cuda", "--output", str(tmp_path)]
    folder = Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "no CUDA device" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_folders_and_steps_are_those_of_a_runner() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)
    assert max(STEPS) <= MAX_STEPS


def test_the_checks_pass_for_what_they_are_made_of(models: Path) -> None:
    assert error_fp32(models, "cpu") < TOLERANCES["fp32"]
    assert error_fp16(models, "cpu") < TOLERANCES["fp16"]
    for subject in (SMALL, SMALL_HALF):
        differing, across = differing_bits(subject, models, "cpu")
        assert differing == 0
        assert max(across.values()) < TOLERANCES["fp16"]


def test_the_checks_fail_for_other_weights(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SMALL", replace(SMALL, seed=2))
    monkeypatch.setattr(checks, "SMALL_HALF", replace(SMALL_HALF, seed=2))
    assert error_fp32(models, "cpu") > TOLERANCES["fp32"]
    assert error_fp16(models, "cpu") > TOLERANCES["fp16"]


def told(subject: Subject, models: Path, steps: int) -> tuple[DeviceRunner, np.ndarray]:
    """A runner that was told as many tokens, and their log-probabilities."""
    runner = subject.runner(models, 2, "cpu")
    for row in range(2):
        runner.load(row, None)
    runner.told(2, steps)[...] = np.arange(2 * steps).reshape(steps, 2)
    return runner, runner.run(2, steps)[1]


def test_both_candidates_compute_the_same(models: Path) -> None:
    (products, expected), (fused, found) = (
        told(subject, models, 12) for subject in (SMALL, replace(SMALL, fused=True))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fused.save(1), products.save(1), rtol=0, atol=1e-5)


def test_a_check_that_ends_with_an_error_has_not_passed_and_leaves_the_others(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("CUDA failure 901")

    monkeypatch.setattr(checks, "error_fp16", broken)
    monkeypatch.setattr(checks, "LARGE", SMALL)
    monkeypatch.setattr(checks, "LARGE_SIZES", (4, 16))
    found = {check.name: check for check in checks.checks(models, "cpu")}
    assert [name for name, check in found.items() if not check.passed] == ["fp16"]
    assert found["fp16"].detail == {"error": "RuntimeError: CUDA failure 901"}
    assert {"fp32", f"bits_{SMALL_HALF.name}"} < found.keys()


def test_runs_and_turns_are_counted(models: Path) -> None:
    assert tokens_per_second(SMALL.runner(models, 3, "cpu"), 3, 4, 0.01) > 0
    rates = engine_rates(SMALL, models, 4, "cpu", 0.05)
    assert not rates.failed
    assert len(rates.found) == len(timings.MESSAGES) * len(timings.LANES)
    assert min(rates.found.values()) > 0


@pytest.mark.parametrize("asked", [timings.plain, timings.filtered, timings.distributions])
def test_settings_that_fail_leave_the_others(
    models: Path, monkeypatch: pytest.MonkeyPatch, asked: Callable[[DeviceRunner], None]
) -> None:
    runs: list[tuple[bool, bool]] = []
    run = DeviceRunner.run

    def failing(runner: DeviceRunner, rows: int, steps: int) -> tuple[Tokens, Floats]:
        if runner._captures and steps == 4:
            raise RuntimeError("CUDA failure 901")
        runs.append((bool(runner.filtered), bool(runner.wants_logprobs)))
        return run(runner, rows, steps)

    monkeypatch.setattr(DeviceRunner, "run", failing)
    rates = timings.sweep(SMALL, models, 2, "cpu", 0.01, asked, (1, 4))
    assert rates.failed == {"K 4, CUDA graphs": "RuntimeError: CUDA failure 901"}
    assert set(rates.found) == {
        "K 1, CUDA graphs", "K 1, launched node by node", "K 4, launched node by node"
    }  # fmt: skip
    assert set(runs) == {(asked is timings.filtered, asked is timings.distributions)}


def test_what_was_measured_is_kept_where_some_settings_fail_and_limits_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(*_: object) -> Rates:
        made = Rates()
        made.found["K 1, launched node by node"] = 5000.0
        made.failed["K 1, CUDA graphs"] = "RuntimeError: CUDA failure 901"
        return made

    def broken() -> dict[str, float]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(timings, "limits", broken)
    monkeypatch.setattr(timings, "sweep", rates)
    monkeypatch.setattr(timings, "engine_rates", rates)
    monkeypatch.setattr(bench_cuda, "checks", lambda *_: iter(()))
    monkeypatch.setattr(served, "missing", lambda: ["grpc"])
    assert Bench(tmp_path, tmp_path / "models", 0.01).run() == 1
    lines = map(json.loads, (tmp_path / "latest.jsonl").read_text().splitlines())
    figures = {line["figure"]: line for line in lines}
    step = figures["cuda_step_1"]
    assert step["value"] == 200
    assert step["detail"]["failed"] == {"K 1, CUDA graphs": "RuntimeError: CUDA failure 901"}
    assert {"cuda_runner_filtered_64", "cuda_runner_distributions_4096"} < figures.keys()
    assert figures["cuda_engine_tokens_4096"]["value"] == 5000
    # cuDNN's layers last: what they may do to the device is then nobody else's matter.
    assert list(figures)[-2:] == ["cuda_fused_over_products_1", "cuda_fused_over_products_4096"]


def test_serving_needs_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    before = served.missing()

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(served, "version", version)
    assert served.missing() == [*before, "unrolled (pip install --no-deps .)"]


def test_a_server_finds_the_libraries_that_the_bench_has_loaded() -> None:
    lines = [
        "7f00-7f01 r-xp 00000000 08:01 11    /opt/py 3/nvidia/cu13/lib/libcublasLt.so.13",
        "7f01-7f02 r--p 00001000 08:01 12    /opt/py 3/nvidia/cu13/lib/libcudart.so.13",
        "7f02-7f03 r--p 00000000 08:01 13    /opt/py 3/nvidia/cudnn/lib/libcudnn_ops.so.9",
        "7f03-7f04 r--p 00000000 08:01 14    /usr/lib/libcuda.so.580.1",
        "7f04-7f05 rw-p 00000000 00:00 0",
        "7f05-7f06 rw-p 00000000 00:00 0     [heap]",
    ]
    folders = "/opt/py 3/nvidia/cu13/lib:/opt/py 3/nvidia/cudnn/lib"
    assert served.library_path("\n".join(lines), "/a::/opt/py 3/nvidia/cu13/lib") == f"{folders}:/a"
    assert served.library_path("", "") == ""

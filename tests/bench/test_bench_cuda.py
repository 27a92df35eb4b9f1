"""What `make bench-cuda` does that needs no device."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from unrolled_server.device_runner import DeviceRunner
from unrolled_server.types import MAX_STEPS

from bench.cuda import checks
from bench.cuda.checks import TOLERANCES, differing_bits, error_fp16, error_fp32
from bench.cuda.models import SMALL, SMALL_HALF, SUBJECTS, Subject, prepare
from bench.cuda.timings import STEPS, engine_tokens_per_second, tokens_per_second


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


def test_runs_and_turns_are_counted(models: Path) -> None:
    assert tokens_per_second(SMALL.runner(models, 3, "cpu"), 3, 4, 0.01) > 0
    assert engine_tokens_per_second(SMALL, models, 3, "cpu", 0.05) > 0

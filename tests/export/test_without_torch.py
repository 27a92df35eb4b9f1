"""Converting where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import letters, read_manifest, save, state_dict

CONVERT = """
import sys
sys.modules["torch"] = None
from unrolled_export.__main__ import main
sys.exit(main(["convert", *sys.argv[1:]]))
"""


def convert(arguments: list[str], output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", CONVERT, *arguments, "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_safetensors_are_checked_against_numpy(cell: str, tmp_path: Path) -> None:
    done = convert(save(tmp_path, state_dict(cell, layers=2), letters(5)), tmp_path / "models")
    assert (done.returncode, done.stderr) == (0, "")
    parity = read_manifest(tmp_path / "models" / "model" / "1").parity
    assert parity.reference.startswith("numpy ")
    assert parity.max_abs_logprob_error < parity.tolerance


def test_files_of_torch_say_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"head.weight": torch.zeros(2, 2)}, path)
    done = convert([str(path)], tmp_path / "models")
    assert done.returncode == 1
    assert done.stderr == (
        f"unrolled-export: {path}: reading PyTorch files needs torch: pip install '.[train]'\n"
    )

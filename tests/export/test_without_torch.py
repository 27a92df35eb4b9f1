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


@pytest.mark.parametrize("archive", [True, False])
def test_files_of_torch_need_no_torch(archive: bool, tmp_path: Path) -> None:
    path, arguments = tmp_path / "model.pt", save(tmp_path, state_dict("gru"), letters(5))
    content = {name: torch.tensor(array) for name, array in state_dict("gru").items()}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    done = convert([str(path), *arguments[1:]], tmp_path / "models")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_manifest(tmp_path / "models" / "model" / "1").parity.steps > 0

"""Tokens a second through gRPC, of a server process on the device."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from bench.cuda.models import Subject

NEEDED = ("grpc", "grpc_health", "grpc_reflection", "google.rpc", "prometheus_client", "onnx",
          "safetensors")  # fmt: skip
STREAMS = 1024
CUDA_LIBRARY = re.compile(r"lib(cublas|cudart|cudnn|cufft|curand|nvJitLink|nvrtc)")


def missing() -> list[str]:
    """What has to be installed for it, and is not."""
    names = [name for name in NEEDED if not _is_there(name)]
    try:
        # Both commands say which version they are.
        version("unrolled")
    except PackageNotFoundError:
        names.append("unrolled (pip install --no-deps .)")
    return names


def library_path(maps: str, path: str) -> str:
    """`path` behind the folders of CUDA's libraries that a process has loaded, by its
    /proc/PID/maps: what PyTorch has found, another process might not."""
    files = [
        Path(fields[5]) for line in maps.splitlines() if len(fields := line.split(None, 5)) == 6
    ]
    folders = [str(file.parent) for file in files if CUDA_LIBRARY.match(file.name)]
    return ":".join(dict.fromkeys([*folders, *filter(None, path.split(":"))]))


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def tokens_per_second(subject: Subject, folder: Path, rows: int, seconds: float) -> float:
    """Of 64 told and 128 drawn tokens a turn, STREAMS clients in one process of their own."""
    from support.server import running_server

    from bench.generator import Generator
    from bench.load import Load, sample

    repository = folder / "served"
    _export(subject, folder, repository)
    flags = ("--device", "cuda", "--max-rows", str(rows), "--port", "0")
    maps, path = Path("/proc/self/maps").read_text(), os.environ.get("LD_LIBRARY_PATH", "")
    environment = {"LD_LIBRARY_PATH": library_path(maps, path)}
    running = running_server(repository, *flags, environment=environment)
    with running as server, Generator() as generator:
        # Each turn that is slow has a line.
        server.follow_log()
        load = Load(server.address, server.process.pid, subject.name, STREAMS)
        return generator.run(sample, load, seconds).rate.per_second


def _export(subject: Subject, folder: Path, repository: Path) -> None:
    """By the real command, with a vocabulary that holds the characters of the load's prompt."""
    from safetensors.numpy import save_file

    from bench.models import CHARACTERS

    if (repository / subject.name).exists():
        return
    checkpoint, vocabulary = folder / "checkpoint.safetensors", folder / "vocabulary.json"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: np.ascontiguousarray(array) for name, array in subject.weights().items()}
    save_file(weights, checkpoint)
    more = [chr(0x100 + token) for token in range(subject.vocabulary - len(CHARACTERS))]
    vocabulary.write_text(json.dumps([*CHARACTERS, *more]))
    command = [sys.executable, "-m", "unrolled_export", "convert", str(checkpoint)]
    command += ["--vocab", str(vocabulary), "--name", subject.name, "--output", str(repository)]
    command += ["--precision", "fp16" if subject.fp16 else "fp32", "--device", "cuda"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

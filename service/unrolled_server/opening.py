"""Which runner a model gets: on a device where one is asked for and there, else on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from unrolled_server.device_runner import GRAPHS, DeviceConfig, DeviceRunner
from unrolled_server.logs import log_event
from unrolled_server.runner import (
    DeviceError,
    Runner,
    RunnerConfig,
    RunnerError,
    StateSpec,
    has_cuda,
)
from unrolled_server.running import AnyRunner

logger = logging.getLogger(__name__)

ENGINE = "engine.onnx"


def open_runner(
    folder: Path,
    files: Collection[str],
    states: tuple[StateSpec, ...],
    vocabulary: int,
    rows: int,
    config: RunnerConfig,
    *,
    halves: bool,
) -> AnyRunner:
    """A runner of the graphs in `folder`, which has `files`; `halves`: their weights fit in fp16.

    Raises RunnerError for graphs that cannot be run, or that `--device cuda` lacks; DeviceError
    where that device does not run them.
    """
    if config.device != "cpu" and has_cuda():
        missing = [name for name in GRAPHS if name not in files]
        try:
            if missing:
                raise RunnerError(f"{missing[0]} is not there: export the model with --device cuda")
            device = DeviceConfig("cuda", tf32=halves)
            return DeviceRunner(folder, states, vocabulary, rows, device)
        except (RunnerError, DeviceError) as error:
            if config.device == "cuda":
                raise
            log_event(logger, logging.WARNING, "device_unused", reason=str(error))
    if config.device == "cuda":
        raise DeviceError("--device cuda: no CUDA device, or no onnxruntime that can use it")
    return Runner(folder / ENGINE, states, vocabulary, rows, config)

"""Which runners a model gets: one on a device where that is asked for and there, else CPU lanes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unrolled_server.cores import usable_cores
from unrolled_server.device_memory import has_cuda
from unrolled_server.device_runner import GRAPHS, DeviceConfig, DeviceRunner
from unrolled_server.logs import log_event
from unrolled_server.runner import Runner
from unrolled_server.running import AnyRunner, DeviceError, RunnerError, StateSpec
from unrolled_server.scheduler import FULL

logger = logging.getLogger(__name__)

ENGINE = "engine.onnx"
PROMPT = "prompt.onnx"
LARGEST_IN_ONE_THREAD = 128 << 20
"""Bytes of a graph up to which each lane runs it in one thread. A larger one has a single lane and
products that all threads work at: a lone row would have to wait too long for one thread."""


@dataclass(frozen=True)
class RunnerConfig:
    """How graphs are run."""

    device: str = "auto"
    """cpu, cuda, or auto: cuda where a real session runs on it."""
    threads: int = 0
    """Threads that advance rows; 0: half of the cores, and two where there are two."""


def open_runners(
    folder: Path,
    files: Collection[str],
    states: tuple[StateSpec, ...],
    vocabulary: int,
    rows: int,
    config: RunnerConfig,
    *,
    halves: bool,
) -> Sequence[AnyRunner]:
    """Runners for `rows` rows together, one for each lane, of the graphs in `folder`.

    It has `files`; `halves`: their weights fit in fp16.

    Raises RunnerError for graphs that cannot be run, or that `--device cuda` lacks; DeviceError
    where that device does not run them.
    """
    check_device(config.device)
    if config.device != "cpu" and has_cuda():
        missing = [name for name in GRAPHS if name not in files]
        try:
            if missing:
                raise RunnerError(f"{missing[0]} is not there: export the model with --device cuda")
            device = DeviceConfig("cuda", tf32=halves)
            return [_device_runner(folder, states, vocabulary, rows, device)]
        except (RunnerError, DeviceError) as error:
            if config.device == "cuda":
                raise
            log_event(logger, logging.WARNING, "device_unused", reason=str(error))
    graph, prompt = folder / ENGINE, folder / PROMPT if PROMPT in files else None
    threads = config.threads or default_threads()
    if graph.stat().st_size > LARGEST_IN_ONE_THREAD:
        return [_runner(graph, states, vocabulary, rows, threads, prompt)]
    lanes = max(1, min(threads, rows // FULL))
    first, *others = _shares(rows, lanes)
    runner = _runner(graph, states, vocabulary, first, 1, prompt)
    return [runner, *map(runner.another, others)]


def _shares(rows: int, lanes: int) -> list[int]:
    """How many of the rows each lane gets: as many as the others, or one more."""
    share, left = divmod(rows, lanes)
    return [share + (lane < left) for lane in range(lanes)]


def _device_runner(
    folder: Path,
    states: tuple[StateSpec, ...],
    vocabulary: int,
    rows: int,
    config: DeviceConfig,
) -> DeviceRunner:
    """A runner that runs, without CUDA graphs where these cannot be made.

    Raises RunnerError and DeviceError, the latter as well where no run succeeds.
    """
    runner = DeviceRunner(folder, states, vocabulary, rows, config)
    try:
        runner.try_out()
        return runner
    except DeviceError as error:
        log_event(logger, logging.WARNING, "cuda_graphs_unused", reason=str(error))
    # What has failed may be of no more use, and takes memory.
    del runner
    runner = DeviceRunner(folder, states, vocabulary, rows, replace(config, captures=False))
    runner.try_out()
    return runner


def _runner(
    graph: Path,
    states: tuple[StateSpec, ...],
    vocabulary: int,
    rows: int,
    threads: int,
    prompt: Path | None,
) -> Runner:
    """A runner, without the graph for prompts where that cannot be used. Raises RunnerError."""
    try:
        return Runner(graph, states, vocabulary, rows, threads, prompt)
    except RunnerError as error:
        if prompt is None:
            raise
        runner = Runner(graph, states, vocabulary, rows, threads)
        log_event(logger, logging.WARNING, "prompt_graph_unused", reason=str(error))
        return runner


def default_threads() -> int:
    """Half of the usable cores, for there is more to do than runs, but two where there are two."""
    cores = usable_cores()
    return min(cores, max(2, cores // 2))


def check_device(device: str) -> None:
    """Raise DeviceError where there is no such device."""
    if device == "cuda" and not has_cuda():
        raise DeviceError("--device cuda: no CUDA device, or no onnxruntime that can use it")

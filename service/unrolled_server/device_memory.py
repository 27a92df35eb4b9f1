"""A device by way of onnxruntime: whether it is there, its memory, sessions that run on it."""

from __future__ import annotations

import ctypes
import io
import threading
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from unrolled_server.graphs import reason
from unrolled_server.running import DeviceError, RunnerError

ALIGNMENT = 256
"""Bytes; what cudaMalloc guarantees."""

EXCLUSIVE = threading.RLock()
"""Held by whoever uses the device: onnxruntime captures CUDA graphs in a mode in which other
threads must neither allocate nor copy meanwhile. Runs of one device gain nothing side by side."""

Shapes = Mapping[str, tuple[DTypeLike, tuple[int, ...]]]


@dataclass(frozen=True)
class Part:
    """An array, or a piece of one, on the device."""

    device: str
    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def first(self, rows: int) -> Part:
        """The first `rows` of it."""
        return Part(self.device, self.address, self.dtype, (rows, *self.shape[1:]))


class Block:
    """Named arrays end to end in one buffer on the device, so that one copy moves them all."""

    def __init__(self, device: str, shapes: Shapes) -> None:
        self._device = device
        self._shapes = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in shapes.items()}
        self._starts: dict[str, int] = {}
        end = 0
        for name, (dtype, shape) in self._shapes.items():
            self._starts[name] = end
            size = dtype.itemsize * int(np.prod(shape))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._bytes = end
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            self._value = make([end], np.uint8, device, 0)
        except Exception as error:
            raise DeviceError(
                f"{device}: no room for {end:,} bytes, which --max-rows bounds: {reason(error)}"
            ) from error

    def part(self, name: str, index: int | None = None) -> Part:
        """An array, or the part of it at `index` of its first axis."""
        dtype, shape = self._shapes[name]
        address = self._value.data_ptr() + self._starts[name]
        if index is None:
            return Part(self._device, address, dtype, shape)
        size = dtype.itemsize * int(np.prod(shape[1:]))
        return Part(self._device, address + index * size, dtype, shape[1:])


class SharedBlock(Block):
    """A block that the host has a copy of, in `arrays`."""

    def __init__(self, device: str, shapes: Shapes) -> None:
        super().__init__(device, shapes)
        self._host = np.zeros(self._bytes, np.uint8)
        self.arrays = {name: self._array(name) for name in shapes}

    def _array(self, name: str) -> NDArray[Any]:
        dtype, shape = self._shapes[name]
        start = self._starts[name]
        size = dtype.itemsize * int(np.prod(shape))
        return self._host[start : start + size].view(dtype).reshape(shape)

    def upload(self) -> None:
        """Copy all arrays to the device; nothing may be reading them there."""
        self._value.update_inplace(self._host)

    def download(self) -> None:
        """Copy all arrays from the device; what made them has to be over."""
        self._host[:] = self._value.numpy()


class Binding:
    """Inputs and outputs of one session at fixed addresses."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, Part],
        outputs: Mapping[str, Part | None],
    ) -> None:
        """An output that is None is made on the host."""
        self._session = session
        self._binding = session.io_binding()
        for name, part in inputs.items():
            self._binding.bind_input(name, part.device, 0, part.dtype, part.shape, part.address)
        for name, made in outputs.items():
            if made is None:
                self._binding.bind_output(name)
            else:
                self._binding.bind_output(
                    name, made.device, 0, made.dtype, made.shape, made.address
                )

    def run(self, options: onnxruntime.RunOptions | None = None) -> None:
        """Run the session; on a device that may only begin it, as `options` say."""
        self._session.run_with_iobinding(self._binding, options)

    def outputs(self) -> list[NDArray[Any]]:
        """Copies of all outputs, on the host."""
        arrays: list[NDArray[Any]] = self._binding.copy_outputs_to_cpu()
        return arrays


def open_session(
    graph: Path, device: str, options: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """A session all of whose nodes run on `device`; `options` are those of its provider.

    Raises RunnerError for a graph that cannot be read, DeviceError where it does not run there.
    """
    if not graph.is_file():
        raise RunnerError(f"{graph.name}: there is no such file; export with --device cuda")
    missing = "" if device == "cpu" else load_libraries()
    try:
        return _session(graph, device, options)
    except Exception as error:
        if device == "cpu":
            raise RunnerError(f"{graph.name}: {reason(error)}") from error
        # Where it is the graph that cannot be read, the CPU says so as well.
        open_session(graph, "cpu", {})
        raise DeviceError(
            f"{graph.name}: the session does not run on {device}: {missing or reason(error)}"
        ) from error


def _session(graph: Path, device: str, options: Mapping[str, str]) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
    if device != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    given = [(provider, dict(options) if device != "cpu" else {})]
    # Else a provider that fails is replaced by the CPU's, whose complaint then hides why.
    return onnxruntime.InferenceSession(str(graph), settings, providers=given, enable_fallback=0)


@cache
def load_libraries() -> str:
    """Load CUDA's libraries, once, from where pip puts them or where the system looks.

    onnxruntime by itself looks in the latter alone. Returns which are not there, empty for none.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            onnxruntime.preload_dlls()
    except Exception as error:
        return reason(error)
    failed = [line for line in said.getvalue().splitlines() if line.startswith("Failed")]
    return "; ".join([*failed, "requirements/gpu.txt has them"]) if failed else ""


def has_cuda() -> bool:
    """Whether a CUDA device answers, asked of the driver before onnxruntime logs errors."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )

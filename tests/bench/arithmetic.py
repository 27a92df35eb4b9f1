"""How near the bare loop comes to a plain matrix product on the same cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.bare import MEASURED_SECONDS, THREADS, candidates, fastest, open_session
from bench.figure import Bench, Figure, Group, Result
from bench.models import CHARACTERS, Recipe
from bench.progress import in_turns
from bench.rate import Rate, per_cpu_second, per_second
from bench.ratios import ratio
from bench.subjects import LARGE

ROWS = 64

OVER_PRODUCT = Figure(
    "rate_over_matmul_64",
    "ratio",
    "arithmetic rate of the bare loop's products at 64 rows, fp32, by CPU time, over a Gemm's of "
    "[64,512]x[512,2048]",
)


def groups() -> Iterator[Group]:
    """One."""
    yield Group((OVER_PRODUCT,), _measure)


def _measure(bench: Bench) -> Iterator[Result]:
    loops = candidates(bench.models.models(LARGE).version("fp32"), ROWS)
    alone, threaded = (Product(ROWS, LARGE.hidden, *setting) for setting in THREADS[::2])
    seconds = bench.settings.seconds
    rounds = in_turns(
        OVER_PRODUCT.name,
        bench.settings.rounds,
        lambda: alone.measure(seconds),
        lambda: threaded.measure(seconds),
        *(partial(loop.measure, min(seconds, MEASURED_SECONDS)) for loop in loops),
    )
    one, all_, *bare = zip(*rounds, strict=True)
    by_loop = list(zip(loops, bare, strict=True))
    loop, by_cpu = fastest(by_loop, per_cpu_second)
    _, by_wall = fastest(by_loop, per_second)
    token, row = flops_per_token(LARGE), alone.flops_per_row
    wall = ratio(
        OVER_PRODUCT,
        [token * it.per_second for it in by_wall],
        [row * it.per_second for it in all_],
    )
    yield ratio(
        OVER_PRODUCT,
        [token * it.per_cpu_second / 1e9 for it in by_cpu],
        [row * it.per_cpu_second / 1e9 for it in one],
        of="GFLOP per CPU-second; the Gemm is onnxruntime's, in one thread",
        bare=loop.name,
        by_wall_time=wall.value,
    )


def flops_per_token(recipe: Recipe) -> int:
    """Of the products of one step: two for each weight, but for those that are looked up."""
    gates = 4 * recipe.hidden * recipe.hidden
    head = recipe.hidden * len(CHARACTERS)
    return 2 * (recipe.layers * gates + (recipe.layers - 1) * gates + head)


class Product:
    """[rows, size] x [size, 4 * size], the weights known beforehand, and nothing else."""

    def __init__(self, rows: int, size: int, threads: int, spin: bool) -> None:
        weight = np.random.default_rng(1).random((size, 4 * size), np.float32)
        self._session = open_session(_graph(weight), threads, spin)
        self._rows = rows
        self.flops_per_row = 2 * weight.size
        self._inputs = {"rows": np.ones((rows, size), np.float32)}
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("rows", self._inputs["rows"])
        self._product = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((rows, 4 * size), np.float32)
        )
        self._binding.bind_ortvalue_output("product", self._product)

    def measure(self, seconds: float) -> Rate:
        """Multiply for about `seconds`; what is counted is rows."""
        rows = 0
        cpu, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < seconds:
            self._session.run_with_iobinding(self._binding)
            rows += self._rows
        return Rate(rows, time.perf_counter() - started, time.process_time() - cpu)


def _graph(weight: np.ndarray) -> bytes:
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["rows", "weight"], ["product"])],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["B", rows])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["B", columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized

"""Check and time the path through a CUDA device, and keep what came out.

Writes what `make bench` writes: a JSON object a line in latest.jsonl (figure, value, unit, detail),
the same with the commit in history.jsonl. The graphs are written to OUTPUT/models where they are
not there, which needs `onnx`; --prepare does only that, on any machine. The exit status is 0
where everything could be measured and every check has passed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from unrolled_server.device_memory import has_cuda

from bench.cuda import served, timings
from bench.cuda.checks import checks
from bench.cuda.models import FUSED, LARGE, prepare
from bench.cuda.timings import Rates
from bench.figure import Figure, Result
from bench.progress import say
from bench.records import Records, table

ROWS = 4096
SIZES = (64, 1024)
"""Batches that are timed besides those of 1 and ROWS."""

ENGINE = Figure(
    "cuda_engine_tokens_4096", "tokens/s", "drawn by turns of an engine, fp16", 3e6, 10e6
)
RUNNER = Figure("cuda_runner_tokens_4096", "tokens/s", "drawn by runs alone, fp16", 3e6, 10e6)
STEP = Figure("cuda_step_1", "us", "a step of one row, fp16, in the fastest setting", 100, 40)
SERVED = Figure("cuda_served_tokens", "tokens/s", "told and drawn through gRPC, fp16", 1e6, 3e6)
FUSED_STEP = Figure("cuda_fused_over_products_1", "ratio", "steps of one row: cuDNN over products")
FUSED_TOKENS = Figure(
    "cuda_fused_over_products_4096", "ratio", "tokens of 4,096 rows: cuDNN over products"
)


class CheckFailed(Exception):
    """What was found is not as it should be."""


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args()
    models = arguments.output / "models"
    if arguments.prepare:
        prepare(models)
        return 0
    if not has_cuda() or not torch.cuda.is_available():
        say("no CUDA device, or no driver or PyTorch for it: nothing was measured")
        return 1
    prepare(models)
    return Bench(arguments.output, models, arguments.seconds).run()


class Bench:
    """One call's measurements; one that fails leaves the others."""

    def __init__(self, output: Path, models: Path, seconds: float) -> None:
        self._output, self._models, self._seconds = output, models, seconds
        self._records = Records(output)
        self._results: list[Result] = []
        self._failed: list[str] = []
        self._limits: dict[str, float] = {}

    def run(self) -> int:
        """Everything, the quickest first and what may upset the device last; the exit status."""
        for measure in (
            self._environment,
            self._checks,
            self._step,
            self._runner,
            self._asked,
            self._engine,
            self._served,
            self._candidates,
        ):
            try:
                for result in measure():
                    self._keep(result)
            except Exception:
                # Time on a device is dear: what else can be measured, is.
                traceback.print_exc()
                self._failed.append(measure.__name__.strip("_"))
        print(table(self._results))
        if self._failed:
            say(f"failed: {', '.join(self._failed)}")
        return 1 if self._failed else 0

    def _keep(self, result: Result) -> None:
        self._records.add(result)
        self._results.append(result)
        say(f"{result.figure.name} = {result.value:.4g} {result.figure.unit} {result.detail}")

    def _environment(self) -> Iterator[Result]:
        """What it runs on, and the limits that sets: bandwidth and rate."""
        device = torch.cuda.get_device_properties(0)
        detail = {
            "device": device.name,
            "memory_bytes": device.total_memory,
            "cache_bytes": getattr(device, "L2_cache_size", None),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "onnxruntime": onnxruntime.__version__,
        }
        self._limits = timings.limits()
        for name, value in self._limits.items():
            yield Result(Figure(f"cuda_{name}", "1/s", "measured with PyTorch"), value, detail)

    def _checks(self) -> Iterator[Result]:
        failed = []
        for check in checks(self._models, "cuda"):
            figure = Figure(f"cuda_check_{check.name}", check.unit, "at most a little")
            yield Result(figure, check.value, {"passed": check.passed, **check.detail})
            failed += [] if check.passed else [check.name]
        if failed:
            raise CheckFailed(", ".join(failed))

    def _step(self) -> Iterator[Result]:
        rates = timings.sweep(LARGE, self._models, 1, "cuda", self._seconds)
        self._note(STEP, rates)
        if not rates.found:
            return
        taken = {name: 1e6 / rate for name, rate in rates.found.items()}
        size = timings.bytes_per_step(LARGE)
        detail: dict[str, Any] = {"us": taken, "failed": rates.failed, "weights_bytes": size}
        if bandwidth := self._limits.get("copy_bytes_per_second"):
            # No bound: what fits in cache_bytes may stay there, and is then read faster.
            detail["us_to_read_the_weights_from_memory"] = 1e6 * size / bandwidth
        yield Result(STEP, min(taken.values()), detail)

    def _runner(self) -> Iterator[Result]:
        for rows in (*SIZES, ROWS):
            rates = timings.sweep(LARGE, self._models, rows, "cuda", self._seconds)
            name = f"cuda_runner_tokens_{rows}"
            figure = RUNNER if rows == ROWS else Figure(name, RUNNER.unit, RUNNER.what)
            yield from self._fastest(figure, rates)

    def _asked(self) -> Iterator[Result]:
        """Runs that wait for every step: rows filter, or want all log-probabilities."""
        for rows in (SIZES[0], ROWS):
            for asked in (timings.filtered, timings.distributions):
                name = f"cuda_runner_{asked.__name__}_{rows}"
                figure = Figure(name, RUNNER.unit, f"{RUNNER.what}, {asked.__name__}")
                rates = timings.sweep(
                    LARGE, self._models, rows, "cuda", self._seconds, asked, (max(timings.STEPS),)
                )
                yield from self._fastest(figure, rates)

    def _candidates(self) -> Iterator[Result]:
        """The operator LSTM, computed by cuDNN, against products."""
        for figure, rows in ((FUSED_STEP, 1), (FUSED_TOKENS, ROWS)):
            fused, products = (
                timings.sweep(subject, self._models, rows, "cuda", self._seconds)
                for subject in (FUSED, LARGE)
            )
            for rates in (fused, products):
                self._note(figure, rates)
            if fused.found and products.found:
                ratio = max(fused.found.values()) / max(products.found.values())
                detail = {"fused": fused.found, "products": products.found}
                failed = {"fused": fused.failed, "products": products.failed}
                yield Result(figure, ratio, {**detail, "failed": failed})

    def _engine(self) -> Iterator[Result]:
        rates = timings.engine_rates(LARGE, self._models, ROWS, "cuda", 4 * self._seconds)
        yield from self._fastest(ENGINE, rates)

    def _fastest(self, figure: Figure, rates: Rates) -> Iterator[Result]:
        """The best of the settings that could be measured, if any."""
        self._note(figure, rates)
        if rates.found:
            best = max(rates.found.values())
            detail = {"by_setting": rates.found, "failed": rates.failed}
            yield Result(figure, best, {**detail, **self._share(best)})

    def _note(self, figure: Figure, rates: Rates) -> None:
        """Settings that failed, so that the run does as well."""
        self._failed += [f"{figure.name} ({setting})" for setting in rates.failed]

    def _served(self) -> Iterator[Result]:
        missing = served.missing()
        if missing:
            say(f"not measured through gRPC: {', '.join(missing)} not installed")
            return
        folder = self._output / "grpc"
        rate = served.tokens_per_second(LARGE, folder, ROWS, 4 * self._seconds)
        yield Result(SERVED, rate, {"streams": served.STREAMS, **self._share(rate)})

    def _share(self, tokens_per_second: float) -> dict[str, float]:
        """Of the rate that products of fp16 alone would allow, where that is known."""
        operations = timings.operations_per_token(LARGE) * tokens_per_second
        limit = self._limits.get("fp16_operations_per_second")
        return {"of_fp16_operations": operations / limit} if limit else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--prepare", action="store_true", help="write the graphs and end")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())

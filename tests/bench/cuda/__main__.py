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

import numpy as np
import onnxruntime
import torch
from unrolled_server.runner import has_cuda

from bench.cuda import served, timings
from bench.cuda.checks import checks
from bench.cuda.models import FUSED, LARGE, prepare
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
        """Everything, the quickest first; returns the exit status."""
        for measure in (
            self._environment,
            self._checks,
            self._step,
            self._runner,
            self._candidates,
            self._engine,
            self._served,
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
        rates = dict(timings.sweep(LARGE, self._models, 1, "cuda", self._seconds))
        fastest = max(rates, key=lambda name: rates[name])
        limit = timings.bytes_per_step(LARGE) / self._limits["copy_bytes_per_second"]
        detail = {name: 1e6 / rate for name, rate in rates.items()}
        yield Result(
            STEP, 1e6 / rates[fastest], {"us": detail, "us_to_read_the_weights": 1e6 * limit}
        )

    def _runner(self) -> Iterator[Result]:
        for rows in (*SIZES, ROWS):
            rates = dict(timings.sweep(LARGE, self._models, rows, "cuda", self._seconds))
            best = max(rates.values())
            name = f"cuda_runner_tokens_{rows}"
            figure = RUNNER if rows == ROWS else Figure(name, RUNNER.unit, RUNNER.what)
            yield Result(figure, best, {"by_setting": rates, **self._share(best)})

    def _candidates(self) -> Iterator[Result]:
        """The operator LSTM, computed by cuDNN, against products."""
        for figure, rows in ((FUSED_STEP, 1), (FUSED_TOKENS, ROWS)):
            fused, products = (
                dict(timings.sweep(subject, self._models, rows, "cuda", self._seconds))
                for subject in (FUSED, LARGE)
            )
            ratio = max(fused.values()) / max(products.values())
            yield Result(figure, ratio, {"fused": fused, "products": products})

    def _engine(self) -> Iterator[Result]:
        rate = timings.engine_tokens_per_second(
            LARGE, self._models, ROWS, "cuda", 4 * self._seconds
        )
        yield Result(ENGINE, rate, self._share(rate))

    def _served(self) -> Iterator[Result]:
        missing = served.missing()
        if missing:
            say(f"not measured through gRPC: {', '.join(missing)} not installed")
            return
        folder = self._output / "grpc"
        rate = served.tokens_per_second(LARGE, folder, ROWS, 4 * self._seconds)
        yield Result(SERVED, rate, {"streams": served.STREAMS, **self._share(rate)})

    def _share(self, tokens_per_second: float) -> dict[str, float]:
        """Of the rate that products of fp16 alone would allow."""
        operations = timings.operations_per_token(LARGE) * tokens_per_second
        return {"of_fp16_operations": operations / self._limits["fp16_operations_per_second"]}


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

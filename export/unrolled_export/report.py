"""What a conversion says when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unrolled.v1 import model_pb2

from unrolled_export.building import Build
from unrolled_export.evaluation import Comparison, Evaluation
from unrolled_export.precision import Precision
from unrolled_export.readers import Checkpoint
from unrolled_export.reference_file import Agreement
from unrolled_export.repository import ENGINE
from unrolled_export.vocabulary import Vocabulary


@dataclass(frozen=True)
class Report:
    """What was found, what it was checked against and what was written, in lines."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    model: model_pb2.Model
    agreement: Agreement | None

    def text(
        self,
        build: Build,
        speeds: Mapping[int, float],
        comparison: Comparison | None,
        folder: Path,
    ) -> str:
        """`speeds` are ratios to fp32 by batch size, none where fp32 is the precision."""
        lines = [
            *self._found(),
            *self._checked(),
            *_precision(build, speeds),
            *_evaluated(build, comparison),
            *self._wrote(folder),
        ]
        return "\n".join(f"{title:<9}{line}" for title, line in lines)

    def _found(self) -> Iterator[tuple[str, str]]:
        yield "found", self.checkpoint.reading
        yield from (("assumed", phrase) for phrase in self.checkpoint.assumptions)
        yield "", sizes(self.model)
        yield "", self.vocabulary.describe()
        yield from (("", note) for note in self.vocabulary.notes)

    def _checked(self) -> Iterator[tuple[str, str]]:
        parity = self.model.parity
        yield (
            "checked",
            f"{parity.steps:,} tokens against {parity.reference}: log-probabilities within "
            f"{parity.max_abs_logprob_error:.1e} nats ({parity.tolerance:.0e} allowed), greedy "
            "choices the same",
        )
        yield "", parity.scope

    def _wrote(self, folder: Path) -> Iterator[tuple[str, str]]:
        size = sum(file.bytes for file in self.model.files)
        files = ", ".join(file.name for file in self.model.files)
        yield "wrote", f"{folder}: {files} ({size / 1e6:.1f} MB), manifest.json"
        yield "", f"fingerprint {self.model.fingerprint}"


def sizes(model: model_pb2.Model) -> str:
    """Parameters, layers and state of a model, in words."""
    units = ", ".join(str(layer.hidden_size) for layer in model.layers)
    return (
        f"{model.parameters:,} parameters; layers of {units} units; {model.state_bytes:,} bytes of "
        "state a session"
    )


def costs(evaluation: Evaluation) -> str:
    """The figures of an evaluation, in words."""
    return (
        f"{evaluation.nats_per_character:.4f} nats, {evaluation.bits_per_character:.4f} bits a "
        f"character; perplexity {evaluation.perplexity:.4f} a token "
        f"({evaluation.tokens:,} tokens, {evaluation.characters:,} characters)"
    )


def _precision(build: Build, speeds: Mapping[int, float]) -> Iterator[tuple[str, str]]:
    if build.precision is Precision.FP32:
        return
    in_bytes = build.products
    if in_bytes:
        # Of the vectors, weights of norms and biases, none is a product.
        products = [name for name, array in build.network.arrays() if array.ndim == 2]
        others = [name for name in products if name not in {*in_bytes, "embedding"}]
        rest = f"; in fp32: {', '.join(others)}" if others else ""
        yield str(build.precision), f"in 8 bits: {', '.join(in_bytes)}{rest}"
    size = len(build.graphs[ENGINE])
    yield (
        "" if in_bytes else str(build.precision),
        f"{ENGINE} {size / 1e6:.1f} MB, in fp32 {build.base_bytes / 1e6:.1f} MB",
    )
    ratios = ", ".join(f"{ratio:.2f} at batch {rows}" for rows, ratio in speeds.items())
    yield "", f"speed over fp32, measured in turns in one thread: {ratios}"


def _evaluated(build: Build, comparison: Comparison | None) -> Iterator[tuple[str, str]]:
    if comparison is None:
        return
    *before, after = comparison.evaluations
    for evaluation in before:
        yield "fp32", costs(evaluation)
    yield str(build.precision), costs(after)
    for evaluation in before:
        change = 100 * (after.perplexity / evaluation.perplexity - 1)
        yield (
            "",
            f"perplexity {change:+.3f} %; greedy choices agree at "
            f"{100 * comparison.agreement:.2f} % of the tokens",
        )

"""`unrolled-export evaluate`: how well a checkpoint or an exported model predicts a text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unrolled.v1 import model_pb2

from unrolled_export.building import Build, build
from unrolled_export.encoding import Part, read_parts
from unrolled_export.evaluation import Comparison
from unrolled_export.evaluation import evaluate as evaluate_engines
from unrolled_export.exported import find_exported, read_exported
from unrolled_export.precision import Precision
from unrolled_export.progress import Advance, progress_bar
from unrolled_export.readers import Settings
from unrolled_export.reading import read_model
from unrolled_export.reference import States, initial_states
from unrolled_export.report import costs
from unrolled_export.runners import EngineRunner
from unrolled_export.vocabulary import Vocabulary
from unrolled_export.vocabulary_message import vocabulary_message


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate as the parsed command line says; returns the exit status."""
    path, text = Path(arguments.checkpoint), Path(arguments.text)
    folder = find_exported(path)
    if folder is not None:
        model = read_exported(folder)
        vocabulary = model.manifest.vocabulary
        comparison = _evaluate([model.engine()], model.initial, text, vocabulary, model.files)
    else:
        settings = Settings(arguments.set, allow_pickle=arguments.allow_pickle)
        checkpoint, own = read_model(path, settings, arguments)
        comparison = evaluate_build(
            build(checkpoint.network, Precision.FP32, progress_bar), own, text
        )
    print(costs(comparison.evaluations[-1]))
    return 0


def evaluate_build(build: Build, vocabulary: Vocabulary, text: Path) -> Comparison:
    """What a text costs the engine's graph in fp32 and, if that is another, in its precision.

    Raises TextError.
    """
    engines = [build.engine] if build.engine is build.base else [build.base, build.engine]
    message = vocabulary_message(vocabulary)
    return _evaluate(engines, initial_states(build.network, 1), text, message, vocabulary.files)


def _evaluate(
    engines: Sequence[EngineRunner],
    initial: States,
    text: Path,
    vocabulary: model_pb2.Vocabulary,
    files: Mapping[str, bytes],
) -> Comparison:
    with progress_bar(f"evaluating {text.name}", text.stat().st_size) as advance:
        parts = read_parts(text, vocabulary, files)
        return evaluate_engines(engines, initial, _noted(parts, advance))


def _noted(parts: Iterator[Part], advance: Advance) -> Iterator[Part]:
    """The parts, each noted as done once the next is asked for."""
    for part in parts:
        yield part
        advance(part.bytes)

"""`unrolled-export convert`: read a checkpoint, build its graphs, check them, write them."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from unrolled_export.building import Build, build, check
from unrolled_export.evaluate import evaluate_build
from unrolled_export.manifest import make_manifest, manifest_json, parity_message
from unrolled_export.precision import Precision
from unrolled_export.progress import progress_bar
from unrolled_export.readers import Checkpoint, Settings
from unrolled_export.reading import read_model
from unrolled_export.reference_file import (
    Agreement,
    ReferenceOutputs,
    check_reference,
    read_reference,
)
from unrolled_export.report import Report
from unrolled_export.repository import MANIFEST, Repository, check_name, own_name
from unrolled_export.speed import speed_ratios
from unrolled_export.triton import triton_files

READING_ASSUMED = "arithmetic verified, reading assumed"


def convert(arguments: argparse.Namespace) -> int:
    """Convert as the parsed command line says; returns the exit status."""
    path, repository = Path(arguments.checkpoint), Repository(Path(arguments.output))
    name = check_name(arguments.name) if arguments.name else own_name(path)
    settings = Settings(arguments.set, allow_pickle=arguments.allow_pickle)
    checkpoint, vocabulary = read_model(path, settings, arguments)
    network = checkpoint.network
    outputs = read_reference(Path(arguments.reference), network) if arguments.reference else None
    precision, for_device = Precision(arguments.precision), arguments.device is not None
    built = build(network, precision, progress_bar, for_device=for_device)
    agreement = check_reference(outputs, network, built.base) if outputs else None
    parity = check(built, progress_bar)
    text = Path(arguments.evaluate) if arguments.evaluate else None
    evaluated = evaluate_build(built, vocabulary, text) if text else None
    files = {**built.graphs, **vocabulary.files}
    version = repository.next_version(name)
    model = make_manifest(
        name,
        version,
        network,
        built.precision,
        built.products,
        vocabulary,
        parity_message(parity, _scope(outputs, agreement)),
        files,
        _source(checkpoint),
    )
    speeds = _speeds(built)
    files[MANIFEST] = manifest_json(model)
    folder = repository.add(name, version, files, triton_files(name, network))
    report = Report(checkpoint, vocabulary, model, agreement)
    print(report.text(built, speeds, evaluated, folder))
    return 0


def _speeds(built: Build) -> dict[int, float]:
    """Speed over fp32 by batch size; empty where that is the precision."""
    if built.engine is built.base:
        return {}
    return speed_ratios(built.network, built.engine, built.base, progress_bar)


def _scope(outputs: ReferenceOutputs | None, agreement: Agreement | None) -> str:
    """What the checks prove."""
    if outputs is None or agreement is None:
        return READING_ASSUMED
    return (
        f"arithmetic verified, reading verified against {agreement.file} (SHA-256 "
        f"{_sha256(outputs.file)}): {agreement.logprobs} log-probabilities within "
        f"{agreement.max_abs_logprob_error:.1e} nats in fp32, {agreement.greedy} greedy tokens the "
        "same"
    )


def _source(checkpoint: Checkpoint) -> str:
    """Where the weights come from, in one line without paths."""
    files = [f"{file.name} (SHA-256 {_sha256(file)})" for file in checkpoint.files]
    assumed = "".join(f"; assumed: {phrase}" for phrase in checkpoint.assumptions)
    return f"{', '.join(files)}: {checkpoint.reading}{assumed}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

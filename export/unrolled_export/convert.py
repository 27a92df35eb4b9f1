"""`unrolled-export convert`: read a checkpoint, build its graphs, check them, write them."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from unrolled.v1 import model_pb2

from unrolled_export.errors import VocabularyError
from unrolled_export.manifest import make_manifest, manifest_json
from unrolled_export.parity import check_parity
from unrolled_export.portable_graph import portable_graph
from unrolled_export.readers import Checkpoint, Settings, read_checkpoint
from unrolled_export.repository import Repository, check_name
from unrolled_export.step_graph import step_graph
from unrolled_export.triton import triton_config
from unrolled_export.vocabulary import Vocabulary, make_vocabulary, read_vocabulary


def convert(arguments: argparse.Namespace) -> int:
    """Convert as the parsed command line says; returns the exit status."""
    path, repository = Path(arguments.checkpoint), Repository(Path(arguments.output))
    name = check_name(arguments.name or _own_name(path))
    checkpoint = read_checkpoint(path, Settings(arguments.set))
    vocabulary = _vocabulary(checkpoint, arguments)
    network = checkpoint.network
    graphs = {
        "model.onnx": portable_graph(network).SerializeToString(deterministic=True),
        "engine.onnx": step_graph(network).SerializeToString(deterministic=True),
    }
    parity = check_parity(network, graphs["model.onnx"], graphs["engine.onnx"])
    version = repository.next_version(name)
    source = _source(checkpoint)
    model = make_manifest(name, version, network, vocabulary, parity, graphs, source)
    files = {**graphs, "manifest.json": manifest_json(model)}
    folder = repository.add(name, version, files, triton_config(name, network))
    print(_report(model, checkpoint, folder))
    return 0


def _own_name(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name


def _vocabulary(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Vocabulary:
    """The vocabulary given on the command line, else the checkpoint's own.

    Raises VocabularyError where there is none, or none of the weights' size.
    """
    origin = Path(arguments.vocab) if arguments.vocab else checkpoint.files[-1]
    tokens = read_vocabulary(origin) if arguments.vocab else checkpoint.vocabulary
    size = checkpoint.network.vocabulary_size
    if tokens is None:
        raise VocabularyError(f"{origin}: holds no vocabulary: add --vocab FILE, of {size} tokens")
    start = checkpoint.start_token if arguments.start_token is None else arguments.start_token
    end = arguments.end_token or checkpoint.end_tokens
    vocabulary = make_vocabulary(tokens, origin, start, end)
    if len(tokens) != size:
        raise VocabularyError(
            f"{origin}: {len(tokens)} tokens, but the weights of {checkpoint.files[0]} have {size}"
        )
    return vocabulary


def _source(checkpoint: Checkpoint) -> str:
    """Where the weights come from, in one line without paths."""
    files = [f"{file.name} (SHA-256 {_sha256(file)})" for file in checkpoint.files]
    return f"{', '.join(files)}: {checkpoint.reading}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(model: model_pb2.Model, checkpoint: Checkpoint, folder: Path) -> str:
    """What was found, what it was checked against and what was written."""
    units = ", ".join(str(layer.hidden_size) for layer in model.layers)
    size = sum(file.bytes for file in model.files)
    files = ", ".join(file.name for file in model.files)
    return "\n".join(
        (
            f"found    {checkpoint.reading}",
            f"         {model.parameters:,} parameters; layers of {units} units; "
            f"{model.state_bytes:,} bytes of state a session",
            f"         {_tokens(model.vocabulary)}",
            f"checked  {model.parity.steps:,} tokens against {model.parity.reference}: "
            f"log-probabilities within {model.parity.max_abs_logprob_error:.1e} nats "
            f"({model.parity.tolerance:.0e} allowed), greedy choices the same",
            f"wrote    {folder}: {files} ({size / 1e6:.1f} MB), manifest.json",
            f"         fingerprint {model.fingerprint}",
        )
    )


def _tokens(vocabulary: model_pb2.Vocabulary) -> str:
    tokens = [token.decode() for token in vocabulary.tokens]
    start = repr(tokens[vocabulary.start_token]) if vocabulary.HasField("start_token") else "none"
    end = ", ".join(repr(tokens[index]) for index in vocabulary.end_tokens) or "none"
    return f"{vocabulary.size} tokens; start token {start}; end tokens {end}"

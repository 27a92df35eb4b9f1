"""The fingerprint of a model: what a session's state belongs to.

A state may be carried on by any export with the same fingerprint: the same weights, cell,
precision, vocabulary and state tensors, computed by the same revision of the engine's graph.
Name, version, files and origin do not count, so exporting again changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from unrolled.v1 import model_pb2

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""Files that define a vocabulary whose tokens the manifest does not list."""

_SCHEME = b"unrolled fingerprint 1"
"""Raised whenever fields are added to what is hashed, or written differently."""


def fingerprint(model: model_pb2.Model) -> str:
    """SHA-256 in hexadecimal over what a state depends on, each field preceded by its length.

    `model` as GetModel returns it: long lists leave out the vocabulary's tokens, which count.
    """
    digest = hashlib.sha256()
    for field in _fields(model):
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.hexdigest()


def _fields(model: model_pb2.Model) -> Iterator[bytes]:
    yield _SCHEME
    yield model.weights_sha256.encode()
    yield from _numbers([model.graph_revision, model.cell, model.precision])
    yield from _numbers([len(model.layers)])
    for layer in model.layers:
        yield from _numbers([layer.input_size, layer.hidden_size, layer.projection_size])
    yield from _vocabulary(model.vocabulary)
    for name in model.quantized_weights:
        yield name.encode()
    for file in model.files:
        if file.name in TOKENIZER_FILES:
            yield from (file.name.encode(), file.sha256.encode())
    yield from _numbers([len(model.states)])
    for state in model.states:
        yield from (state.input.encode(), state.output.encode())
        yield from _numbers([len(state.shape), *state.shape])


def _vocabulary(vocabulary: model_pb2.Vocabulary) -> Iterator[bytes]:
    yield from _numbers([vocabulary.kind, vocabulary.size, len(vocabulary.tokens)])
    yield from vocabulary.tokens
    yield vocabulary.joiner.encode()
    yield _optional(vocabulary.start_token if vocabulary.HasField("start_token") else None)
    yield _optional(vocabulary.unknown_token if vocabulary.HasField("unknown_token") else None)
    yield from _numbers([len(vocabulary.end_tokens), *vocabulary.end_tokens])


def _numbers(numbers: Sequence[int]) -> Iterator[bytes]:
    return (str(number).encode() for number in numbers)


def _optional(number: int | None) -> bytes:
    return b"unset" if number is None else str(number).encode()

"""The manifest of an exported model: the `Model` message of the contract, as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from google.protobuf.json_format import MessageToJson
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2

from unrolled_export.network import Cell, Network
from unrolled_export.parity import Parity
from unrolled_export.step_graph import GRAPH_REVISION
from unrolled_export.vocabulary import Vocabulary

_CELLS = {
    Cell.RNN_TANH: model_pb2.CELL_RNN_TANH,
    Cell.RNN_RELU: model_pb2.CELL_RNN_RELU,
    Cell.LSTM: model_pb2.CELL_LSTM,
    Cell.GRU: model_pb2.CELL_GRU,
}


def make_manifest(
    name: str,
    version: int,
    network: Network,
    vocabulary: Vocabulary,
    parity: Parity,
    files: Mapping[str, bytes],
    source: str,
) -> model_pb2.Model:
    """Describe an export whose folder holds `files`, by name, besides the manifest."""
    model = model_pb2.Model(
        name=name,
        version=version,
        cell=_CELLS[network.cell],
        precision=model_pb2.PRECISION_FP32,
        layers=[
            model_pb2.Model.Layer(input_size=layer.input_size, hidden_size=layer.hidden_size)
            for layer in network.layers
        ],
        parameters=network.parameters,
        vocabulary=_vocabulary(vocabulary),
        states=[
            model_pb2.Model.StateTensor(input=state.input, output=state.output, shape=[state.size])
            for state in network.states
        ],
        state_bytes=network.state_bytes,
        files=[_file(name, content) for name, content in sorted(files.items())],
        parity=_parity(parity),
        source=source,
        weights_sha256=weights_sha256(network),
        graph_revision=GRAPH_REVISION,
    )
    model.fingerprint = fingerprint(model)
    return model


def manifest_json(model: model_pb2.Model) -> bytes:
    """The content of `manifest.json`; the same message gives the same bytes."""
    return (MessageToJson(model, indent=2, ensure_ascii=False) + "\n").encode()


def weights_sha256(network: Network) -> str:
    """SHA-256 in hexadecimal over the network: the name, shape and little-endian float32 of every
    array, and what else decides what they mean."""
    digest = hashlib.sha256()
    for name, array in network.arrays():
        digest.update(f"{name} {list(array.shape)}\n".encode())
        digest.update(array.astype("<f4").tobytes())
    for variant in network.variants():
        digest.update(f"{variant}\n".encode())
    return digest.hexdigest()


def _vocabulary(vocabulary: Vocabulary) -> model_pb2.Vocabulary:
    return model_pb2.Vocabulary(
        kind=model_pb2.Vocabulary.KIND_CHARACTER,
        size=len(vocabulary.tokens),
        tokens=[token.encode() for token in vocabulary.tokens],
        start_token=vocabulary.start,
        end_tokens=vocabulary.end,
    )


def _file(name: str, content: bytes) -> model_pb2.Model.File:
    sha256 = hashlib.sha256(content).hexdigest()
    return model_pb2.Model.File(name=name, sha256=sha256, bytes=len(content))


def _parity(parity: Parity) -> model_pb2.Model.Parity:
    return model_pb2.Model.Parity(
        reference=parity.reference,
        steps=parity.tokens,
        max_abs_logprob_error=parity.max_abs_logprob_error,
        # A check that finds another choice raises.
        greedy_identical=True,
        tolerance=parity.tolerance,
    )

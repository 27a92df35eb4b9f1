"""The manifest of an exported model: the `Model` message of the contract, as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.json_format import MessageToJson
from unrolled.fingerprint import fingerprint
from unrolled.v1 import model_pb2

from unrolled_export.network import Cell, Layer, Network
from unrolled_export.parity import Parity
from unrolled_export.precision import Precision
from unrolled_export.step_graph import GRAPH_REVISION
from unrolled_export.vocabulary import Vocabulary
from unrolled_export.vocabulary_message import vocabulary_message

_CELLS = {
    Cell.RNN_TANH: model_pb2.CELL_RNN_TANH,
    Cell.RNN_RELU: model_pb2.CELL_RNN_RELU,
    Cell.LSTM: model_pb2.CELL_LSTM,
    Cell.GRU: model_pb2.CELL_GRU,
}
_PRECISIONS = {
    Precision.FP32: model_pb2.PRECISION_FP32,
    Precision.FP16: model_pb2.PRECISION_FP16,
    Precision.INT8: model_pb2.PRECISION_INT8,
}


def make_manifest(
    name: str,
    version: int,
    network: Network,
    precision: Precision,
    quantized_weights: Iterable[str],
    vocabulary: Vocabulary,
    parity: model_pb2.Model.Parity,
    files: Mapping[str, bytes],
    source: str,
) -> model_pb2.Model:
    """Describe an export whose folder holds `files`, by name, besides the manifest."""
    model = model_pb2.Model(
        name=name,
        version=version,
        cell=_CELLS[network.cell],
        precision=_PRECISIONS[precision],
        layers=[_layer(layer) for layer in network.layers],
        parameters=network.parameters,
        vocabulary=vocabulary_message(vocabulary),
        states=list(_states(network)),
        state_bytes=network.state_bytes,
        files=[_file(name, content) for name, content in sorted(files.items())],
        parity=parity,
        source=source,
        weights_sha256=weights_sha256(network),
        graph_revision=GRAPH_REVISION,
        quantized_weights=quantized_weights,
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


def parity_message(parity: Parity, scope: str) -> model_pb2.Model.Parity:
    """What a check that passed has found; `scope` says what it proves."""
    return model_pb2.Model.Parity(
        reference=parity.reference,
        steps=parity.tokens,
        max_abs_logprob_error=parity.max_abs_logprob_error,
        # A check that finds another choice raises.
        greedy_identical=True,
        tolerance=parity.tolerance,
        scope=scope,
    )


def _layer(layer: Layer) -> model_pb2.Model.Layer:
    return model_pb2.Model.Layer(
        input_size=layer.input_size,
        hidden_size=layer.hidden_size,
        projection_size=layer.projection_size,
    )


def _states(network: Network) -> Iterator[model_pb2.Model.StateTensor]:
    for index, state in enumerate(network.states):
        initial = network.initial[index].tolist() if network.initial else []
        yield model_pb2.Model.StateTensor(
            input=state.input, output=state.output, shape=[state.size], initial=initial
        )


def _file(name: str, content: bytes) -> model_pb2.Model.File:
    sha256 = hashlib.sha256(content).hexdigest()
    return model_pb2.Model.File(name=name, sha256=sha256, bytes=len(content))

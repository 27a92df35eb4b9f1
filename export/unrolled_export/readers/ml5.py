"""Models of char-rnn-tensorflow as ml5 publishes them: raw float32 files and a manifest.

Equations: BasicLSTMCell, GRUCell and BasicRNNCell of TensorFlow 1. A kernel is [I + H, G*H], the
rows of the input first. Gates are i, j, f, o of an LSTM, with the forget bias added to f at run
time, and r, u of a GRU, whose reset gate comes before the product: h' = u * h + (1 - u) * n.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell, Floats, Layer, Network
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

FORGET_BIAS = 1.0
"""The default of TensorFlow's LSTM cells; no file tells another."""

_MANIFEST = "manifest.json"
_START = 4096
"""Bytes of a manifest that tell its kind."""
_LONGEST_NAME = 300
_LARGEST_VOCABULARY = 2**24
"""Bytes of a JSON file that is looked at."""
_CELL = re.compile(
    r"(?:.*/)?(?:(?:basic_?)?(?P<cell>lstm|gru|rnn)_?cell)/"
    r"(?:(?P<part>gates|candidate)/)?(?:linear/)?"
    r"(?:(?P<weight>kernel|weights|matrix)|(?P<bias>bias|biases))(?::0)?",
    re.IGNORECASE,
)
_INDEX = re.compile(r"(?:^|/)cell_?(?P<layer>[0-9]{1,3})/", re.IGNORECASE)
_CELLS = {"lstm": Cell.LSTM, "gru": Cell.GRU, "rnn": Cell.RNN_TANH}
_TRAINER = re.compile(r".*/(Adam|RMSProp|Momentum)(_[0-9]+)?(:0)?|(.*/)?beta[12]_power(:0)?")
"""What an optimiser keeps beside the weights."""
_NAMED = re.compile(r"(?:.*/)?(embedding|softmax_w|softmax_b)(?::0)?")

Parts = dict[tuple[str, str], str]
"""Tensors of a layer by part, `gates`, `candidate` or none, and `weight` or `bias`."""


class Ml5Folder:
    """A folder with `manifest.json`, a raw file for each tensor and a vocabulary."""

    kind = "a folder of ml5's charRNN, with manifest.json"

    def accepts(self, path: Path) -> bool:
        manifest = path / _MANIFEST
        if not manifest.is_file():
            return False
        with manifest.open("rb") as file:
            # Other programs call other things a manifest.
            return b'"filename"' in file.read(_START)

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        manifest = path / _MANIFEST
        files = _files(manifest)
        tensors = Tensors(manifest, {name: _array(*entry) for name, entry in files.items()})
        network, reading = _network(tensors)
        tokens, vocabulary = _vocabulary(path, network.vocabulary_size)
        return Checkpoint(
            network,
            (manifest, *(file for file, _ in files.values()), *vocabulary),
            f"TensorFlow 1 model in raw files: {reading}",
            tokens,
            assumptions=_assumptions(network.cell),
        )


def _assumptions(cell: Cell) -> tuple[str, ...]:
    return ("forget_bias 1.0, added to the forget gate once",) if cell is Cell.LSTM else ()


def _files(manifest: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of each tensor of the network, in the manifest's order."""
    content = _json(manifest)
    if not isinstance(content, dict):
        raise CheckpointError(manifest, "not a JSON object of tensors")
    if any(len(name) > _LONGEST_NAME for name in content):
        raise CheckpointError(manifest, f"a name of more than {_LONGEST_NAME} characters")
    entries = {name: _entry(manifest, name, entry) for name, entry in content.items()}
    # A scalar is the learning rate or a count of steps.
    kept = {n: e for n, e in entries.items() if e[1] != () and not _TRAINER.fullmatch(n)}
    if len({file for file, _ in kept.values()}) < len(kept):
        raise CheckpointError(manifest, "two tensors have the same file")
    return kept


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, f"not JSON ({error})") from error


def _entry(manifest: Path, name: str, entry: object) -> tuple[Path, tuple[int, ...]]:
    filename = entry.get("filename") if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(filename, str) or not isinstance(shape, list):
        raise CheckpointError(manifest, f"entry {name!r} has not a filename and a shape")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(manifest, f"entry {name!r} has a shape that is not of whole numbers")
    file = _inside(manifest, name, filename)
    if file.stat().st_size != 4 * math.prod(shape):
        raise CheckpointError(
            manifest, f"the file of {name!r}, {filename!r}, is not {shape} in float32"
        )
    return file, tuple(shape)


def _inside(manifest: Path, name: str, filename: str) -> Path:
    """The file in the manifest's folder."""
    file = manifest.parent / filename
    try:
        is_inside = file.resolve().is_relative_to(manifest.parent.resolve())
        is_file = is_inside and file.is_file()
    except (OSError, ValueError):
        is_inside, is_file = True, False
    if not is_inside:
        raise CheckpointError(
            manifest, f"the file of {name!r}, {filename!r}, is outside the folder"
        )
    if not is_file:
        raise CheckpointError(manifest, f"the file of {name!r}, {filename!r}, is not there")
    return file


def _array(file: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.fromfile(file, "<f4").reshape(shape)


def _network(tensors: Tensors) -> tuple[Network, str]:
    cell, layers_of = _recurrent(tensors)
    named = _by_last_word(tensors)
    head_weight = np.ascontiguousarray(tensors.take(_found(tensors, named, "softmax_w")).T)
    embedding = tensors.take(named["embedding"]) if "embedding" in named else None
    size = len(head_weight)
    if embedding is not None and (embedding.ndim != 2 or len(embedding) != size):
        shown = tensors.shown(named["embedding"])
        raise tensors.error(f"{shown} is not an embedding of {size} tokens")
    below = size if embedding is None else int(embedding.shape[1])
    layers: list[Layer] = []
    for parts in layers_of:
        layers.append(_layer(tensors, cell, parts, below))
        below = layers[-1].hidden_size
    _check(tensors, named["softmax_w"], (below, size))
    head_bias = np.zeros(size, np.float32)
    if "softmax_b" in named:
        head_bias = _take(tensors, named["softmax_b"], (size,))
    reading = f"{'embedding' if 'embedding' in named else 'one-hot input'}, {len(layers)} {cell}"
    tensors.check_all_taken(f"{reading}, softmax_w")
    network = Network(
        cell,
        embedding,
        tuple(layers),
        head_weight,
        head_bias,
        tensors.numbers_taken,
        reset_after=cell is not Cell.GRU,
    )
    return network, f"{reading}, softmax_w"


def _recurrent(tensors: Tensors) -> tuple[Cell, list[Parts]]:
    """The cell, and the tensors of each layer."""
    layers: dict[int, Parts] = {}
    cells = set()
    for name in tensors.left:
        if match := _CELL.fullmatch(name):
            index = _INDEX.search(name)
            parts = layers.setdefault(int(index["layer"]) if index else 0, {})
            key = ((match["part"] or "").lower(), "weight" if match["weight"] else "bias")
            if key in parts:
                raise tensors.error(f"{parts[key]} and {name} are the same part of a layer")
            parts[key] = name
            cells.add(_CELLS[match["cell"].lower()])
    if not layers:
        raise tensors.error("no recurrent layer: no tensor like cell_0/basic_lstm_cell/kernel")
    if len(cells) > 1:
        raise tensors.error(f"layers of different cells: {', '.join(sorted(cells))}")
    if sorted(layers) != list(range(len(layers))):
        raise tensors.error(f"layers {', '.join(map(str, sorted(layers)))}, not from 0 on")
    return cells.pop(), [layers[index] for index in range(len(layers))]


def _by_last_word(tensors: Tensors) -> dict[str, str]:
    named: dict[str, str] = {}
    for name in tensors.left:
        if match := _NAMED.fullmatch(name):
            if match[1] in named:
                raise tensors.error(f"{named[match[1]]} and {name} are both a {match[1]}")
            named[match[1]] = name
    return named


def _found(tensors: Tensors, named: dict[str, str], word: str) -> str:
    if word not in named:
        raise tensors.error(f"no tensor is called {word}")
    tensors.matrix_shape(named[word])
    return named[word]


def _layer(tensors: Tensors, cell: Cell, parts: Parts, below: int) -> Layer:
    wanted = ("gates", "candidate") if cell is Cell.GRU else ("",)
    for part in wanted:
        for kind in ("weight", "bias"):
            if (part, kind) not in parts:
                raise tensors.error(f"a layer has no {f'{part} {kind}'.strip()}")
    bias = parts[wanted[-1], "bias"]
    hidden = tensors.shape(bias)[0] // (4 if cell is Cell.LSTM else 1) if tensors.shape(bias) else 0
    rows = [_rows(tensors, parts, part, below + hidden, cell, hidden) for part in wanted]
    weight = np.concatenate([matrix for matrix, _ in rows])
    order = _torch_order(cell)
    weight_ih = np.ascontiguousarray(order(weight[:, :below]))
    weight_hh = np.ascontiguousarray(order(weight[:, below:]))
    bias_ih = order(np.concatenate([vector for _, vector in rows]))
    if cell is Cell.LSTM:
        bias_ih[hidden : 2 * hidden] += np.float32(FORGET_BIAS)
    return Layer(weight_ih, weight_hh, bias_ih, np.zeros_like(bias_ih))


def _rows(
    tensors: Tensors, parts: Parts, part: str, columns: int, cell: Cell, hidden: int
) -> tuple[Floats, Floats]:
    """Weight, rows for outputs, and bias of one product of a layer."""
    gates = {"gates": 2, "candidate": 1}.get(part, cell.gates)
    weight = _take(tensors, parts[part, "weight"], (columns, gates * hidden))
    return weight.T, _take(tensors, parts[part, "bias"], (gates * hidden,))


def _torch_order(cell: Cell) -> Callable[[Floats], Floats]:
    """Blocks of rows i, j, f, o as i, f, g, o; those of a GRU are in PyTorch's order already."""
    if cell is not Cell.LSTM:
        return np.array

    def order(array: Floats) -> Floats:
        i, j, f, o = np.split(array, 4)
        return np.concatenate([i, f, j, o])

    return order


def _take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Floats:
    _check(tensors, name, shape)
    return tensors.take(name)


def _check(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    if tensors.shape(name) != shape:
        raise tensors.error(f"{tensors.shown(name)} should be {list(shape)}")


def _vocabulary(folder: Path, size: int) -> tuple[tuple[str, ...] | None, tuple[Path, ...]]:
    """The tokens that the folder's JSON files agree on, and the file they come from."""
    found: dict[tuple[str, ...], Path] = {}
    for file in _json_files(folder):
        tokens = _tokens(file, size)
        if tokens is not None:
            found.setdefault(tokens, file)
    if len(found) != 1:
        return None, ()
    return next(iter(found.items()))[0], (next(iter(found.values())),)


def _json_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("*.json")):
        is_other = file.name != _MANIFEST and file.is_file()
        if is_other and file.stat().st_size <= _LARGEST_VOCABULARY:
            yield file


def _tokens(file: Path, size: int) -> tuple[str, ...] | None:
    """The tokens in id order, None where the file is no vocabulary of this size."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list) and all(isinstance(token, str) for token in content):
        content = {token: index for index, token in enumerate(content)}
    if not isinstance(content, dict) or len(content) != size:
        return None
    ids = {number: token for token, number in content.items() if type(number) is int}
    if sorted(ids) != list(range(size)):
        return None
    return tuple(ids[index] for index in range(size))

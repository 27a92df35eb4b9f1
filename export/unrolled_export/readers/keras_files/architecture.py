"""The architecture of a Keras model, from the JSON of `model.to_json()` or `model_config`.

Read as data: no class is looked up and nothing in it is run. What comes out is one chain of
layers; whatever else a graph can be is refused with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unrolled_export.errors import CheckpointError


@dataclass(frozen=True)
class LayerSpec:
    """One layer."""

    kind: str
    """Its class."""
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    """Where the layout of Keras 3 keeps its weights."""


MODELS = ("Sequential", "Functional", "Model")
CELLS = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "SimpleRNN"}
"""Of the cells that a layer RNN may have, the layers that do the same."""
_MAX_DEPTH = 8

_ATTENTION = "attends to all steps of its input, which is not a state that can be carried"
_JOIN = "joins branches of the model, and this release reads one chain of layers"
_WINDOW = "looks at several steps of its input at once, which is not a state that can be carried"
_REFUSED = {
    r".*Attention.*": _ATTENTION,
    r"Bidirectional": "reads a text from its end as well and so cannot continue one",
    r"Concatenate|Add|Subtract|Multiply|Average|Maximum|Minimum|Dot|Merge": _JOIN,
    r".*Conv.*|.*Pooling.*|Flatten|Permute|Reshape|Cropping.*|ZeroPadding.*": _WINDOW,
    r"RepeatVector": "repeats one state for a whole text, as an encoder's, and so cannot continue",
    r"Masking": "skips steps by their values, which this release does not read",
    r"Lambda|TFOpLambda|TensorFlowOpLayer": "runs code that its file does not tell",
}
"""By class, the most telling first."""


def read_architecture(path: Path, text: str | bytes) -> tuple[LayerSpec, ...]:
    """The layers from input to output, nested models and TimeDistributed unwrapped.

    `path` is the file that messages name. Raises CheckpointError.
    """
    model = parse_model(text)
    if model is None:
        raise CheckpointError(path, "its architecture is not the JSON of a Keras model")
    try:
        return _Reading(path).layers(model)
    except RecursionError as error:
        raise CheckpointError(path, "its architecture is nested too deeply") from error


def parse_model(text: str | bytes) -> Mapping[str, Any] | None:
    """The JSON object of a model; None where the text is something else.

    `json.dump(model.to_json(), file)` writes JSON within JSON.
    """
    value = _json(text)
    if not isinstance(value, dict) or value.get("class_name") not in MODELS:
        return None
    return value if isinstance(value.get("config"), dict | list) else None


def is_custom(text: str) -> bool:
    """Whether a model is of a class of its own, whose JSON does not tell its layers."""
    value = _json(text)
    kind = value.get("class_name") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind not in MODELS


def _json(text: str | bytes) -> object:
    """None where it is not JSON."""
    try:
        value = json.loads(text)
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def why_refused(kind: str) -> str | None:
    """The reason why layers of a class are not read; None where the class tells none."""
    for pattern, reason in _REFUSED.items():
        if re.fullmatch(pattern, kind):
            return reason
    return None


class _Reading:
    """Of one architecture. Every method raises CheckpointError naming the layer."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def layers(self, model: Mapping[str, Any]) -> tuple[LayerSpec, ...]:
        self._refuse_classes(model)
        return tuple(self._flattened(model, "", 0))

    def _refuse_classes(self, model: Mapping[str, Any]) -> None:
        """Before anything else, so that the reason is told and not its consequence."""
        found = list(self._classes(model, 0))
        for pattern, reason in _REFUSED.items():
            for kind, name in found:
                if re.fullmatch(pattern, kind):
                    raise self._error(f"layer {name} ({kind}) {reason}")

    def _classes(self, model: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
        for entry in self._entries(model, depth):
            yield self._kind(entry), self._name(entry)
            config = self._config(entry)
            if self._kind(entry) in MODELS:
                yield from self._classes(entry, depth + 1)
            elif isinstance(inner := config.get("layer"), dict):
                yield self._kind(inner), self._name(inner)

    def _flattened(self, model: Mapping[str, Any], path: str, depth: int) -> Iterator[LayerSpec]:
        entries = self._entries(model, depth)
        paths = self._paths(entries, path)
        # How Keras 3 spells the mask of an Embedding (mask_zero), which only masks read.
        entries = [entry for entry in entries if self._kind(entry) != "NotEqual"]
        for entry in self._chain(model, entries):
            place = paths[id(entry)]
            if self._kind(entry) in MODELS:
                yield from self._flattened(entry, f"{place}/", depth + 1)
            elif self._kind(entry) == "TimeDistributed":
                yield self._time_distributed(entry, place)
            elif self._kind(entry) == "RNN":
                yield from self._cells(entry, place)
            else:
                yield LayerSpec(self._kind(entry), self._name(entry), self._config(entry), place)

    def _time_distributed(self, entry: Mapping[str, Any], path: str) -> LayerSpec:
        inner = self._config(entry).get("layer")
        if not isinstance(inner, dict):
            raise self._error(f"layer {self._name(entry)} (TimeDistributed) wraps no layer")
        kind = self._kind(inner)
        if kind in (*MODELS, "RNN", "LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU"):
            raise self._error(f"layer {self._name(entry)} applies a {kind} to every step anew")
        return LayerSpec(kind, self._name(entry), self._config(inner), f"{path}/layer")

    def _cells(self, entry: Mapping[str, Any], path: str) -> Iterator[LayerSpec]:
        """RNN(LSTMCell(4)) is LSTM(4), and one of StackedRNNCells a layer for each."""
        cell, told = self._config(entry).get("cell"), self._config(entry)
        shared = {key: told[key] for key in ("go_backwards", "return_sequences") if key in told}
        if not isinstance(cell, dict) or self._kind(cell) != "StackedRNNCells":
            yield self._of_cell(entry, cell, self._name(entry), shared, path)
            return
        cells = self._config(cell).get("cells")
        if not isinstance(cells, list) or not all(isinstance(part, dict) for part in cells):
            raise self._error(f"layer {self._name(entry)} (RNN) has no list of cells")
        places = self._paths(cells, f"{path}/cell/", "cells")
        for part in cells:
            said = shared if part is cells[-1] else {**shared, "return_sequences": True}
            yield self._of_cell(entry, part, self._name(part), said, places[id(part)])

    def _of_cell(
        self,
        entry: Mapping[str, Any],
        cell: object,
        name: str,
        shared: Mapping[str, Any],
        path: str,
    ) -> LayerSpec:
        kind = self._kind(cell) if isinstance(cell, dict) else "no cell"
        if not isinstance(cell, dict) or kind not in CELLS:
            raise self._error(f"layer {self._name(entry)} (RNN) is of {kind}, which is not read")
        return LayerSpec(CELLS[kind], name, {**self._config(cell), **shared}, path)

    def _entries(self, model: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
        """The layers as listed."""
        if depth > _MAX_DEPTH:
            raise self._error("models nested too deeply")
        config = model.get("config")
        # Before Keras 2.2.3 the config of a Sequential was the list itself.
        entries = config.get("layers") if isinstance(config, dict) else config
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error('its architecture has no list "layers"')
        return entries

    def _paths(
        self, entries: list[Mapping[str, Any]], parent: str, group: str = "layers"
    ) -> dict[int, str]:
        """Keras 3 names groups after classes and counts those that repeat."""
        seen: dict[str, int] = {}
        paths = {}
        for entry in entries:
            snake = _snake_case(self._kind(entry))
            count = seen[snake] = seen.get(snake, -1) + 1
            paths[id(entry)] = (
                f"{parent}{group}/{snake}_{count}" if count else f"{parent}{group}/{snake}"
            )
        return paths

    def _chain(
        self, model: Mapping[str, Any], entries: list[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """The layers in the order in which they are applied."""
        if self._kind(model) == "Sequential":
            return entries
        sources = {self._name(entry): self._source(entry) for entry in entries}
        readers = [source for source in sources.values() if source is not None]
        if len(sources) < len(entries):
            raise self._error("two of its layers have one name")
        for name in sources:
            if readers.count(name) > 1:
                raise self._error(f"several layers read layer {name}: {_JOIN_SHORT}")
        return self._followed(model, {self._name(entry): entry for entry in entries}, sources)

    def _followed(
        self,
        model: Mapping[str, Any],
        entries: Mapping[str, Mapping[str, Any]],
        sources: Mapping[str, str | None],
    ) -> list[Mapping[str, Any]]:
        """From the one output back to the one input."""
        outputs = self._output_layers(model)
        name: str | None = outputs[0]
        chain: list[Mapping[str, Any]] = []
        while name is not None:
            if name not in entries or len(chain) == len(entries):
                raise self._error(f"layer {name} of its graph is missing or reads itself")
            chain.append(entries[name])
            name = sources[name]
        if len(chain) < len(entries):
            unused = next(name for name in entries if entries[name] not in chain)
            raise self._error(f"layer {unused} is not on the way to the output")
        return chain[::-1]

    def _output_layers(self, model: Mapping[str, Any]) -> list[str]:
        for key, what in (("input_layers", "inputs"), ("output_layers", "outputs")):
            names = _endpoints(self._config(model).get(key))
            if len(names) != 1:
                raise self._error(
                    f"{len(names)} {what} ({', '.join(_shown(name) for name in names)}), "
                    "where this release reads models of one"
                )
        return names

    def _source(self, entry: Mapping[str, Any]) -> str | None:
        """The layer that this one reads; None for an input."""
        nodes = entry.get("inbound_nodes")
        if not isinstance(nodes, list):
            raise self._error(f"layer {self._name(entry)} has no list inbound_nodes")
        if len(nodes) > 1:
            raise self._error(f"layer {self._name(entry)} is applied twice: {_JOIN_SHORT}")
        found = list(dict.fromkeys(_histories(nodes)))
        if len(found) > 1:
            names = ", ".join(_shown(name) for name, _ in found)
            raise self._error(f"layer {self._name(entry)} reads {names}: {_JOIN_SHORT}")
        if found and found[0][1] != 0:
            raise self._error(f"layer {self._name(entry)} reads a state of {_shown(found[0][0])}")
        return found[0][0] if found else None

    def _kind(self, entry: Mapping[str, Any]) -> str:
        kind = entry.get("class_name")
        if not isinstance(kind, str) or not kind.isprintable():
            raise self._error("a layer of its architecture has no class_name")
        return kind.rpartition(">")[2]

    def _name(self, entry: Mapping[str, Any]) -> str:
        name = self._config(entry).get("name", entry.get("name"))
        if not isinstance(name, str):
            # Keras 1 gives none to what it wraps.
            return self._kind(entry).lower()
        return _shown(name)

    def _config(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        config = entry.get("config")
        return config if isinstance(config, dict) else {}

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self._path, problem)


_JOIN_SHORT = "branches and skip connections are not read by this release"


def _endpoints(value: object) -> list[str]:
    """`["dense", 0, 0]`, or lists of such."""
    if not isinstance(value, list):
        return []
    if value and isinstance(value[0], str):
        return [value[0]]
    return [name for part in value for name in _endpoints(part)]


def _histories(value: object) -> Iterator[tuple[str, int]]:
    """Layer and output that the arguments of a call come from.

    `["lstm", node, output, {...}]` before Keras 3, `{"config": {"keras_history": ["lstm", node,
    output]}}` in it. Masks are computed from the tokens and are not read here.
    """
    if isinstance(value, dict):
        history = value.get("keras_history")
        if history is not None:
            yield from _histories(history)
            return
        for key, part in value.items():
            if key != "mask":
                yield from _histories(part)
    elif isinstance(value, list) and _is_history(value):
        yield str(value[0]), int(value[2])
        yield from _histories(value[3:])
    elif isinstance(value, list):
        for part in value:
            yield from _histories(part)


def _is_history(value: list[Any]) -> bool:
    return (
        len(value) >= 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and isinstance(value[2], int)
    )


def _snake_case(kind: str) -> str:
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)

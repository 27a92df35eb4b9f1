"""Layers of a Keras file that has no architecture, from the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.readers.keras_files.architecture import LayerSpec, why_refused
from unrolled_export.readers.keras_files.recurrent import Part, gates_of
from unrolled_export.readers.keras_files.weights import KerasWeights, WeightGroup
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

_KINDS = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}
_ORDER = ("Embedding", "LSTM", "GRU", "SimpleRNN", "Dense")
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_BIDIRECTIONAL = re.compile(r"(^|/)(forward|backward)_")


def recognise(
    weights: KerasWeights, settings: Settings
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """The layers, and what was assumed.

    Settings: `recurrent_activation`, `reset_after`, `nonlinearity` and `dense_activation` tell
    what weights do not. Raises CheckpointError and SettingError.
    """
    return _Recognition(weights, settings).read()


class _Recognition:
    def __init__(self, weights: KerasWeights, settings: Settings) -> None:
        self._weights = weights
        self._tensors: Tensors = weights.tensors
        self._settings = settings
        self._assumptions: dict[str, None] = {}

    def read(self) -> tuple[tuple[Part, ...], tuple[str, ...]]:
        if self._weights.architecture is not None:
            self._assumptions["a model class of its own, taken for a chain of its layers"] = None
        for group in self._weights.groups:
            self._refuse_unserved(group)
        for name in self._weights.weightless:
            self._refuse_weightless(name)
        kinds = [(self._kind(group), group) for group in self._weights.groups]
        if self._weights.is_positional:
            kinds = self._sorted(kinds)
        head = max((n for n, (kind, _) in enumerate(kinds) if kind == "Dense"), default=-1)
        parts = tuple(
            Part(LayerSpec(kind, group.layer, self._config(kind, group, n == head)), named)
            for n, (kind, group) in enumerate(kinds)
            for named in (self._named(kind, group),)
        )
        return parts, tuple(self._assumptions)

    def _refuse_unserved(self, group: WeightGroup) -> None:
        if _BIDIRECTIONAL.search(group.owner):
            raise self._tensors.error(
                f"{self._first(group)} belongs to a bidirectional layer, which reads a text from "
                "its end as well and so cannot continue one"
            )
        scores = [name for name in group.weights.values() if self._tensors.shape(name)[1:] == (1,)]
        if scores or _ATTENTION.search(group.owner) or _ATTENTION.search(group.layer):
            name = scores[0] if scores else next(iter(group.weights.values()))
            raise self._tensors.error(
                f"{self._tensors.shown(name)} weighs the steps of a text (attention over all "
                "steps), which is not a state that can be carried"
            )

    def _refuse_weightless(self, name: str) -> None:
        """Layers without weights leave a name, which is that of their class by default."""
        words = re.sub(r"_[0-9]+$", "", name).split("_")
        if reason := why_refused("".join(word.capitalize() for word in words)):
            raise self._tensors.error(f"layer {name} {reason}")
        if words[-1] in ("elu", "lu", "relu", "prelu"):
            raise self._tensors.error(
                f"layer {name} is an activation whose place the file does not tell: put its "
                "architecture, the JSON of model.to_json(), beside the file"
            )
        if words[0] in ("activation", "softmax"):
            self._assumptions[f"layer {name} is the softmax of the output"] = None

    def _first(self, group: WeightGroup) -> str:
        return self._tensors.shown(next(iter(group.weights.values())))

    def _kind(self, group: WeightGroup) -> str:
        if self._weights.is_positional:
            return self._kind_by_shape(group)
        roles = set(group.weights)
        if any(role.startswith("recurrent_kernel") for role in roles):
            return self._recurrent_kind(group, group.weights)
        if roles == {"embeddings"} or (roles == {"kernel"} and group is self._weights.groups[0]):
            return "Embedding"
        if roles in ({"kernel"}, {"kernel", "bias"}):
            return "Dense"
        if roles in ({"gamma"}, {"beta"}, {"gamma", "beta"}):
            return "LayerNormalization"
        if {"moving_mean", "moving_variance"} <= roles <= {"gamma", "beta", *_MOVING}:
            return "BatchNormalization"
        raise self._unknown(group)

    def _kind_by_shape(self, group: WeightGroup) -> str:
        shapes = [self._tensors.shape(name) for name in group.weights.values()]
        dimensions = [len(shape) for shape in shapes]
        if group.owner.endswith("cell") and dimensions[:2] == [2, 2]:
            return self._recurrent_kind(group, self._named("LSTM", group))
        if dimensions == [2, 1]:
            return "Dense"
        if dimensions == [2]:
            return "Embedding" if re.search("emb", group.owner, re.IGNORECASE) else "Dense"
        raise self._unknown(group)

    def _unknown(self, group: WeightGroup) -> CheckpointError:
        shapes = ", ".join(self._tensors.shown(name) for name in group.weights.values())
        return self._tensors.error(
            f"layer {group.layer} ({shapes}) is not recognised by its weights: put its "
            "architecture, the JSON of model.to_json(), beside the file"
        )

    def _recurrent_kind(self, group: WeightGroup, named: Mapping[str, str]) -> str:
        gates = gates_of(self._tensors, named)
        if gates not in _KINDS:
            raise self._unknown(group)
        return _KINDS[gates]

    def _sorted(self, kinds: list[tuple[str, WeightGroup]]) -> list[tuple[str, WeightGroup]]:
        """Where the file keeps no order: embedding, recurrent layers, Dense layers, by name."""
        self._assumptions["layers in the order of their names"] = None
        return sorted(kinds, key=lambda pair: _ORDER.index(pair[0]))

    def _named(self, kind: str, group: WeightGroup) -> Mapping[str, str]:
        if kind == "Embedding":
            return {"embeddings": next(iter(group.weights.values()))}
        if not self._weights.is_positional:
            return group.weights
        roles = ("kernel", "bias") if kind == "Dense" else ("kernel", "recurrent_kernel", "bias")
        return dict(zip((*roles, *map(str, range(3, 1000))), group.weights.values(), strict=False))

    def _config(self, kind: str, group: WeightGroup, is_head: bool) -> dict[str, Any]:
        if kind in ("LSTM", "GRU"):
            return self._config_of_gates(kind, group)
        if kind == "SimpleRNN":
            return {"activation": self._asked("nonlinearity", ("tanh", "relu"), group)}
        if kind == "Dense" and not is_head:
            choices = ("linear", "relu", "tanh", "sigmoid")
            return {"activation": self._asked("dense_activation", choices, group)}
        if kind in ("LayerNormalization", "BatchNormalization"):
            self._assumptions["epsilon of normalisations 0.001, Keras' default"] = None
        return {}

    def _config_of_gates(self, kind: str, group: WeightGroup) -> dict[str, Any]:
        named = self._named(kind, group)
        bias = self._tensors.shape(named["bias"]) if "bias" in named else None
        columns = sum(
            self._tensors.shape(name)[-1]
            for role, name in named.items()
            if role.startswith("recurrent_kernel")
        )
        config: dict[str, Any] = {}
        if kind == "GRU" and bias is None and not any(role.startswith("bias") for role in named):
            config["reset_after"] = self._asked("reset_after", ("true", "false"), group) == "true"
        if bias != (2 * columns,):
            config["recurrent_activation"] = self._recurrent_activation(group)
        return config

    def _recurrent_activation(self, group: WeightGroup) -> str:
        choices = ("sigmoid", "hard_sigmoid")
        default = default_recurrent_activation(self._weights)
        said = self._settings.choice("recurrent_activation", choices)
        if said is not None or default is None:
            return said or self._asked("recurrent_activation", choices, group)
        version = self._weights.version or "3"
        note = f"recurrent_activation {default}, the default of Keras {version}"
        self._assumptions[note] = None
        return default

    def _asked(self, key: str, choices: tuple[str, ...], group: WeightGroup) -> str:
        said = self._settings.choice(key, choices)
        if said is None:
            problem = f"{self._first(group)}: its layer's {_WORDS[key]} is not in the file"
            raise SettingNeeded(self._tensors.file, problem, key, choices)
        return said


_MOVING = ("moving_mean", "moving_variance")
_WORDS = {
    "nonlinearity": "activation",
    "dense_activation": "activation",
    "reset_after": "place of the reset gate (reset_after)",
    "recurrent_activation": "recurrent_activation",
}


def default_recurrent_activation(weights: KerasWeights) -> str | None:
    """What an LSTM or GRU of the file's Keras has unless told otherwise; None where unclear.

    Hard sigmoids until Keras 2.3; sigmoids from then on and in TensorFlow 2. The version 2.2.4-tf
    is that of TensorFlow 1.13 to 2.1, of either default.
    """
    if weights.version is None:
        # The layout of Keras 3 came with TensorFlow 2.12.
        return "sigmoid" if weights.is_positional else None
    match = re.match(r"([0-9]+)(?:\.([0-9]+))?", weights.version)
    if match is None or weights.version == "2.2.4-tf":
        return None
    version = (int(match[1]), int(match[2] or 0))
    return "hard_sigmoid" if version < (2, 3) else "sigmoid"


def reading(parts: Iterable[Part]) -> str:
    """Which layers there are, in words."""
    shown = [f"{part.spec.kind} {part.spec.name}" for part in parts if part.weights]
    return ", ".join(shown)

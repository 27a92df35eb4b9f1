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
_INERT = re.compile(
    r"input(_layer)?|(.*_)?drop(out)?[0-9]*d?(_layer)?|gaussian_noise|activity_regularization"
)
"""Names of layers without weights that do nothing at inference: Keras' own, and those of attributes
that hold a Dropout."""
_OUTPUTS = ("activation", "softmax")
_CELL = re.compile(r"cell(_[0-9]+)?$")
_UNSEEN = (
    "texts read forwards",
    "no activation behind the last Dense but softmax",
    "no skip connections or scalings",
)
_BESIDE = "put its architecture, the JSON of model.to_json(), beside the file"
_NORMS = {
    "LayerNormalization": r"layer_?norm|(^|_)ln",
    "BatchNormalization": r"batch_?norm|(^|_)bn",
}
_BIDIRECTIONAL = re.compile(r"(^|/)(forward|backward)_")


def recognise(
    weights: KerasWeights, settings: Settings
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """The layers, and what was assumed.

    Settings: `recurrent_activation`, `reset_after`, `nonlinearity`, `dense_activation` and
    `after_NORM`, NORM the name of a normalisation, tell what weights do not. Raises
    CheckpointError and SettingError.
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
        self._assumptions.update(dict.fromkeys(_UNSEEN))
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
        if _ATTENTION.search(group.owner) or _ATTENTION.search(group.layer):
            raise self._tensors.error(
                f"{self._first(group)} weighs the steps of a text (attention over all steps), "
                "which is not a state that can be carried"
            )
        for name in group.weights.values():
            if self._tensors.shape(name)[1:] == (1,):
                raise self._tensors.error(
                    f"{self._tensors.shown(name)} makes one number of a step, where a language "
                    "model scores every token of its vocabulary"
                )

    def _refuse_weightless(self, name: str) -> None:
        """Layers without weights leave a name, which is that of their class by default."""
        stem = _stem(name)
        if reason := why_refused("".join(word.capitalize() for word in stem.split("_"))):
            raise self._tensors.error(f"layer {name} {reason}")
        if stem in _OUTPUTS and self._is_last(name):
            self._assumptions[f"layer {name} is the softmax of the output"] = None
        elif not _INERT.fullmatch(stem):
            raise self._tensors.error(
                f"layer {name} has no weights, and the file does not tell what it does and "
                f"where: {_BESIDE}"
            )

    def _is_last(self, name: str) -> bool:
        """Whether a layer is the last; where the file keeps no order, the only one of its kind."""
        if not self._weights.is_positional:
            return name == self._weights.last
        return sum(_stem(other) in _OUTPUTS for other in self._weights.weightless) == 1

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
        if _CELL.search(group.owner) and dimensions[:2] == [2, 2]:
            return self._recurrent_kind(group, self._named("LSTM", group))
        if dimensions == [2, 1]:
            return "Dense"
        if dimensions == [2]:
            return "Embedding" if re.search("emb", group.owner, re.IGNORECASE) else "Dense"
        norm = {2: "LayerNormalization", 4: "BatchNormalization"}.get(len(shapes), "")
        is_norm = dimensions == [1] * len(shapes) and len(set(shapes)) == 1
        if norm and is_norm and re.search(_NORMS[norm], group.layer):
            return norm
        raise self._unknown(group)

    def _unknown(self, group: WeightGroup) -> CheckpointError:
        shapes = ", ".join(self._tensors.shown(name) for name in group.weights.values())
        return self._tensors.error(
            f"layer {group.layer} ({shapes}) is not recognised by its weights: {_BESIDE}"
        )

    def _recurrent_kind(self, group: WeightGroup, named: Mapping[str, str]) -> str:
        gates = gates_of(self._tensors, named)
        if gates not in _KINDS:
            raise self._unknown(group)
        return _KINDS[gates]

    def _sorted(self, kinds: list[tuple[str, WeightGroup]]) -> list[tuple[str, WeightGroup]]:
        """Where the file keeps no order: embedding, recurrent layers, Dense layers, by name.

        Normalisations stand where their width allows it, or where they are said to.
        """
        self._assumptions["layers in the order of their names"] = None
        products = [pair for pair in kinds if pair[0] in _ORDER]
        chain = sorted(products, key=lambda pair: _ORDER.index(pair[0]))
        below = chain[:-1] if chain and chain[-1][0] == "Dense" else chain
        # Each directly above its layer: the first of two on one layer has to come last.
        for pair in reversed([pair for pair in kinds if pair[0] not in _ORDER]):
            chain.insert(chain.index(self._below(pair[1], below)) + 1, pair)
        return chain

    def _below(
        self, norm: WeightGroup, layers: list[tuple[str, WeightGroup]]
    ) -> tuple[str, WeightGroup]:
        """The layer that a normalisation stands on. Setting: `after_NORM`."""
        width = self._tensors.shape(next(iter(norm.weights.values())))[0]
        fitting = {_place(group): (kind, group) for kind, group in layers}
        fitting = {name: pair for name, pair in fitting.items() if self._width(*pair) == width}
        key, only = f"after_{norm.layer}", next(iter(fitting), None)
        if only is None:
            raise self._unknown(norm)
        if len(fitting) == 1:
            self._assumptions[f"{norm.layer} stands on {only}, which alone has its width"] = None
            return fitting[only]
        said = self._settings.choice(key, list(fitting))
        if said is None:
            problem = f"{self._first(norm)}: the file does not tell which layer it stands on"
            raise SettingNeeded(self._tensors.file, problem, key, list(fitting))
        return fitting[said]

    def _width(self, kind: str, group: WeightGroup) -> int:
        """Numbers that a layer makes of a step."""
        shapes = [self._tensors.shape(name) for name in group.weights.values()]
        return shapes[0][1] if kind in ("Embedding", "Dense") else shapes[1][0]

    def _named(self, kind: str, group: WeightGroup) -> Mapping[str, str]:
        if kind == "Embedding":
            return {"embeddings": next(iter(group.weights.values()))}
        if not self._weights.is_positional:
            return group.weights
        roles = _ROLES.get(kind, ("kernel", "recurrent_kernel", "bias"))
        return dict(zip((*roles, *map(str, range(3, 1000))), group.weights.values(), strict=False))

    def _config(self, kind: str, group: WeightGroup, is_head: bool) -> dict[str, Any]:
        if kind in ("LSTM", "GRU"):
            self._assumptions["activation tanh"] = None
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


def _stem(name: str) -> str:
    """The last part of a name or path, without Keras' number."""
    return re.sub(r"_[0-9]+$", "", name.rpartition("/")[2])


def _place(group: WeightGroup) -> str:
    return group.owner.removeprefix("layers/").removesuffix("/cell")


_MOVING = ("moving_mean", "moving_variance")
_ROLES: Mapping[str, tuple[str, ...]] = {
    "Dense": ("kernel", "bias"),
    "LayerNormalization": ("gamma", "beta"),
    "BatchNormalization": ("gamma", "beta", *_MOVING),
}
"""By position, where the file keeps no roles; of any other kind those of a recurrent layer."""
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

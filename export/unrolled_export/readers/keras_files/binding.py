"""Which weights are whose: layers of an architecture and weights of a file brought together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unrolled_export.errors import CheckpointError, SettingNeeded
from unrolled_export.readers.keras_files.architecture import (
    LayerSpec,
    is_custom,
    parse_model,
    read_architecture,
)
from unrolled_export.readers.keras_files.recurrent import RECURRENT, Part
from unrolled_export.readers.keras_files.weights import KerasWeights, WeightGroup, version_of
from unrolled_export.readers.settings import Settings

_WEIGHTED = (
    *RECURRENT,
    "Embedding",
    "Dense",
    "TimeDistributedDense",
    "LayerNormalization",
    "BatchNormalization",
)


_MAX_JSON = 1 << 26


@dataclass(frozen=True)
class Architecture:
    """An architecture that fits the weights."""

    file: Path
    """Where it was found."""
    parts: tuple[Part, ...]
    version: str | None = None
    """Of the Keras that wrote it, where that says so."""


def find_architecture(file: Path, weights: KerasWeights, settings: Settings) -> Architecture | None:
    """From the file itself or else a JSON file beside it; None where there is none.

    Setting: `architecture` names one of several files that fit. Raises CheckpointError.
    """
    text = weights.architecture
    if text is not None and not is_custom(text):
        return Architecture(file, bind(read_architecture(file, text), weights))
    candidates = [_beside(path, weights) for path in sorted(file.parent.glob("*.json"))]
    fitting = [candidate for candidate in candidates if candidate is not None]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    names = [candidate.file.name for candidate in fitting]
    said = settings.choice("architecture", names)
    if said is None:
        problem = f"{len(names)} files beside it hold an architecture that fits"
        raise SettingNeeded(file, problem, "architecture", names)
    return fitting[names.index(said)]


def _beside(path: Path, weights: KerasWeights) -> Architecture | None:
    """None where the file is something else, or the architecture of other weights."""
    if not path.is_file() or path.stat().st_size > _MAX_JSON:
        return None
    model = parse_model(path.read_bytes())
    if model is None:
        return None
    try:
        parts = bind(read_architecture(path, path.read_bytes()), weights)
    except CheckpointError:
        if _has_names(model, weights):
            raise
        return None
    if not all(_fits(part, weights) for part in parts):
        return None
    version = model.get("keras_version")
    return Architecture(path, parts, version if isinstance(version, str) else _version(path))


def _has_names(model: Any, weights: KerasWeights) -> bool:
    """Whether an architecture that is not read names every layer that the file has weights of."""
    names = set(_names(model))
    return not weights.is_positional and all(group.layer in names for group in weights.groups)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("name"), str):
            yield value["name"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _names(part)


def _version(path: Path) -> str | None:
    """Of an unpacked .keras archive."""
    metadata = path.with_name("metadata.json")
    if path.name != "config.json" or not metadata.is_file():
        return None
    try:
        return version_of(metadata.read_bytes())
    except ValueError as error:
        raise CheckpointError(metadata, str(error)) from error


def _fits(part: Part, weights: KerasWeights) -> bool:
    """Whether the weights have the units that the layer says."""
    units = part.spec.config.get("units", part.spec.config.get("output_dim"))
    for role, axis in (("recurrent_kernel", 0), ("embeddings", 1), ("kernel", 1)):
        if role in part.weights:
            shape = weights.tensors.shape(part.weights[role])
            return units is None or (len(shape) > axis and shape[axis] == units)
    return True


def bind(specs: Sequence[LayerSpec], weights: KerasWeights) -> tuple[Part, ...]:
    """The layers with their weights. Raises CheckpointError where they do not fit the file."""
    groups = _by_path(specs, weights) if weights.is_positional else _by_name(specs, weights)
    return tuple(
        Part(spec, _by_role(spec, group, weights) if group else {})
        for spec, group in zip(specs, groups, strict=True)
    )


def _by_path(specs: Sequence[LayerSpec], weights: KerasWeights) -> Iterable[WeightGroup | None]:
    # Keras 2.13 called the root group otherwise.
    groups = {
        group.owner.replace("_layer_checkpoint_dependencies", "layers").removesuffix("/cell"): group
        for group in weights.groups
    }
    for spec in specs:
        if spec.kind in _WEIGHTED and _needs_weights(spec) and spec.path not in groups:
            raise weights.tensors.error(f"no weights of layer {spec.name} at {spec.path}")
        yield groups.get(spec.path)


def _needs_weights(spec: LayerSpec) -> bool:
    scaled = spec.config.get("scale", True) or spec.config.get("center", True)
    return spec.kind != "LayerNormalization" or bool(scaled)


def _by_name(specs: Sequence[LayerSpec], weights: KerasWeights) -> list[WeightGroup | None]:
    """By name, as Keras can; by order, as Keras does otherwise, where names differ."""
    weighted = [spec for spec in specs if spec.kind in _WEIGHTED and _needs_weights(spec)]
    named = {spec.name: _named(spec.name, weights.groups) for spec in weighted}
    if any(len(found) != 1 for found in named.values()):
        if len(weighted) != len(weights.groups):
            raise weights.tensors.error(
                f"its weights are those of {_list(group.layer for group in weights.groups)}, but "
                f"its architecture has weights in {_list(spec.name for spec in weighted)}"
            )
        pairs = zip(weighted, weights.groups, strict=True)
        named = {spec.name: [group] for spec, group in pairs}
    return [named[spec.name][0] if spec in weighted else None for spec in specs]


def _named(name: str, groups: Iterable[WeightGroup]) -> list[WeightGroup]:
    groups = list(groups)
    found = [group for group in groups if group.layer == name]
    return found or [group for group in groups if name in group.owner.split("/")]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "no layer"


def _by_role(spec: LayerSpec, group: WeightGroup, weights: KerasWeights) -> dict[str, str]:
    if weights.is_positional:
        return dict(_with_roles(_roles(spec), group))
    if spec.kind == "Embedding" and set(group.weights) == {"kernel"}:
        # Keras 1 calls it W, as it calls kernels.
        return {"embeddings": group.weights["kernel"]}
    return dict(group.weights)


def _with_roles(roles: Sequence[str], group: WeightGroup) -> Iterable[tuple[str, str]]:
    for position, name in group.weights.items():
        index = int(position)
        yield roles[index] if index < len(roles) else position, name


def _roles(spec: LayerSpec) -> tuple[str, ...]:
    """Of the weights that the layout of Keras 3 numbers."""
    if spec.kind in RECURRENT:
        return "kernel", "recurrent_kernel", "bias"
    if spec.kind in ("LayerNormalization", "BatchNormalization"):
        gamma = ("gamma",) if spec.config.get("scale", True) else ()
        beta = ("beta",) if spec.config.get("center", True) else ()
        moving = ("moving_mean", "moving_variance") if spec.kind.startswith("Batch") else ()
        return gamma + beta + moving
    return ("embeddings",) if spec.kind == "Embedding" else ("kernel", "bias")

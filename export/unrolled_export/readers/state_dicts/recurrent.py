"""The recurrent layers of a state dict.

nn.RNN, nn.LSTM and nn.GRU name the parameters of layer k `weight_ih_l{k}`, `weight_hh_l{k}`,
`bias_ih_l{k}`, `bias_hh_l{k}` and, of an LSTM that projects its hidden state, `weight_hr_l{k}`.
nn.LSTMCell and its like have one layer and no `_l{k}`. The rows of `weight_ih` over the units
are the gates: 1, 3 or 4. Weight drop (Merity et al. 2017) keeps the trained weight as
`weight_hh_l{k}_raw`; a `weight_hh_l{k}` beside it is what the last dropout made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unrolled_export.network import Floats, Layer
from unrolled_export.readers.state_dicts.numbering import are_neighbours
from unrolled_export.readers.tensors import Tensors

_PARAMETER = re.compile(
    r"(?P<module>.*?)(?P<field>(?:weight|bias)_(?:ih|hh)|weight_hr)(?P<suffix>_l[0-9]{1,3}|)"
)
RECURRENT_FIELD = re.compile(r"weight_(ih|hh|hr)")
"""In the name of a matrix of a recurrent module."""
_REVERSE = re.compile(r".*_l[0-9]+_reverse(_raw)?")
_BACKWARD = re.compile(
    r"(.*[._])?(backwards?|bwd|bw|rev|reversed?|r2l|rtl)([._].*)?", re.IGNORECASE
)
_KIND = r"(?:^|[._]|rnn|lstm|gru)"
_KIND_END = r"(?:[._0-9]|rnn|lstm|gru|$)"
_ENCODER = re.compile(f"{_KIND}(?:enc|encoder|src|source){_KIND_END}", re.IGNORECASE)
_DECODER = re.compile(f"{_KIND}(?:dec|decoder|tgt|trg|target){_KIND_END}", re.IGNORECASE)
_RENAME = (
    "a cell that computes as PyTorch's is read once its tensors are called weight_ih and bias_ih "
    "for the input, weight_hh and bias_hh for the state, with rows by gate: i, f, g, o of an LSTM, "
    "r, z, n of a GRU"
)
_MOST_SHOWN = 6
_DROPPED = "what weight drop left of the trained weight"

REPEATED = "repeated"
"""Why tensors are set aside that the file has under other names too."""
MOST_PARTS = 64
"""Modules of a kind in a language model: more than that are some other kind of network."""

Fields = dict[str, str]
"""Names of tensors by `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, `weight_hr`."""


@dataclass(frozen=True)
class Recurrent:
    """A recurrent module, of one or more layers."""

    prefix: str
    """What its parameters' names begin with, up to a dot."""
    layers: tuple[Fields, ...]
    """By layer, those that it should have; which of the biases, is the same for every layer."""
    gates: int
    inputs: int
    outputs: int
    is_shared: bool = False
    """Whether another module before it has the same weights."""

    @property
    def name(self) -> str:
        return self.prefix.rstrip(".")

    @property
    def is_cell(self) -> bool:
        """Whether it names its parameters as nn.LSTMCell does, not by layer as nn.LSTM."""
        return "_l0" not in self.layers[0]["weight_hh"]

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for fields in self.layers for name in fields.values())


def find_recurrent(tensors: Tensors) -> tuple[tuple[Recurrent, ...], tuple[str, ...]]:
    """Every recurrent module, in the file's order, and what that takes for granted.

    Raises CheckpointError.
    """
    modules = _parameters(tensors)
    if not modules:
        raise tensors.error(_no_recurrent(tensors))
    if len(modules) > MOST_PARTS:
        raise tensors.error(f"{len(modules)} recurrent modules, more than this release reads")
    found = [_recurrent(tensors, prefix, layers) for prefix, layers in modules.items()]
    kept, assumed = _without_repeated(tensors, found)
    _refuse_two_sequences(tensors, kept)
    return kept, assumed


def _no_recurrent(tensors: Tensors) -> str:
    """What is missing, what there is instead, and what may help."""
    problem = "no recurrent layer: no tensor is called weight_ih_l0, nor weight_ih"
    shown = ", ".join(map(tensors.shown, tensors.left[:_MOST_SHOWN]))
    if not shown:
        return problem
    more = len(tensors.left) - _MOST_SHOWN
    found = f"{shown} and {more} more" if more > 0 else shown
    return f"{problem}, but {found}: {_RENAME}"


def _refuse_two_sequences(tensors: Tensors, modules: tuple[Recurrent, ...]) -> None:
    """Raise CheckpointError where one module reads another text than the other continues."""
    encoders = [module.name for module in modules if _ENCODER.search(module.name)]
    decoders = [module.name for module in modules if _DECODER.search(module.name)]
    if encoders and decoders and encoders != decoders:
        raise tensors.error(
            f"{encoders[0]} and {decoders[0]} are the encoder and the decoder of a "
            "sequence-to-sequence model, which carries no single state from token to token"
        )


def read_layers(tensors: Tensors, module: Recurrent) -> tuple[Layer, ...]:
    """Take the module's tensors."""
    return tuple(_layer(tensors, fields, not module.is_shared) for fields in module.layers)


def _parameters(tensors: Tensors) -> dict[str, dict[str, Fields]]:
    """By module, then by what ends the names of a layer's tensors: `_l0`, or nothing."""
    modules: dict[str, dict[str, Fields]] = {}
    raw = _raw_weights(tensors)
    for name in tensors.left:
        _refuse_other_direction(tensors, name)
        if match := _PARAMETER.fullmatch(raw.get(name, name)):
            layers = modules.setdefault(match["module"], {})
            layers.setdefault(match["suffix"], {})[match["field"]] = name
    return modules


def _raw_weights(tensors: Tensors) -> dict[str, str]:
    """What weights under weight drop are called without it; sets their stale copies aside."""
    raw = {}
    for name in tensors.left:
        match = _PARAMETER.fullmatch(name.removesuffix("_raw"))
        if match and name.endswith("_raw"):
            module, field = match["module"], f"{match['field']}{match['suffix']}"
            inner = f"{module}module."
            is_inside = f"{module}weight_ih{match['suffix']}" not in tensors
            tensors.set_aside([f"{inner}{field}", f"{module}{field}"], _DROPPED)
            raw[name] = f"{inner if is_inside else module}{field}"
    return raw


def _refuse_other_direction(tensors: Tensors, name: str) -> None:
    if _REVERSE.fullmatch(name):
        raise tensors.error(
            f"{name} belongs to a bidirectional layer, which reads a text from its end as well "
            "and so cannot continue one"
        )
    match = _PARAMETER.fullmatch(name)
    if match and _BACKWARD.fullmatch(match["module"]):
        raise tensors.error(
            f"{name} is named as one that reads a text from its end, which cannot continue one"
        )


def _recurrent(tensors: Tensors, prefix: str, found: dict[str, Fields]) -> Recurrent:
    """The module as its shapes tell it; checks every shape."""
    layers = tuple(_complete(prefix, found))
    gates = _gates(tensors, layers[0])
    below = None
    for fields in layers:
        below = _check_layer(tensors, fields, gates, below)
    inputs = tensors.matrix_shape(layers[0]["weight_ih"])[1]
    return Recurrent(prefix, layers, gates, inputs, tensors.matrix_shape(fields["weight_hh"])[1])


def _complete(prefix: str, found: dict[str, Fields]) -> Iterator[Fields]:
    """The tensors that every layer should have: some may be missing from the file."""
    given = {field for fields in found.values() for field in fields}
    numbers = [int(suffix[2:]) for suffix in found if suffix]
    suffixes = [f"_l{index}" for index in range(1 + max(numbers))] if numbers else [""]
    for suffix in suffixes:
        fields = found.get(suffix, {})
        yield {
            field: fields.get(field, f"{prefix}{field}{suffix}")
            for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            if field in given or field in ("weight_ih", "weight_hh")
        }


def _gates(tensors: Tensors, fields: Fields) -> int:
    widest = fields.get("weight_hr", fields["weight_hh"])
    weight_ih = fields["weight_ih"]
    rows, units = tensors.matrix_shape(weight_ih)[0], tensors.matrix_shape(widest)[1]
    gates = rows // units if units and rows % units == 0 else 0
    if gates not in (1, 3, 4) or ("weight_hr" in fields and gates != 4):
        kind = "an LSTM that projects its hidden state, whose rows are 4"
        if "weight_hr" not in fields:
            kind = "a recurrent layer, whose rows are 1, 3 or 4"
        raise tensors.error(
            f"{tensors.shown(weight_ih)} and {tensors.shown(widest)} are not those of {kind} "
            "times its units"
        )
    return gates


def _check_layer(tensors: Tensors, fields: Fields, gates: int, below: int | None) -> int:
    """Check the shapes of a layer whose input is `below` wide (None: as wide as its weights
    say), and return the width of its output."""
    weight_ih, weight_hh = fields["weight_ih"], fields["weight_hh"]
    outputs = hidden = tensors.matrix_shape(weight_hh)[1]
    if "weight_hr" in fields:
        hidden = tensors.matrix_shape(fields["weight_hr"])[1]
        beside = tensors.shown(weight_hh)
        tensors.check_shape(fields["weight_hr"], (outputs, hidden), beside)
    inputs = tensors.matrix_shape(weight_ih)[1] if below is None else below
    rows = gates * hidden
    tensors.check_shape(weight_hh, (rows, outputs), f"{gates} gates of {hidden} units")
    above = f" above {below} units" if below else ""
    tensors.check_shape(weight_ih, (rows, inputs), tensors.shown(weight_hh) + above)
    for bias in ("bias_ih", "bias_hh"):
        if bias in fields:
            tensors.check_shape(fields[bias], (rows,), tensors.shown(weight_hh))
    return outputs


def _without_repeated(
    tensors: Tensors, modules: list[Recurrent]
) -> tuple[tuple[Recurrent, ...], tuple[str, ...]]:
    """Modules that a file holds under several names, once, and what that takes for granted.

    Those that a list numbers are layers that share weights.
    """
    kept: list[Recurrent] = []
    assumed: list[str] = []
    for module in modules:
        same = [other for other in kept if _is_repeated(tensors, module, other)]
        is_next = any(are_neighbours(other.name, module.name) for other in same)
        if is_next and module.inputs == module.outputs:
            kept.append(replace(module, is_shared=True))
        elif same:
            tensors.set_aside(module.tensors, REPEATED)
            assumed.append(f"{module.name} is {same[0].name} under another name, no further layer")
        else:
            kept.append(module)
    return tuple(kept), tuple(assumed)


def _is_repeated(tensors: Tensors, one: Recurrent, other: Recurrent) -> bool:
    return len(one.tensors) == len(other.tensors) and all(
        tensors.same(first, second)
        for first, second in zip(one.tensors, other.tensors, strict=True)
    )


def _layer(tensors: Tensors, fields: Fields, trained: bool) -> Layer:
    weight_ih = tensors.take(fields["weight_ih"], trained=trained)
    rows = len(weight_ih)
    return Layer(
        weight_ih,
        tensors.take(fields["weight_hh"], trained=trained),
        _bias(tensors, fields.get("bias_ih"), rows, trained),
        _bias(tensors, fields.get("bias_hh"), rows, trained),
        tensors.take(fields["weight_hr"], trained=trained) if "weight_hr" in fields else None,
    )


def _bias(tensors: Tensors, name: str | None, rows: int, trained: bool) -> Floats:
    return np.zeros(rows, np.float32) if name is None else tensors.take(name, trained=trained)

"""What a checkpoint claims of its model, held against what was read from its tensors.

Claims are plain values saved beside the tensors (`num_layers`, `bidirectional`) and attributes of
a pickled model's modules. One that the network does not bear out is an error: the tensors are then
of another model than was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from unrolled_export.network import Activation, Cell, Dense, Network
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.state_dicts.activations import Activations
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.hints import CELL_KEYS, PLAIN_CELL, Hints
from unrolled_export.readers.state_dicts.parts import Norm
from unrolled_export.readers.tensors import Tensors

_BOTH_WAYS = "reads a text from its end as well and so cannot continue one"
_RESIDUAL = "adds earlier values to later ones, which this release does not serve"
_SCALED = "multiplies embeddings as they are read, which this release does not serve"
_LOGITS = "multiplies the scores of tokens, which this release does not serve"
_CELL = "has cells that compute something else than PyTorch's"
_HIGHWAY = "has highway layers, which this release does not serve"
_FROM_END = "reads a text from its end and cannot continue one"
_SEQUENCES = "reads another text than it continues, so there is no single state"
_ATTENTION = "attends to all steps, which is not a state carried from token to token"
_UNSERVED = {
    "bidirectional": _BOTH_WAYS,
    "bidir": _BOTH_WAYS,
    **dict.fromkeys(("residual", "residuals", "residual_connection"), _RESIDUAL),
    **dict.fromkeys(("residual_connections", "skip_connection", "skip_connections"), _RESIDUAL),
    **dict.fromkeys(("scale_embedding", "scale_embeddings", "embedding_scale"), _SCALED),
    **dict.fromkeys(("residual_rnn", "residual_lstm", "residual_gru"), _RESIDUAL),
    **dict.fromkeys(("residual_layers", "skip", "skips", "skip_connect"), _RESIDUAL),
    **dict.fromkeys(("highway", "highways"), _HIGHWAY),
    **dict.fromkeys(("embed_scale", "emb_scale", "scale_emb", "scale_embed"), _SCALED),
    **dict.fromkeys(("emb_mult", "embedding_mult", "embedding_multiplier"), _SCALED),
    **dict.fromkeys(("logit_scale", "logits_scale", "logit_multiplier"), _LOGITS),
    **dict.fromkeys(("zoneout", "zoneout_h", "zoneout_c", "zoneout_p", "zoneout_prob"), _CELL),
    **dict.fromkeys(("cell_clip", "proj_clip", "peephole", "peepholes"), _CELL),
    **dict.fromkeys(("cifg", "coupled_input_forget", "coupled_input_forget_gate"), _CELL),
    "hard_sigmoid": _CELL,
    **dict.fromkeys(("backward", "backwards", "is_backward", "reverse"), _FROM_END),
    **dict.fromkeys(("reversed", "go_backwards"), _FROM_END),
    **dict.fromkeys(("attention", "attn"), _ATTENTION),
}
_VALUES = {
    "direction": ("backward", _FROM_END),
    "is_forward": (False, _FROM_END),
    "is_forward_lm": (False, _FROM_END),
    "num_directions": (2, _BOTH_WAYS),
}
"""Of these keys one value alone is not served."""
_CLASS_WORDS = {
    **dict.fromkeys(("residual", "skip"), _RESIDUAL),
    "highway": _HIGHWAY,
    **dict.fromkeys(("attention", "attn", "attentive"), _ATTENTION),
    **dict.fromkeys(("zoneout", "peephole", "mogrifier"), _CELL),
    **dict.fromkeys(("backward", "reverse", "reversed"), _FROM_END),
    "seq2seq": _SEQUENCES,
}
"""In the name of a class that is not PyTorch's."""
_WORD = re.compile(r"seq2seq|[A-Z]+(?![a-z])|[A-Z]?[a-z]+", re.ASCII)
_NORMS = {
    **dict.fromkeys(("layer_norm", "layernorm", "layer_normalization", "ln"), "layer norm"),
    **dict.fromkeys(("batch_norm", "batchnorm", "batch_normalization", "bn"), "batch norm"),
}
_NORM_KEYS = ("norm", "norm_type", "norm_layer", "normalization")
"""Whose values are such names, or these."""
_NORM_VALUES = {**_NORMS, "layer": "layer norm", "batch": "batch norm"}
_GATE_KEYS = ("recurrent_activation", "gate_activation", "inner_activation")
_TIES = re.compile(
    r"(tied|tie|shared?)(_\w+)?_?(weights?|embeddings?|embs?|embed|input_output_embed)|tied|tie"
)
_ACTIVATION_KEYS = (
    *("activation", "act", "act_fn", "activation_fn", "activation_function"),
    *("final_activation", "output_activation", "out_activation", "out_act"),
)
_OF_ANY_MODEL = frozenset(
    {"", "none", "linear", "identity", "tanh", "softmax", "log_softmax", "logsoftmax"}
)
"""Activations that say nothing: none, that of the cells, and what makes probabilities."""
_WIDTH_KEYS = frozenset(
    {
        "hidden_dim",
        "hidden_size",
        "hidden_units",
        "layer_size",
        "lstm_hidden_size",
        "n_hid",
        "n_hidden",
        "nhid",
        "num_hidden",
        "rnn_hidden_size",
        "rnn_size",
    }
)
_COUNT_KEYS = frozenset(
    {"n_layers", "n_rnn_layers", "nlayers", "num_layers", "num_rnn_layers", "rnn_layers"}
)
_VERB = re.compile(r"^(use|with|is|has|add|apply)_")
_GATED = re.compile(r"(?:.*\.)?(lstm|gru)(?:cell)?", re.IGNORECASE)


class _Claim(NamedTuple):
    where: str
    key: str
    value: object

    @property
    def subject(self) -> str:
        """The key without `use_` and the like."""
        return _VERB.sub("", self.key.lower())

    @property
    def is_affirmed(self) -> bool:
        if isinstance(self.value, str):
            return self.value.lower() not in ("", "0", "false", "linear", "no", "none", "off")
        return isinstance(self.value, int | float) and bool(self.value)

    def __str__(self) -> str:
        return f"{self.where} has {self.key}={self.value}"


def refuse_unserved(tensors: Tensors, modules: Modules, hints: Hints) -> None:
    """Raise CheckpointError where the checkpoint says that it is of a kind not served."""
    _refuse_classes(tensors, modules)
    for claim in _claims(modules, hints):
        reason = _UNSERVED.get(claim.subject)
        is_scale = reason in (_SCALED, _LOGITS)
        is_scale_of_one = is_scale and claim.value == 1 and claim.value is not True
        if reason is not None and claim.is_affirmed and not is_scale_of_one:
            raise tensors.error(f"{claim}: it {reason}")
        value, reason = _VALUES.get(claim.key, (claim, ""))
        if claim.value == value:
            raise tensors.error(f"{claim}: it {reason}")
        if claim.key in _GATE_KEYS and str(claim.value).rpartition(".")[2].lower() != "sigmoid":
            raise tensors.error(f"{claim}: it {_CELL}")
        if claim.key == "max_norm" and claim.value is not None:
            raise tensors.error(
                f"{claim}: it rescales embeddings as they are read, which this release does not "
                "serve"
            )


def _refuse_classes(tensors: Tensors, modules: Modules) -> None:
    """Raise CheckpointError for a class that is called as one that is not served."""
    for path, module in modules.items():
        words = _WORD.findall(module.class_name.replace("Seq2Seq", "seq2seq"))
        reasons = [_CLASS_WORDS[word.lower()] for word in words if word.lower() in _CLASS_WORDS]
        if reasons and module.torch_class is None:
            raise tensors.error(
                f"{_module_shown(path, module)} is called as one that {reasons[0]} (where it only "
                "is called so, convert its state_dict() instead)"
            )


def _module_shown(path: str, module: Module) -> str:
    return f"module {path} ({module.class_name})" if path else f"the {module.class_name}"


def check_claims(
    tensors: Tensors,
    chain: Chain,
    network: Network,
    activations: Activations,
    modules: Modules,
    hints: Hints,
) -> None:
    """Raise CheckpointError for a claim that contradicts the network or goes beyond it, and
    SettingNeeded for an activation of which nothing tells the place."""
    applied = {*activations.after.values(), activations.at_head}
    if network.cell is Cell.RNN_RELU:
        applied.add(Activation.RELU)
    for claim in _claims(modules, hints):
        _check_size(tensors, claim, chain, network)
        _check_norm(tensors, claim, chain)
        _check_cell(tensors, claim, network.cell)
        if claim.key == "reset_after" and claim.value is False and network.cell is Cell.GRU:
            raise tensors.error(f"{claim}: it {_CELL}")
        _check_tie(tensors, claim, chain)
        if not activations.is_told:
            _check_activation(tensors, claim, applied)


def _claims(modules: Modules, hints: Hints) -> Iterator[_Claim]:
    for key, value in hints.items():
        where, _, name = key.rpartition(".")
        yield from _printable(where or "the checkpoint", name, value)
    for path, module in modules.items():
        for key, value in module.attributes.items():
            yield from _printable(_module_shown(path, module), key, value)


def _printable(where: str, key: str, value: object) -> Iterator[_Claim]:
    """The claim, unless quoting it would garble a message: none that matters does."""
    if f"{where}{key}".isprintable() and str(value).isprintable():
        yield _Claim(where, key, value)


def _check_size(tensors: Tensors, claim: _Claim, chain: Chain, network: Network) -> None:
    if isinstance(claim.value, bool) or not isinstance(claim.value, int):
        return
    if claim.key in _WIDTH_KEYS and claim.value not in _widths(network):
        sizes = ", ".join(str(layer.hidden_size) for layer in network.layers)
        raise tensors.error(f"{claim}, but the recurrent layers have {sizes} units")
    if claim.key in _COUNT_KEYS and claim.value not in _counts(chain):
        raise tensors.error(f"{claim}, but the recurrent layers found are {len(network.layers)}")


def _widths(network: Network) -> set[int]:
    """Whatever may be called the hidden size."""
    layers = {size for layer in network.layers for size in (layer.hidden_size, layer.output_size)}
    return layers | {len(stage.bias) for stage in network.stages if isinstance(stage, Dense)}


def _counts(chain: Chain) -> set[int]:
    """Layers of each recurrent module, and of all."""
    counts = [len(module.layers) for module in chain.recurrent]
    return {*counts, sum(counts), len(counts)}


def _check_norm(tensors: Tensors, claim: _Claim, chain: Chain) -> None:
    subject = claim.subject.replace("isation", "ization")
    if subject in _NORM_KEYS:
        kind = _NORM_VALUES.get(str(claim.value).lower())
    else:
        kind = _NORMS.get(subject)
    if kind is None or not claim.is_affirmed:
        return
    is_batch = kind == "batch norm"
    if not any(isinstance(part, Norm) and part.is_batch is is_batch for part in chain.parts):
        raise tensors.error(f"{claim}, but no tensors are of a {kind}")


def _check_cell(tensors: Tensors, claim: _Claim, cell: Cell) -> None:
    if claim.key not in CELL_KEYS or not isinstance(claim.value, str):
        return
    gated, plain = _GATED.fullmatch(claim.value), PLAIN_CELL.fullmatch(claim.value)
    said = gated[1].lower() if gated else f"rnn_{plain[1].lower()}" if plain else cell
    if said != cell:
        raise tensors.error(f"{claim}, but the tensors are those of the cell {cell}")


def _check_tie(tensors: Tensors, claim: _Claim, chain: Chain) -> None:
    if chain.is_tie_assumed and claim.value is False and _TIES.search(claim.key.lower()):
        raise tensors.error(f"{claim}, but the file has no head beside {chain.ends.head.weight}")


def _check_activation(tensors: Tensors, claim: _Claim, applied: set[Activation]) -> None:
    is_of_cell = claim.subject == "nonlinearity"
    if not (is_of_cell or claim.subject in _ACTIVATION_KEYS or claim.key == "head_activation"):
        return
    if not isinstance(claim.value, str):
        return
    value = claim.value.rpartition(".")[2].lower()
    if value in _OF_ANY_MODEL or value in applied:
        return
    if value not in tuple(Activation):
        raise tensors.error(f"{claim}, which this release does not serve")
    raise tensors.unsettled(
        f"{claim}, but the file does not tell where it is applied",
        "head_activation",
        (value, Activation.LINEAR),
    )

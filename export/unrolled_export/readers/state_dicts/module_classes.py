"""What the classes of a pickled model's modules mean for its reading.

Only their names are known, never their code. Classes of torch.nn are read, without effect at
inference, or refused; of any other class something has to be assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from unrolled_export.network import Cell
from unrolled_export.readers.pytorch_files.module_info import Modules
from unrolled_export.readers.state_dicts.activations import ACTIVATION_CLASSES, NORMALISED_CLASSES
from unrolled_export.readers.state_dicts.chains import Chain
from unrolled_export.readers.state_dicts.parts import Matrix, Norm, Part
from unrolled_export.readers.state_dicts.recurrent import Recurrent
from unrolled_export.readers.tensors import Tensors

_READ = frozenset(
    {
        *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
        *("Linear", "Embedding", "LayerNorm", "BatchNorm1d"),
        *("ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Sequential"),
        *("Identity", "DataParallel", "DistributedDataParallel", "WeightDrop", "WeightDropout"),
    }
)
"""Classes that say no more than their tensors do, beside dropouts, losses and activations."""
_UNREAD = re.compile(
    r"(Lazy|Adaptive|Fractional|LP|Max|Avg|Circular|Constant|Reflection|Replication|Zero|Batch|"
    r"Instance|Conv|Transpose|Pool|Unpool|Pad|Norm)+[123]d"
    r"|(Group|RMS|LocalResponse|SyncBatch)Norm|CrossMapLRN2d|LazyLinear"
    r"|Softmax2d|Bilinear|EmbeddingBag|MultiheadAttention|Transformer(En|De)?(coder)?(Layer)?"
    r"|(Unf|F)latten|(Unf|F)old|Upsampl(e|ing(Bilinear|Nearest)2d)|Pixel(Uns|S)huffle"
    r"|ChannelShuffle|CosineSimilarity|PairwiseDistance|AdaptiveLogSoftmaxWithLoss"
)
"""All other modules of torch.nn."""


def refuse_unread_classes(tensors: Tensors, modules: Modules) -> None:
    """Raise CheckpointError for a module of torch.nn that changes what the model computes in a
    way that is not read."""
    for path, module in modules.items():
        name = module.class_name
        if name not in _READ and _UNREAD.fullmatch(name):
            raise tensors.error(
                f"module {path or '.'} ({name}) is of a class that this release does not serve"
            )


def is_known(name: str) -> bool:
    """Whether a class says no more than its tensors and its place do."""
    return (
        name in _READ | ACTIVATION_CLASSES | NORMALISED_CLASSES
        or "Dropout" in name
        or name.endswith(("Loss", "Loss2d", "DP"))
    )


def assumed_of_classes(chain: Chain, cell: Cell, modules: Modules) -> Iterator[str]:
    """What is taken for granted of modules whose classes are not known."""
    parts = {part.name: part for part in chain.parts}
    ends = (chain.ends.embedding, chain.ends.head)
    parts |= {end.name: end for end in ends if end is not None}
    running: list[str] = []
    idle: list[str] = []
    for path, module in modules.items():
        name = module.class_name
        if is_known(name):
            continue
        if path in parts:
            yield f"{name} computes as nn.{_standard(parts[path], chain, cell)}"
        elif _has_modules(path, modules):
            running.append(name)
        else:
            idle.append(name)
    yield from _assumed(running, "to apply its modules one after another and nothing else")
    yield from _assumed(idle, "to change nothing")


def _standard(part: Part, chain: Chain, cell: Cell) -> str:
    """The class of torch.nn that has such tensors."""
    if isinstance(part, Norm):
        return "BatchNorm1d" if part.is_batch else "LayerNorm"
    if isinstance(part, Matrix):
        return "Embedding" if part is chain.ends.embedding else "Linear"
    kind = {Cell.LSTM: "LSTM", Cell.GRU: "GRU"}.get(cell, "RNN")
    return kind if _is_whole(part) else f"{kind}Cell"


def _is_whole(part: Recurrent) -> bool:
    """Whether it names its parameters by layer, as nn.LSTM does and nn.LSTMCell does not."""
    return "_l0" in part.layers[0]["weight_hh"]


def _has_modules(path: str, modules: Modules) -> bool:
    start = f"{path}." if path else ""
    return any(other != path and other.startswith(start) for other in modules)


def _assumed(names: Sequence[str], what: str) -> Iterator[str]:
    """One phrase for all classes."""
    if distinct := list(dict.fromkeys(names)):
        verb = "is" if len(distinct) == 1 else "are"
        phrase = what if len(distinct) == 1 else what.replace("its", "their")
        yield f"{', '.join(distinct)} {verb} taken {phrase}"

"""What the names of modules' classes tell: of those of torch.nn, and of some that do the same."""

from __future__ import annotations

import re

from unrolled_export.network import Activation
from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.tensors import Tensors

SERVED_CLASSES = {"ReLU": Activation.RELU, "Tanh": Activation.TANH, "Sigmoid": Activation.SIGMOID}
_NOT_SERVED = frozenset(
    {
        "CELU",
        "ELU",
        "GELU",
        "GLU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "ReLU6",
        "RReLU",
        "SELU",
        "SiLU",
        "Softmin",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanhshrink",
        "Threshold",
    }
)
ACTIVATION_CLASSES = _NOT_SERVED | SERVED_CLASSES.keys()
NORMALISED_CLASSES = frozenset({"Softmax", "LogSoftmax"})
"""What makes probabilities of the head's output, which the distribution does not depend on."""
_READ = frozenset(
    {
        *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
        *("Linear", "Embedding", "LayerNorm", "BatchNorm1d"),
        *("ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Sequential"),
        *("Identity", "DataParallel", "DistributedDataParallel"),
    }
)
"""Classes of PyTorch that say no more than their tensors do, beside dropouts and losses."""
TORCH_NAMES = _READ | ACTIVATION_CLASSES | NORMALISED_CLASSES
_OF_FAMILIES = frozenset(
    {
        *("WeightDrop", "WeightDropout", "EmbeddingDropout"),
        *("DistributedDataParallel", "AveragedModel", "OptimizedModule"),
    }
)
"""Classes elsewhere that do the same: of awd-lstm-lm and fastai, of apex and PyTorch itself."""
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


def is_known(module: Module, *, is_empty: bool) -> bool:
    """Whether its class says no more than its tensors and its place do; `is_empty` where it holds
    neither tensors nor modules."""
    name = module.class_name
    if module.torch_class is not None:
        return name in TORCH_NAMES or "Dropout" in name or name.endswith(("Loss", "Loss2d"))
    return name in _OF_FAMILIES or (is_empty and ("Dropout" in name or name.endswith("Loss")))

"""The parts of a state dict beside its recurrent layers: matrices and normalisations.

A matrix is a tensor of two dimensions, with the bias beside it if there is one: an embedding,
a head or a linear stage. A layer norm is a weight and a bias of one dimension, a batch norm has
`running_mean` and `running_var` too. What looks like none of these stays left over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unrolled_export.readers.pytorch_files.module_info import Module, Modules
from unrolled_export.readers.state_dicts.recurrent import MOST_PARTS, REPEATED, Recurrent
from unrolled_export.readers.tensors import Tensors

_INSIDE = "a normalisation inside the cells, which this release does not serve"
_NORM = re.compile(r"([a-z]*norm|ln|bn)[a-z0-9_]*\.", re.IGNORECASE)
_KEPT = r"([ch]x?|cell|gates?)"
_ANY_NORM = r"(ln|bn|((layer|batch)_?)?norm)"
_NORM_OF_STATE = re.compile(
    rf"(.*[._])?({_ANY_NORM}_?{_KEPT}|{_KEPT}_?{_ANY_NORM})[0-9]*[._]\w+", re.IGNORECASE
)
"""Beside a cell of one step, whose state the model carries itself."""
_FOREIGN = {
    "an attention over all steps, which is not a state carried from token to token": (
        r".*(attn|attention|transformer|(^|[._])(query|q_proj|w_?q)([._]|$))"
    ),
    "a convolution, which reads several tokens at once": r"(.*[._])?conv(s|[0-9]d?|)([._].*)?$",
    "an adaptive softmax or input, which this release does not serve": (
        r".*(adaptive|tail(\.[0-9]|_vectors))"
    ),
    "a highway layer, which this release does not serve": r".*highway",
    "a mogrifier, which changes what a cell reads by its state and is not served": r".*mogrif",
    "a first state that is made of something else than a text, which is not served": (
        r".*(^|[._])(init_?(h|c|hidden|cell)|(latent|z)_?(to|2)_?(h|hidden))[._]weight$"
    ),
    _INSIDE: (r".*((ln|norm)_?(ih|hh|cell)([._]|$)|layernorm_[ihc]([._]|$))"),
    "a cell with peepholes, which this release does not serve": r".*(peephole|weight_c[ifoh]\b)",
}
"""What tensors and classes may belong to, by their names: each can not be served."""
_TRAINING_ONLY = re.compile(
    r"criterion|loss(_fn)?|metrics?|\w+_(acc|accuracy|metrics?)", re.IGNORECASE
)
_MOST_MATRICES = 24
_NORM_CLASSES = ("LayerNorm", "BatchNorm1d")


@dataclass(frozen=True)
class Matrix:
    """A tensor [outputs, inputs], under every name that the file has it."""

    names: tuple[str, ...]
    biases: tuple[str, ...]
    """[outputs], beside one of the names."""
    outputs: int
    inputs: int

    @property
    def name(self) -> str:
        return module_of(self.names[0])

    @property
    def bias(self) -> str | None:
        return self.biases[0] if self.biases else None

    @property
    def weight(self) -> str:
        return self.names[0]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of those that its use takes."""
        return self.names if self.bias is None else (*self.names, self.bias)


@dataclass(frozen=True)
class Norm:
    """A layer norm, or with running statistics a batch norm, over `size` elements."""

    name: str
    size: int
    weight: str | None
    bias: str | None
    is_batch: bool

    @property
    def inputs(self) -> int:
        return self.size

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def mean(self) -> str:
        return _inside(self.name, "running_mean")

    @property
    def variance(self) -> str:
        return _inside(self.name, "running_var")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of those that its use takes."""
        statistics = (self.mean, self.variance) if self.is_batch else ()
        return (*(name for name in (self.weight, self.bias) if name is not None), *statistics)


Part = Recurrent | Matrix | Norm
"""What a token's vector passes on its way from the embedding to the head."""


def module_of(tensor: str) -> str:
    """The dotted path of the module that a tensor belongs to; its own name without one."""
    return tensor.removesuffix("weight").removesuffix("bias").rstrip(".") or tensor


def beside(weight: str, field: str) -> str | None:
    """What a tensor would be called that belongs to a weight; None where it is called no weight."""
    return weight.removesuffix("weight") + field if weight.endswith("weight") else None


def refuse_foreign(tensors: Tensors, recurrent: Sequence[Recurrent], modules: Modules) -> None:
    """Raise CheckpointError for tensors or modules of something that cannot be served."""
    for reason, expression in _FOREIGN.items():
        pattern = re.compile(expression, re.IGNORECASE)
        for name in tensors.left:
            if pattern.match(name):
                raise tensors.error(f"tensors left over: {tensors.shown(name)}, of {reason}")
        for path, module in modules.items():
            if path and pattern.match(module.class_name):
                raise tensors.error(f"module {path} ({module.class_name}) is {reason}")
    for name in tensors.left:
        if any(_is_norm_inside(name, part) for part in recurrent):
            raise tensors.error(f"tensors left over: {tensors.shown(name)}, of {_INSIDE}")


def _is_norm_inside(name: str, part: Recurrent) -> bool:
    if part.is_cell and _NORM_OF_STATE.fullmatch(name):
        return True
    is_within = part.name != "" and name.startswith(part.prefix)
    return is_within and _NORM.match(name.removeprefix(part.prefix)) is not None


def training_only(tensors: Tensors) -> tuple[str, ...]:
    """Names of the tensors left that a loss or a metric keeps beside the model.

    A matrix may be the head, which some losses own: neither it nor its bias is one of them.
    """
    matrices = [name for name in tensors.left if len(tensors.shape(name)) == 2]
    of_matrices = {*matrices, *(beside(name, "bias") for name in matrices)}
    return tuple(
        name
        for name in tensors.left
        if name not in of_matrices
        and any(_TRAINING_ONLY.fullmatch(part) for part in name.split("."))
    )


def find_norms(tensors: Tensors, modules: Modules) -> tuple[Norm, ...]:
    """Every normalisation among the tensors left, and those that have no weights at all."""
    found = {norm.name: norm for norm in _weighted_norms(tensors, modules)}
    for path, module in modules.items():
        if path not in found and module.class_name in _NORM_CLASSES:
            found[path] = _weightless_norm(tensors, path, module)
    if len(found) > MOST_PARTS:
        raise tensors.error(f"{len(found)} normalisations, more than this release reads")
    return tuple(found.values())


def find_matrices(tensors: Tensors) -> tuple[Matrix, ...]:
    """Every distinct matrix among the tensors left. Sets repetitions of biases aside."""
    names = [name for name in tensors.left if len(tensors.shape(name)) == 2]
    if len(names) > _MOST_MATRICES:
        raise tensors.error(f"{len(names)} matrices, more than this release reads")
    groups: list[list[str]] = []
    for name in names:
        group = next((group for group in groups if tensors.same(group[0], name)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return tuple(_matrix(tensors, tuple(group)) for group in groups)


def _weighted_norms(tensors: Tensors, modules: Modules) -> Iterator[Norm]:
    left = set(tensors.left)
    for name in tensors.left:
        path, _, field = name.rpartition(".")
        is_batch = _inside(path, "running_mean") in left
        if len(tensors.shape(name)) != 1 or field != ("running_mean" if is_batch else "weight"):
            continue
        weight, bias = (
            affine if (affine := _inside(path, parameter)) in left else None
            for parameter in ("weight", "bias")
        )
        # A lone weight may be of a norm that does not subtract the mean.
        if is_batch or bias is not None or _class(modules, path) == "LayerNorm":
            _check_class(tensors, modules, path, is_batch)
            norm = Norm(path, tensors.shape(name)[0], weight, bias, is_batch)
            yield _checked(tensors, norm, name)


def _checked(tensors: Tensors, norm: Norm, first: str) -> Norm:
    """The norm, once all of its tensors are of one size."""
    for name in norm.tensors:
        tensors.check_shape(name, (norm.size,), tensors.shown(first))
    return norm


def _weightless_norm(tensors: Tensors, path: str, module: Module) -> Norm:
    """A layer norm that the pickled model has without weights."""
    shape = module.attributes.get("normalized_shape")
    size = shape[0] if isinstance(shape, tuple) and len(shape) == 1 else shape
    if module.class_name != "LayerNorm" or not isinstance(size, int):
        raise tensors.error(f"module {path} ({module.class_name}) has neither weights nor a size")
    return Norm(path, size, None, None, False)


def _check_class(tensors: Tensors, modules: Modules, path: str, is_batch: bool) -> None:
    """Raise CheckpointError where the pickled model says that a norm is of another kind."""
    name, expected = _class(modules, path), "BatchNorm" if is_batch else "LayerNorm"
    if name is not None and expected not in name:
        raise tensors.error(f"module {path} is a {name}, which this release does not serve")


def _class(modules: Modules, path: str) -> str | None:
    return modules[path].class_name if path in modules else None


def _matrix(tensors: Tensors, names: tuple[str, ...]) -> Matrix:
    outputs, inputs = tensors.matrix_shape(names[0])
    biases: list[str] = []
    for name in names:
        bias = beside(name, "bias")
        if bias is None or bias not in tensors:
            continue
        tensors.check_shape(bias, (outputs,), tensors.shown(name))
        if any(tensors.same(bias, other) for other in biases):
            tensors.set_aside([bias], REPEATED)
        else:
            biases.append(bias)
    return Matrix(names, tuple(biases), outputs, inputs)


def _inside(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field

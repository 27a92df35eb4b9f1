"""Every `--set KEY=VALUE` that a reading may ask for. The table of them is in export/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Setting:
    """A key, in which capitals stand for a name, and what it is for."""

    key: str
    values: tuple[str, ...]
    """All that it takes; one word in capitals where that is in the checkpoint or a number."""
    says: str
    needed: str
    """When it is asked for or taken."""

    @property
    def is_free(self) -> bool:
        """Whether its values are not a fixed few."""
        return self.values[0].isupper()

    def is_of(self, key: str) -> bool:
        """Whether it is the setting of this key, be it for one part: `KEY.PART`."""
        fixed = self.key.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        return key.partition(".")[0] == fixed if fixed == self.key else key.startswith(fixed)


SETTINGS = (
    Setting(
        "vocabulary",
        ("character", "byte", "word"),
        "what the tokens are",
        "a list that may be of words or of groups of characters; `byte` without `--vocab`: all 256",
    ),
    Setting(
        "unknown_token",
        ("TOKEN",),
        "the token for what the vocabulary lacks",
        "one that is not spelled `<unk>` or the like",
    ),
    Setting(
        "unused_rows",
        ("drop",),
        "weights without the rows of ids that no token has: the other tokens' probabilities then "
        "add up to 1",
        "fewer tokens than rows, where the number of rows was rounded up",
    ),
    Setting(
        "model",
        ("PLACE",),
        "the model, by its place in the file",
        "a file with several",
    ),
    Setting(
        "nonlinearity",
        ("tanh", "relu"),
        "the activation of plain RNN layers",
        "files of tensors",
    ),
    Setting(
        "input",
        ("embedding", "one-hot", "scaled-id", "id"),
        "what the first layer reads; the last two: one number, the id over the number of tokens or "
        "the id",
        "a head that may also be a tied embedding; Keras layers that read one number",
    ),
    Setting(
        "input_activation",
        _ACTIVATIONS,
        "the activation after the embedding or the linear stages before the layers",
        "linear stages there",
    ),
    Setting(
        "head_activation",
        _ACTIVATIONS,
        "the activation after the layers or the linear stages in front of the head",
        "linear stages there; activations whose place is open",
    ),
    Setting(
        "head",
        ("TENSOR",),
        "the weights of the head",
        "several that may be",
    ),
    Setting(
        "norm",
        ("before", "after"),
        "where a norm stands, seen from the layers",
        "norms whose name and width leave it open",
    ),
    Setting(
        "norm_epsilon",
        ("NUMBER",),
        "the epsilon of layer and batch norms",
        "norms in files of tensors",
    ),
    Setting(
        "order",
        ("PARTS",),
        "the parts in their order, with commas, as the error lists them",
        "widths that allow several orders",
    ),
    Setting(
        "ignore",
        ("PATTERNS",),
        "tensors that the output does not depend on: names, `*` and `?` in them, commas between",
        "tensors left over, a value head say",
    ),
    Setting(
        "architecture",
        ("FILE",),
        "the JSON file of a Keras model's architecture",
        "several beside the weights that fit",
    ),
    Setting(
        "keras_version",
        ("2", "3"),
        "the Keras whose `hard_sigmoid` it is",
        "files that tell no version",
    ),
    Setting(
        "dense_activation",
        _ACTIVATIONS,
        "the activation of Dense layers below the head",
        "Keras weights without an architecture",
    ),
    Setting(
        "recurrent_activation",
        ("sigmoid", "hard_sigmoid"),
        "the activation of gates",
        "Keras weights without an architecture",
    ),
    Setting(
        "reset_after",
        ("true", "false"),
        "whether a GRU's reset gate comes after the product",
        "Keras weights without an architecture or biases",
    ),
    Setting(
        "after_NORM",
        ("LAYER",),
        "the layer on which this norm stands",
        "Keras weights without an architecture, layers of one width",
    ),
)


def check_known(key: str, choices: Sequence[str] = ()) -> None:
    """Raise LookupError for a key or choice that is not among SETTINGS, as nobody could know it."""
    setting = next((setting for setting in SETTINGS if setting.is_of(key)), None)
    if setting is None or not (setting.is_free or set(choices) <= set(setting.values)):
        raise LookupError(f"--set {key} with {', '.join(choices) or 'any value'}: not in SETTINGS")


def keys() -> str:
    """All keys, in words."""
    return ", ".join(setting.key for setting in SETTINGS)

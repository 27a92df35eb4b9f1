"""Models to measure with: random weights, exported once by the real command."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import unrolled_export
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bench.progress import say

CHARACTERS = "\n" + string.printable[:95]
"""The vocabulary: a line break and printable ASCII."""


@dataclass(frozen=True)
class Recipe:
    """An LSTM language model, and the precisions it is exported in.

    Weights are those of PyTorch's initialisation, uniform within 1/sqrt(hidden), times `gain`; the
    head's are once more times `head_gain`, so that the distribution is far from uniform.
    """

    layers: int
    hidden: int
    precisions: tuple[str, ...] = ("fp32",)
    embedding: int = 64
    gain: float = 3.0
    head_gain: float = 10.0
    seed: int = 1

    @property
    def name(self) -> str:
        return f"lstm-{self.layers}x{self.hidden}"

    @property
    def state_bytes(self) -> int:
        """Of one session: hidden and cell state in float32."""
        return 2 * 4 * self.layers * self.hidden


@dataclass(frozen=True)
class Models:
    """The exported models of one recipe."""

    recipe: Recipe
    folder: Path

    @property
    def served(self) -> Path:
        """What the server is given."""
        return self.folder / "served"

    @property
    def checkpoint(self) -> Path:
        """The weights as a state_dict."""
        return self.folder / "checkpoint.safetensors"

    def name(self, precision: str) -> str:
        """What the server calls the model of this precision."""
        return f"{self.recipe.name}-{precision}"

    def version(self, precision: str) -> Path:
        """The folder of this precision's graphs."""
        return self.served / self.name(precision) / "1"


class ModelCache:
    """Folders of models by recipe; made anew where recipe or exporter have changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exporter = _exporter_digest()

    def models(self, recipe: Recipe) -> Models:
        """The models of a recipe, exported first where they are not there."""
        models = Models(recipe, self._folder / f"{recipe.name}-{self._digest(recipe)}")
        if not models.folder.exists():
            stale = list(self._folder.glob(f"{recipe.name}-*"))
            partial = Models(recipe, self._folder / f"partial-{recipe.name}")
            shutil.rmtree(partial.folder, ignore_errors=True)
            _make(partial)
            partial.folder.rename(models.folder)
            for folder in stale:
                shutil.rmtree(folder)
        return models

    def _digest(self, recipe: Recipe) -> str:
        """Of all that the exported files depend on."""
        recipe_and_exporter = json.dumps([asdict(recipe), self._exporter])
        return hashlib.sha256(recipe_and_exporter.encode()).hexdigest()[:12]


def _exporter_digest() -> str:
    """Of the sources that make graphs; readers and trainer are in folders of their own."""
    digest = hashlib.sha256()
    for source in sorted(Path(unrolled_export.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _make(models: Models) -> None:
    models.folder.mkdir(parents=True)
    save_file(weights(models.recipe), models.checkpoint)
    vocabulary = models.folder / "vocabulary.json"
    vocabulary.write_text(json.dumps(list(CHARACTERS)))
    for precision in models.recipe.precisions:
        say(f"exporting {models.name(precision)}")
        command = [sys.executable, "-m", "unrolled_export", "convert", str(models.checkpoint)]
        command += ["--vocab", str(vocabulary), "--start-token", "\\n", "--precision", precision]
        command += ["--output", str(models.served), "--name", models.name(precision)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def weights(recipe: Recipe) -> dict[str, NDArray[np.float32]]:
    """A PyTorch state_dict: `embed`, `rnn` (torch.nn.LSTM) and `out`."""
    random, bound = np.random.default_rng(recipe.seed), recipe.gain / recipe.hidden**0.5
    gates, size = 4 * recipe.hidden, len(CHARACTERS)

    def uniform(*shape: int, gain: float = 1.0) -> NDArray[np.float32]:
        return random.uniform(-gain * bound, gain * bound, shape).astype(np.float32)

    tensors = {"embed.weight": random.normal(size=(size, recipe.embedding)).astype(np.float32)}
    for layer in range(recipe.layers):
        below = recipe.hidden if layer else recipe.embedding
        tensors[f"rnn.weight_ih_l{layer}"] = uniform(gates, below)
        tensors[f"rnn.weight_hh_l{layer}"] = uniform(gates, recipe.hidden)
        tensors[f"rnn.bias_ih_l{layer}"] = uniform(gates)
        tensors[f"rnn.bias_hh_l{layer}"] = uniform(gates)
    tensors["out.weight"] = uniform(size, recipe.hidden, gain=recipe.head_gain)
    tensors["out.bias"] = uniform(size)
    return tensors

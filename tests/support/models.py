"""Small models with random weights, made in PyTorch and exported by the real command."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from unrolled_export.__main__ import main as export_main

CHARACTERS = string.ascii_letters + " .,\n"


class TorchModel(nn.Module):
    """A language model as somebody would write it: the oracle, and the source of checkpoints."""

    def __init__(
        self, kind: str, hidden: int, layers: int, embedding: int | None, characters: str
    ) -> None:
        super().__init__()
        self.characters = characters
        size = len(characters)
        self.embed = None if embedding is None else nn.Embedding(size, embedding)
        module = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.rnn = module(embedding or size, hidden, layers, batch_first=True)
        self.out = nn.Linear(hidden, size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, T, V] of what follows each of `ids` [B, T], from zero state."""
        if self.embed is None:
            inputs = nn.functional.one_hot(ids, len(self.characters)).float()
        else:
            inputs = self.embed(ids)
        logits: torch.Tensor = self.out(self.rnn(inputs)[0])
        return logits.log_softmax(-1)


@dataclass(frozen=True)
class Recipe:
    """A model of the test repository."""

    name: str
    kind: str
    hidden: int
    layers: int
    embedding: int | None
    characters: str = CHARACTERS
    start_token: str | None = "\\n"
    end_token: str | None = None


RECIPES = (
    Recipe("lstm", "lstm", 48, 2, 16),
    Recipe("gru", "gru", 33, 1, None, start_token=None),
    Recipe("rnn", "rnn", 24, 3, 8, characters="abc\n", end_token="\\n"),
)


def build(recipe: Recipe, seed: int = 0) -> TorchModel:
    """A model with weights large enough for a distribution that is far from uniform."""
    torch.manual_seed(seed)
    model = TorchModel(
        recipe.kind, recipe.hidden, recipe.layers, recipe.embedding, recipe.characters
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        model.out.weight.mul_(3.0)
    return model.eval()


def export(
    model: TorchModel, recipe: Recipe, work: Path, repository: Path, flags: Sequence[str] = ()
) -> None:
    """Save as a plain checkpoint with a vocabulary file, and convert with `flags`."""
    checkpoint, vocabulary = work / f"{recipe.name}.safetensors", work / f"{recipe.name}.json"
    save_file(model.state_dict(), checkpoint)
    vocabulary.write_text(json.dumps(list(recipe.characters)))
    arguments = ["convert", str(checkpoint), "--output", str(repository)]
    arguments += ["--vocab", str(vocabulary), *flags]
    if recipe.kind == "rnn":
        arguments += ["--set", "nonlinearity=tanh"]
    if recipe.start_token is not None:
        arguments += ["--start-token", recipe.start_token]
    if recipe.end_token is not None:
        arguments += ["--end-token", recipe.end_token]
    status = export_main(arguments)
    if status != 0:
        raise RuntimeError(f"convert exited with {status}")


@dataclass(frozen=True)
class Repository:
    """An exported model repository, and the PyTorch models its models came from."""

    path: Path
    models: dict[str, TorchModel]
    recipes: dict[str, Recipe]


def make_repository(work: Path, path: Path, names: Collection[str] = ()) -> Repository:
    """The models of RECIPES, or those of these names, exported into `path`."""
    torch.set_num_threads(1)
    recipes = {recipe.name: recipe for recipe in RECIPES if recipe.name in names or not names}
    models = {name: build(recipe) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        export(models[name], recipe, work, path)
    return Repository(path, models, recipes)

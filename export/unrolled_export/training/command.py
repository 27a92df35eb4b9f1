"""`unrolled-export train`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from unrolled_export.training.corpus import read_corpus
from unrolled_export.training.loop import Recipe, Trainer


def train(arguments: argparse.Namespace) -> int:
    """Train as the parsed command line says; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    corpus = read_corpus(Path(arguments.text), arguments.validation)
    trainer = Trainer(corpus, recipe, Path(arguments.output), arguments.sample_every)
    if arguments.resume:
        trainer.resume()
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"{len(corpus.train):,} characters to train on, {len(corpus.validation):,} held out, "
        f"{len(corpus.characters)} in the vocabulary; {parameters:,} parameters"
    )
    best = trainer.run(tqdm.write)
    print(f"best loss {best:.4f} nats per character; checkpoint in {arguments.output}")
    return 0

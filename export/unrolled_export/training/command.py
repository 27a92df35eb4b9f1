"""`unrolled-export train`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from unrolled_export.training.corpus import Corpus, CorpusError, read_corpus
from unrolled_export.training.loop import Recipe, Trainer
from unrolled_export.vocabulary import token_id


def train(arguments: argparse.Namespace) -> int:
    """Train as the parsed command line says; returns the exit status."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    corpus = read_corpus(Path(arguments.text), arguments.validation)
    start_token = None
    if arguments.start_token is not None:
        start_token = _character(corpus, "--start-token", arguments.start_token)
    end_tokens = tuple(_character(corpus, "--end-token", text) for text in arguments.end_token)
    trainer = Trainer(
        corpus,
        recipe,
        Path(arguments.output),
        arguments.sample_every,
        start_token,
        end_tokens,
    )
    if arguments.resume:
        trainer.resume()
    elif (Path(arguments.output) / "model.json").exists():
        raise CorpusError(
            f"{arguments.output}: holds a run: add --resume, or choose another folder"
        )
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"{len(corpus.train):,} characters to train on, {len(corpus.validation):,} held out, "
        f"{len(corpus.characters)} in the vocabulary; {parameters:,} parameters"
    )
    try:
        best = trainer.run(tqdm.write)
    except KeyboardInterrupt:
        saved = trainer.progress.validation
        how = "repeat the command with --resume to go on" if saved else "nothing was saved yet"
        print(f"interrupted after update {trainer.progress.updates}; {how}", file=sys.stderr)
        return 130
    print(f"best loss {best:.4f} nats per character; checkpoint in {arguments.output}")
    return 0


def _character(corpus: Corpus, flag: str, text: str) -> str:
    return corpus.characters[token_id(corpus.characters, flag, text)]

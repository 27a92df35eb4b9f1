"""A checkpoint and its vocabulary, as a command line names them."""

from __future__ import annotations

import argparse
from pathlib import Path

from unrolled_export.progress import progress_bar
from unrolled_export.readers import Checkpoint, Settings, read_checkpoint
from unrolled_export.unused_rows import DROP, SETTING, without_unused_rows
from unrolled_export.vocabulary import Vocabulary
from unrolled_export.vocabulary_choice import KINDS, choose_vocabulary


def read_model(
    path: Path, settings: Settings, arguments: argparse.Namespace
) -> tuple[Checkpoint, Vocabulary]:
    """Read both. Raises CheckpointError, SettingError or VocabularyError."""
    return read_tokens(read_network(path, settings), settings, arguments)


def read_network(path: Path, settings: Settings) -> Checkpoint:
    """Read the checkpoint. Raises CheckpointError or SettingError."""
    # The vocabulary's settings are asked for first: the reading ends with a look at what nobody
    # has asked for.
    _vocabulary_settings(settings)
    with progress_bar(f"reading {path.name}", None):
        return read_checkpoint(path, settings)


def read_tokens(
    checkpoint: Checkpoint, settings: Settings, arguments: argparse.Namespace
) -> tuple[Checkpoint, Vocabulary]:
    """Read the vocabulary; `arguments` has vocab, start_token and end_token. Returns the
    checkpoint as well, without the rows that `--set unused_rows=drop` takes from it.

    Raises VocabularyError, SettingError or SettingNeeded.
    """
    kind, unknown, drops_rows = _vocabulary_settings(settings)
    vocabulary = choose_vocabulary(
        checkpoint,
        Path(arguments.vocab) if arguments.vocab else None,
        arguments.start_token,
        arguments.end_token,
        kind=kind,
        unknown=unknown,
        drops_rows=drops_rows,
        allow_pickle=settings.allow_pickle,
    )
    return without_unused_rows(checkpoint, vocabulary.size), vocabulary


def _vocabulary_settings(settings: Settings) -> tuple[str | None, str | None, bool]:
    return (
        settings.choice("vocabulary", KINDS),
        settings.text("unknown_token"),
        settings.choice(SETTING, (DROP,)) == DROP,
    )

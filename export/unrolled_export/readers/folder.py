"""A folder with a checkpoint and its vocabulary in files of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unrolled_export.errors import CheckpointError, ExportError
from unrolled_export.readers.pytorch_files.checkpoint import PytorchFile
from unrolled_export.readers.pytorch_files.module_tree import may_hold_model
from unrolled_export.readers.pytorch_files.torch_file import read_tree
from unrolled_export.readers.reader import Checkpoint, Reader
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.sharded import ShardedFile, shards_of
from unrolled_export.readers.stand_ins import check_folder
from unrolled_export.tokenizer_files import TokenizerFile
from unrolled_export.vocabulary_files import read_vocabulary


class CheckpointFolder:
    """A folder with one file that is a checkpoint."""

    kind = "a folder with one of these"

    def __init__(self, readers: Sequence[Reader]) -> None:
        """`readers` are asked for every file in the folder."""
        self._readers = tuple(readers)

    def accepts(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        found = _with_models(_without_shards(list(self._checkpoints(path))))
        if not any(_is_model(*one) for one in found):
            check_folder(path)
        if not found:
            raise CheckpointError(path, "no file in this folder is a checkpoint")
        if len(found) > 1:
            names = ", ".join(file.name for file, _ in found)
            raise CheckpointError(path, f"more than one checkpoint ({names}): name one of them")
        ((file, reader),) = found
        checkpoint = reader.read(file, settings)
        if checkpoint.vocabulary is not None:
            return checkpoint
        others = sorted(set(path.iterdir()) - set(checkpoint.files))
        return _with_vocabulary(checkpoint, path, others, settings)

    def _checkpoints(self, path: Path) -> Iterator[tuple[Path, Reader]]:
        for file in sorted(path.iterdir()):
            reader = next((r for r in self._readers if file.is_file() and r.accepts(file)), None)
            if reader is not None:
                yield file, reader


def _without_shards(found: Sequence[tuple[Path, Reader]]) -> Sequence[tuple[Path, Reader]]:
    """Without the files that an index among them puts together."""
    shards = {
        shard
        for file, reader in found
        if isinstance(reader, ShardedFile)
        for shard in shards_of(file)
    }
    return [(file, reader) for file, reader in found if file not in shards]


def _with_models(found: Sequence[tuple[Path, Reader]]) -> Sequence[tuple[Path, Reader]]:
    """Of several files those that are not mere pickles of something else, such as a vocabulary."""
    if len(found) < 2:
        return found
    return [(file, reader) for file, reader in found if _is_model(file, reader)]


def _is_model(file: Path, reader: Reader) -> bool:
    if not isinstance(reader, PytorchFile):
        return True
    try:
        return may_hold_model(file, read_tree(file, allow_pickle=True))
    except CheckpointError:
        # A damaged model is still the user's to name, or to take away.
        return True


def _with_vocabulary(
    checkpoint: Checkpoint, path: Path, files: Sequence[Path], settings: Settings
) -> Checkpoint:
    """The checkpoint with the file that lists as many tokens as its weights have."""
    size = checkpoint.network.vocabulary_size
    listed = {file: _tokens(file, size, settings) for file in files if file.is_file()}
    found = {file: tokens for file, tokens in listed.items() if len(tokens) == size}
    if len(set(found.values())) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(path, f"vocabularies that differ ({names}): add --vocab FILE")
    if not found:
        return checkpoint
    file = next(iter(found))
    return replace(
        checkpoint,
        files=(*checkpoint.files, file),
        vocabulary_file=file,
        assumptions=(*checkpoint.assumptions, f"the tokens are those of {file.name}"),
    )


def _tokens(file: Path, size: int, settings: Settings) -> tuple[str, ...]:
    """The tokens that a file lists, none where it is no vocabulary, as most files are."""
    try:
        tokens = read_vocabulary(file, size, allow_pickle=settings.allow_pickle)
    except ExportError:
        return ()
    if isinstance(tokens, TokenizerFile):
        return tokens.spellings
    # A licence of as many lines has lines of several words, and some twice.
    is_text = any(len(token.split()) > 1 for token in tokens) or len(set(tokens)) < len(tokens)
    return () if is_text else tokens

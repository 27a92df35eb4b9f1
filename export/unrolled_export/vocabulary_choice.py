"""Which vocabulary a model gets: that of a file, or else the checkpoint's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unrolled_export.errors import (
    CheckpointError,
    ExportError,
    PickleNeeded,
    SettingError,
    SettingNeeded,
    VocabularyError,
)
from unrolled_export.listed_vocabulary import listed_vocabulary
from unrolled_export.readers import Checkpoint, is_checkpoint
from unrolled_export.tokenizer_files import TokenizerFile, tokenizer_vocabulary
from unrolled_export.unused_rows import DROP, SETTING, may_be_unused
from unrolled_export.vocabulary import Kind, Vocabulary
from unrolled_export.vocabulary_files import read_vocabulary

KINDS = (Kind.CHARACTER.value, Kind.BYTE.value, Kind.WORD.value)
"""What `--set vocabulary` takes."""
ALL_BYTES = tuple(map(chr, range(256)))


def choose_vocabulary(
    checkpoint: Checkpoint,
    file: Path | None,
    start: str | None,
    end: Sequence[str],
    *,
    kind: str | None,
    unknown: str | None,
    drops_rows: bool,
    allow_pickle: bool,
) -> Vocabulary:
    """The vocabulary of `file`, else the checkpoint's own, else for bytes all of them.

    `start`, `end` and `unknown` name tokens; the first two fall back on the checkpoint's. Raises
    VocabularyError where there is no vocabulary, or none of the weights' size, and SettingNeeded
    where only `kind`, one of KINDS, can tell what the tokens are, or only `drops_rows` that the
    weights' last rows stand for none.
    """
    size = checkpoint.network.vocabulary_size
    file = file or checkpoint.vocabulary_file
    origin = file or checkpoint.files[-1]
    wanted = None if kind is None else Kind(kind)
    if file is not None:
        tokens = _read(file, size, allow_pickle)
    else:
        tokens = _own_tokens(checkpoint, wanted)
    start = checkpoint.start_token if start is None else start
    end = end or checkpoint.end_tokens
    # The count first: of a wrong list, what its tokens are is no question.
    count = len(tokens.spellings if isinstance(tokens, TokenizerFile) else tokens)
    if drops_rows and count == size:
        raise SettingError(f"--set {SETTING}={DROP}: {origin} has as many tokens as the weights")
    if count != size and not (drops_rows and 0 < count < size):
        raise _wrong_size(tokens, size, origin, checkpoint.files[0])
    if isinstance(tokens, TokenizerFile):
        return tokenizer_vocabulary(tokens, origin, start, end, kind=wanted, unknown=unknown)
    return listed_vocabulary(tokens, origin, start, end, kind=wanted, unknown=unknown)


def _read(file: Path, size: int, allow_pickle: bool) -> tuple[str, ...] | TokenizerFile:
    try:
        return read_vocabulary(file, size, allow_pickle=allow_pickle)
    except (CheckpointError, VocabularyError) as error:
        if file.is_file() and not isinstance(error, PickleNeeded) and is_checkpoint(file):
            raise VocabularyError(f"{file}: a checkpoint, not a vocabulary") from error
        raise


def _wrong_size(
    tokens: Sequence[str] | TokenizerFile, size: int, origin: Path, weights: Path
) -> ExportError:
    spellings = tokens.spellings if isinstance(tokens, TokenizerFile) else tokens
    found = f"{len(spellings)} tokens"
    if len(spellings) == 1:
        found = f"1 token, of {len(spellings[0])} characters"
    problem = f"{found}, but the weights of {weights} have {size}"
    if may_be_unused(len(spellings), size):
        problem += f"; where ids from {len(spellings)} on are padding"
        return SettingNeeded(origin, problem, SETTING, (DROP,))
    return VocabularyError(f"{origin}: {problem}")


def _own_tokens(checkpoint: Checkpoint, kind: Kind | None) -> tuple[str, ...]:
    """The tokens that the checkpoint carries, or else all bytes, where these are meant."""
    if checkpoint.vocabulary is not None:
        return checkpoint.vocabulary
    size = checkpoint.network.vocabulary_size
    may_be_bytes = size == len(ALL_BYTES)
    if may_be_bytes and kind is Kind.BYTE:
        return ALL_BYTES
    if kind is Kind.BYTE and not may_be_bytes:
        raise VocabularyError(
            f"{checkpoint.files[-1]}: --set vocabulary=byte without --vocab means all 256 bytes, "
            f"but the weights have {size} tokens: add --vocab FILE"
        )
    remedy = f"add --vocab FILE, of {size} tokens"
    if may_be_bytes:
        remedy += ", or --set vocabulary=byte"
    raise VocabularyError(f"{checkpoint.files[-1]}: holds no vocabulary: {remedy}")

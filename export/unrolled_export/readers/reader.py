"""The interface of every reader, and what a reader makes of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unrolled_export.network import Network
from unrolled_export.readers.settings import Settings


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read."""

    network: Network
    files: tuple[Path, ...]
    """Every file that was read."""
    reading: str
    """One line: what kind of file this is, and which tensors were taken for what."""
    vocabulary: tuple[str, ...] | None = None
    """Tokens in id order, as the checkpoint spells them; None where it carries none. Bytes that
    are not UTF-8 are surrogate-escaped (PEP 383)."""
    vocabulary_place: str | None = None
    """Where in the checkpoint they are, in keys and attributes with dots between."""
    vocabulary_file: Path | None = None
    """Where the tokens are instead, found beside the checkpoint."""
    start_token: str | None = None
    end_tokens: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    """Conventions of the family that were taken although the file does not tell them, each in
    one short phrase."""


class Reader(Protocol):
    """Reads one family of checkpoints."""

    @property
    def kind(self) -> str:
        """What it reads, in the user's words."""

    def accepts(self, path: Path) -> bool:
        """Whether an existing file or folder is of this family, judged without reading it all."""

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        """Read all of it. Raises CheckpointError or SettingError."""

"""`unrolled-export inspect`: what a checkpoint is, what it lacks, and the command to convert it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unrolled_export.errors import PickleNeeded, SettingNeeded, VocabularyError
from unrolled_export.network import Gate, LayerNorm, Network, Stage
from unrolled_export.readers import Checkpoint, Settings
from unrolled_export.reading import read_network, read_tokens
from unrolled_export.repository import has_own_name, suggested_name
from unrolled_export.vocabulary import Vocabulary

Line = tuple[str, str]
_BLANK = "CHOOSE"
"""Stands for a value that only the user knows: no setting takes it."""


def inspect(arguments: argparse.Namespace) -> int:
    """Inspect as the parsed command line says; returns the exit status."""
    inspection = _Inspection(arguments)
    checkpoint, vocabulary = inspection.read()
    lines = [
        *_described(checkpoint, vocabulary, has_own=arguments.vocab is None),
        *inspection.missing(),
        ("convert", inspection.command()),
    ]
    print("\n".join(f"{title:<12}{line}" for title, line in lines))
    return 0


@dataclass
class _Inspection:
    """A reading, and what had to be supposed for it."""

    arguments: argparse.Namespace
    supposed: list[str] = field(default_factory=list)
    """The first choice of each setting that was left open."""
    pickled: str | None = None
    left_open: list[SettingNeeded] = field(default_factory=list)
    no_vocabulary: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.arguments.checkpoint)

    def read(self) -> tuple[Checkpoint, Vocabulary | None]:
        """Read the checkpoint, supposing the first choice wherever it leaves one.

        The reader of pickles imports and calls nothing, so that looking needs no permission.
        Raises ExportError where no choice helps.
        """
        while True:
            allowed = self.arguments.allow_pickle or self.pickled is not None
            sets = [*self.arguments.set, *self.supposed]
            settings = Settings(sets, allow_pickle=allowed)
            try:
                checkpoint = read_network(self.path, settings)
                return self._with_vocabulary(checkpoint, settings)
            except PickleNeeded as error:
                if allowed:
                    raise
                self.pickled = str(error)
            except SettingNeeded as error:
                if any(error.key == known.key for known in self.left_open):
                    raise
                self.left_open.append(error)
                self.supposed.append(f"{error.key}={error.choices[0]}")

    def _with_vocabulary(
        self, checkpoint: Checkpoint, settings: Settings
    ) -> tuple[Checkpoint, Vocabulary | None]:
        try:
            return read_tokens(checkpoint, settings, self.arguments)
        except VocabularyError as error:
            self.no_vocabulary = str(error)
            return checkpoint, None

    def missing(self) -> Iterator[Line]:
        """What the conversion has to be told."""
        if self.pickled is not None:
            yield "missing", self.pickled
        for error in self.left_open:
            yield "missing", str(error)
        if self.no_vocabulary is not None:
            yield "missing", self.no_vocabulary

    def command(self) -> str:
        """The command that converts the checkpoint, once what it leaves open is filled in."""
        words = ["unrolled-export", "convert", str(self.path), "--output", ".models"]
        if not has_own_name(self.path):
            words += ["--name", suggested_name(self.path)]
        if self.arguments.vocab or self.no_vocabulary is not None:
            words += ["--vocab", self.arguments.vocab or "VOCABULARY"]
        if self.arguments.start_token is not None:
            words += _option("--start-token", self.arguments.start_token)
        for token in self.arguments.end_token:
            words += _option("--end-token", token)
        if self.arguments.allow_pickle or self.pickled is not None:
            words.append("--allow-pickle")
        for pair in (*self.arguments.set, *(f"{error.key}={_BLANK}" for error in self.left_open)):
            words += ["--set", pair]
        return shlex.join(words) + self._choices()

    def _choices(self) -> str:
        """A comment on what may be filled in."""
        choices = [_either(error.choices) for error in self.left_open]
        if len(choices) > 1:
            keys = (error.key for error in self.left_open)
            choices = [f"{key} {either}" for key, either in zip(keys, choices, strict=True)]
        return f"  # {_BLANK}: {'; '.join(choices)}" if choices else ""


def _option(option: str, value: str) -> list[str]:
    """As one word where the value would be taken for an option."""
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def _either(choices: Sequence[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def _described(
    checkpoint: Checkpoint, vocabulary: Vocabulary | None, *, has_own: bool
) -> Iterator[Line]:
    """`has_own` where the vocabulary is the checkpoint's own."""
    network = checkpoint.network
    first, *others = checkpoint.files
    yield "checkpoint", f"{first}{f' and {len(others)} more' if others else ''}"
    yield "read as", checkpoint.reading
    yield from (("assumed", phrase) for phrase in checkpoint.assumptions)
    yield "cell", _cell(network)
    yield from (("layer", line) for line in _layers(network))
    yield from (("stage", _stage(stage)) for stage in network.stages)
    yield "input", _input(network)
    yield "parameters", f"{network.parameters:,}"
    yield "state", f"{network.state_bytes:,} bytes a session"
    size = f"{network.vocabulary_size:,} tokens, which ones the file does not tell"
    yield "vocabulary", size if vocabulary is None else vocabulary.describe()
    if has_own and checkpoint.vocabulary_place is not None:
        yield "", f"found at {checkpoint.vocabulary_place}"
    if vocabulary is not None:
        yield from (("", note) for note in vocabulary.notes)


def _cell(network: Network) -> str:
    variants = []
    if network.gate is not Gate.SIGMOID:
        variants.append(f"gates of hard sigmoids of slope {network.gate.slope:.4g}")
    if not network.reset_after:
        variants.append("reset gate before the product")
    if network.initial is not None:
        variants.append("a learned first state")
    return ", ".join([str(network.cell), *variants])


def _layers(network: Network) -> Iterator[str]:
    for layer in network.layers:
        projected = f", projected to {layer.projection_size}" if layer.projection_size else ""
        normalised = ", behind a layer norm" if layer.norm else ""
        yield f"{layer.hidden_size} units{projected}, input of {layer.input_size}{normalised}"


def _stage(stage: Stage) -> str:
    if isinstance(stage, LayerNorm):
        return f"layer norm of {len(stage.weight)}, epsilon {stage.epsilon:g}"
    return f"dense, {stage.weight.shape[1]} to {stage.weight.shape[0]}, {stage.activation}"


def _input(network: Network) -> str:
    if network.embedding is None:
        return f"one-hot, {network.vocabulary_size} wide"
    return f"embedding, {network.embedding.shape[1]} wide"

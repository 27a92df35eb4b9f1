"""The checkpoint folder that `unrolled-export train` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unrolled_export.errors import CheckpointError
from unrolled_export.network import Cell
from unrolled_export.readers.reader import Checkpoint
from unrolled_export.readers.safetensors_ import read_tensors
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.state_dicts.state_dict import read_state_dict

FORMAT = "unrolled-checkpoint/1"


class TrainedFolder:
    """`model.safetensors` for the tensors, `model.json` for cell and vocabulary."""

    kind = "a folder of `unrolled-export train`"

    def accepts(self, path: Path) -> bool:
        description = path / "model.json"
        if not description.is_file():
            return False
        # Keras calls its architectures model.json, too.
        tensors = path / "model.safetensors"
        return tensors.is_file() or FORMAT.partition("/")[0].encode() in description.read_bytes()

    def read(self, path: Path, settings: Settings) -> Checkpoint:
        tensors_file, description_file = path / "model.safetensors", path / "model.json"
        for file in (tensors_file, description_file):
            if not file.is_file():
                raise CheckpointError(file, "no such file: not a folder of `unrolled-export train`")
        description = _Description(description_file)
        reading = read_state_dict(read_tensors(tensors_file), settings, description.cell())
        return Checkpoint(
            reading.network,
            (tensors_file, description_file),
            f"checkpoint of `unrolled-export train`: {reading.text}",
            description.texts("characters"),
            start_token=description.optional_text("start_token"),
            end_tokens=description.texts("end_tokens", ()),
            assumptions=reading.assumptions,
        )


class _Description:
    """The fields of `model.json`. Every method raises CheckpointError naming the field."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            fields = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(file, f"not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise CheckpointError(file, "not a JSON object")
        self._fields: dict[str, Any] = fields
        if fields.get("format") != FORMAT:
            raise self._wrong("format", f'"{FORMAT}"')

    def cell(self) -> Cell:
        try:
            return Cell(str(self._fields.get("cell")))
        except ValueError as error:
            raise self._wrong("cell", f"one of {', '.join(Cell)}") from error

    def texts(self, field: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of strings; `default` where the field is missing, unless that is None."""
        value = self._fields.get(field, default)
        if value == default and default is not None:
            return default
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong(field, "a list of strings")
        return tuple(value)

    def optional_text(self, field: str) -> str | None:
        value = self._fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self._wrong(field, "a string")
        return value

    def _wrong(self, field: str, expected: str) -> CheckpointError:
        return CheckpointError(self._file, f'field "{field}" is not {expected}')

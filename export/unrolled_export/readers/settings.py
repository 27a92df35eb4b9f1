"""The `--set KEY=VALUE` of a conversion: what a checkpoint does not say about itself."""

from __future__ import annotations

from collections.abc import Sequence

from unrolled_export.errors import SettingError


class Settings:
    """Settings by key; remembers which of them the reading asked for."""

    def __init__(self, pairs: Sequence[str] = ()) -> None:
        """Parse `KEY=VALUE` texts. Raises SettingError where one is malformed or repeated."""
        self._values: dict[str, str] = {}
        self._asked: set[str] = set()
        for pair in pairs:
            key, separator, value = pair.partition("=")
            if not (key and separator and value):
                raise SettingError(f"--set {pair}: not of the form KEY=VALUE")
            if key in self._values:
                raise SettingError(f"--set {key}: given twice")
            self._values[key] = value

    def text(self, key: str) -> str | None:
        """The value of `key`, None where it was not set."""
        self._asked.add(key)
        return self._values.get(key)

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """The value of `key`, None where it was not set.

        Raises SettingError where it is none of `choices`.
        """
        value = self.text(key)
        if value is not None and value not in choices:
            raise SettingError(f"--set {key}={value}: not one of {', '.join(choices)}")
        return value

    def check_all_used(self) -> None:
        """Raise SettingError for a key that the reading never asked for."""
        unknown = sorted(self._values.keys() - self._asked)
        if unknown:
            taken = ", ".join(sorted(self._asked)) or "none"
            raise SettingError(
                f"--set {unknown[0]}: not a setting of this checkpoint (its settings: {taken})"
            )

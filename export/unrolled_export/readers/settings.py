"""What the command line says about a checkpoint that the checkpoint itself does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unrolled_export.errors import SettingError
from unrolled_export.setting_keys import check_known


class Settings:
    """The `--set KEY=VALUE` by key; remembers which of them the reading asked for."""

    def __init__(self, pairs: Sequence[str] = (), *, allow_pickle: bool = False) -> None:
        """Parse `KEY=VALUE` texts. Raises SettingError where one is malformed or repeated."""
        self.allow_pickle = allow_pickle
        """Whether pickles that hold objects of classes may be read."""
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
        """The value of `key`, one of setting_keys.SETTINGS; None where it was not set."""
        check_known(key)
        self._asked.add(key)
        return self._values.get(key)

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """The value of `key`, None where it was not set.

        Raises SettingError where it is none of `choices`.
        """
        check_known(key, choices)
        value = self.text(key)
        if value is not None and value not in choices:
            raise SettingError(f"--set {key}={value}: not one of {', '.join(choices)}")
        return value

    def number(self, key: str) -> float | None:
        """The value of `key`, None where it was not set.

        Raises SettingError where it is not a positive number.
        """
        value = self.text(key)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise SettingError(f"--set {key}={value}: not a positive number")
        return number

    def key_for(self, key: str, part: str) -> str:
        """`KEY.PART` where that is set, for one part of a network, else `KEY`, for all."""
        own = f"{key}.{part}"
        return key if self.text(own) is None else own

    def check_all_used(self) -> None:
        """Raise SettingError for a key that the reading never asked for."""
        unknown = sorted(self._values.keys() - self._asked)
        if unknown:
            taken = ", ".join(sorted(self._asked)) or "none"
            raise SettingError(
                f"--set {unknown[0]}: not a setting of this checkpoint (its settings: {taken})"
            )

"""The activations that the user tells, on either side of the recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from unrolled_export.network import Activation
from unrolled_export.readers.settings import Settings
from unrolled_export.readers.tensors import Tensors

_NO_NORMS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ToldActivations:
    """Those of one side: after parts before the recurrent layers, or from the last of these on."""

    tensors: Tensors
    settings: Settings
    key: str
    """The setting for all of `stages`; with a dot and a name, for any one of `parts`."""
    stages: Sequence[str]
    parts: Sequence[str]
    """All whose output an activation may be applied to."""

    def need(
        self, problem: str, choices: Sequence[Activation], norms: Mapping[str, str] = _NO_NORMS
    ) -> None:
        """Raise SettingNeeded where the activation after one of the stages is not told.

        It is asked for by part once some are told so, and where `norms`, by the stage that they
        follow, may have it behind them instead.
        """
        open_ = [stage for stage in self.stages if self._told(stage) is None]
        linear = [stage for stage in self.stages if self._told(stage) is Activation.LINEAR]
        behind = [norms[stage] for stage in linear if stage in norms]
        open_ += [norm for norm in behind if norm in self.parts and self._told(norm) is None]
        if not open_:
            return
        is_first = open_ == list(self.stages)
        key = self.key if is_first and not norms else f"{self.key}.{open_[0]}"
        problem = problem if is_first else unknown_after(open_)
        raise self.tensors.unsettled(f"{problem}, which the file does not tell", key, choices)

    def need_place(self, problem: str, choices: Sequence[Activation]) -> None:
        """Raise SettingNeeded where an activation is told of no part, for the last of which
        nothing is told."""
        told = self.chosen()
        open_ = [part for part in self.parts if part not in told]
        if open_ and not self.is_any_applied():
            problem = f"{problem}, to the output of {' or '.join(open_)}"
            key = f"{self.key}.{open_[-1]}"
            raise self.tensors.unsettled(f"{problem}, which the file does not tell", key, choices)

    def is_any_applied(self) -> bool:
        """Whether something other than nothing is told."""
        return any(told is not Activation.LINEAR for told in self.chosen().values())

    def chosen(self) -> dict[str, Activation]:
        """By part, what was told."""
        told = {part: self._told(part) for part in self.parts}
        return {part: activation for part, activation in told.items() if activation is not None}

    def untold(self) -> dict[str, str]:
        """By part of which nothing was told, the setting that would."""
        return {
            part: self.key if part in self.stages else f"{self.key}.{part}"
            for part in self.parts
            if self._told(part) is None
        }

    def _told(self, part: str) -> Activation | None:
        key = self.settings.key_for(self.key, part)
        if key == self.key and part not in self.stages:
            return None
        told = self.settings.choice(key, tuple(Activation))
        return None if told is None else Activation(told)


def unknown_after(names: Sequence[str]) -> str:
    """That an activation may follow them, in words."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"an activation may follow {names[0]}{more}"

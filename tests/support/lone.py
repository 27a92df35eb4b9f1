"""A session as it has to be, computed by the lone-run oracle."""

from __future__ import annotations

from support.models import Repository
from support.oracle import Draw, LoneRun, LoneSequence


class LoneSession:
    """A sequence of one of the test repository's models, in text."""

    def __init__(self, repository: Repository, model: str, seed: int) -> None:
        recipe = repository.recipes[model]
        self._characters = recipe.characters
        start = None if recipe.start_token is None else recipe.characters.index("\n")
        run = LoneRun(repository.path / model / "1")
        self._sequence = LoneSequence(run, seed, start)

    @property
    def position(self) -> int:
        """Tokens so far."""
        return len(self._sequence.tokens)

    def tell(self, text: str) -> list[float | None]:
        """Append text; returns its log-probabilities."""
        return [self._sequence.tell(self._characters.index(character)) for character in text]

    def draw(self, count: int, how: Draw = Draw()) -> str:  # noqa: B008 - immutable
        """Append `count` drawn tokens; returns their text."""
        tokens = [self._sequence.draw(how)[0] for _ in range(count)]
        return "".join(self._characters[token] for token in tokens)

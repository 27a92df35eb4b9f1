"""A request as a task: what it tells as tokens, how much it draws, and how."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from unrolled_server.answer_size import check_answer_size
from unrolled_server.encoding import LONG, Encoder
from unrolled_server.errors import InvalidField, NothingToContinue, UnknownText
from unrolled_server.models import ServedModel
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.session import Session
from unrolled_server.turn import Recall, Task
from unrolled_server.types import DEFAULT_MAX_TOKENS, Past, Sampling, Tokens, TurnRequest
from unrolled_server.vocabulary import UnknownSymbol


@dataclass(frozen=True)
class TurnLimits:
    """What one turn, and all turns together, may ask for."""

    max_tokens: int
    max_prompt_bytes: int
    turns_per_model: int
    """Turns of one model that are under way or wait."""


class LongText(Exception):
    """A long text is to be encoded, by `Draft.encode`, before its tokens can be asked for."""

    def __init__(self, text: str, model: ServedModel, previous: int | None) -> None:
        super().__init__(f"{len(text)} characters")
        self.text = text
        self.model = model
        self.previous = previous
        """The newest token that precedes the text, as in Vocabulary.encode."""


class Draft:
    """A request that becomes a task where a model and a place to start from are known.

    Its tokens are found once for each place that it is tried at.
    """

    def __init__(self, request: TurnRequest, limits: TurnLimits) -> None:
        self.request = request
        self._limits = limits
        self._place: tuple[ServedModel, int | None] | None = None
        self._tokens = np.zeros(0, np.int32)
        """What is told at `_place`."""

    def check(self, model: ServedModel, start: Past) -> None:
        """Raises what `task` would."""
        self._amounts(model, start)

    async def encode(self, long: LongText, encoder: Encoder) -> None:
        """Find the tokens of a long text. Raises UnknownText."""
        with _in_field(self.request.field):
            tokens = await encoder.encode(long.model.vocabulary, long.text, long.previous)
        self._place, self._tokens = (long.model, long.previous), tokens

    def task(
        self,
        model: ServedModel,
        session: Session | None,
        start: Past,
        prefixes: PrefixCache,
    ) -> Task:
        """The task, on a session or none.

        Raises InvalidField, UnknownText, NothingToContinue, LongText.
        """
        request = self.request
        told, max_tokens = self._amounts(model, start)
        return Task(
            start=start,
            told=told,
            max_tokens=max_tokens,
            sampling=self._sampling(session),
            stop=request.stop,
            logprobs=request.logprobs,
            scores=request.scores,
            keeps_partial=session is not None and not request.reads_only,
            recall=self._recall(model, start, told, prefixes),
        )

    def _amounts(self, model: ServedModel, start: Past) -> tuple[Tokens, int]:
        """What the turn tells, and how much it draws at most."""
        max_tokens = self._max_tokens(self.request.max_tokens)
        told = self._told(model, start.previous)
        nothing = start.pending is None and not len(told)
        if nothing and max_tokens and model.vocabulary.start_token is None:
            raise NothingToContinue(self.request.session, model.label)
        check_answer_size(self.request, len(told), max_tokens, model.vocabulary)
        return told, max_tokens

    def _max_tokens(self, asked: int | None) -> int:
        limit = self._limits.max_tokens
        if asked is None:
            return min(DEFAULT_MAX_TOKENS, limit)
        if asked > limit:
            raise InvalidField("max_tokens", f"{asked} is over the limit {limit}")
        return asked

    def _told(self, model: ServedModel, previous: int | None) -> Tokens:
        if self._place != (model, previous):
            tokens = self._found(model, previous)
            self._place, self._tokens = (model, previous), tokens
        return self._tokens

    def _found(self, model: ServedModel, previous: int | None) -> Tokens:
        tell, field = self.request.tell, self.request.field
        if tell is None:
            return np.zeros(0, np.int32)
        limit = self._limits.max_prompt_bytes
        if isinstance(tell, str):
            size = len(tell.encode(errors="surrogatepass"))
            if size > limit:
                raise InvalidField(field, f"{size} bytes are over the limit {limit}")
            if len(tell) >= LONG:
                raise LongText(tell, model, previous)
            with _in_field(field):
                return model.vocabulary.encode(tell, previous)
        if len(tell) > limit:
            raise InvalidField(field, f"{len(tell)} tokens are over the limit {limit}")
        return _known(np.fromiter(tell, np.int32, len(tell)), field, model)

    def _sampling(self, session: Session | None) -> Sampling:
        request, seed = self.request, self.request.seed
        if seed is None:
            seed = secrets.randbits(64) if session is None else session.seed
        return Sampling(seed, request.temperature, request.top_k, request.top_p, request.min_p)

    def _recall(
        self, model: ServedModel, start: Past, told: Tokens, prefixes: PrefixCache
    ) -> Recall:
        # Scores need every token's run; nor are texts to be judged what prompts begin with.
        if self.request.scores or start.state is not None or start.pending is not None:
            return Recall()
        return prefixes.recall(model, told)


def _known(tokens: Tokens, field: str, model: ServedModel) -> Tokens:
    size = model.vocabulary.size
    outside = np.flatnonzero((tokens < 0) | (tokens >= size))
    if len(outside):
        place = int(outside[0])
        raise InvalidField(f"{field}.ids[{place}]", f"{tokens[place]} is not in [0, {size})")
    return tokens


@contextmanager
def _in_field(field: str) -> Iterator[None]:
    """Raises UnknownText where that field's text is not the vocabulary's."""
    try:
        yield
    except UnknownSymbol as error:
        raise UnknownText(field, error.offset, error.text) from error

"""One client: a session, the turns that it takes, and what it holds a restarted server to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.calls import SECONDS, AsyncStubs
from unrolled.v1.completion_pb2 import CompleteRequest, Durability, Outcome
from unrolled.v1.session_pb2 import CreateSessionRequest, GetSessionRequest

MOST_TOLD = 4
MOST_DRAWN = 24
"""Enough for several messages."""


@dataclass(frozen=True)
class Turn:
    """What a session asks for; it follows from the session's seed and the turn's number."""

    number: int
    position: int
    """Where the session stands before it."""
    prompt: str
    drawn: int

    @property
    def end(self) -> int:
        """Where the session stands after it."""
        return self.position + len(self.prompt) + self.drawn


@dataclass
class Answer:
    """What a client has heard of a turn."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def begins(self, other: Answer) -> bool:
        """Whether the other one is this one, or this one and more."""
        count = len(self.tokens)
        return (
            other.text.startswith(self.text)
            and other.tokens[:count] == self.tokens
            and other.logprobs[:count] == self.logprobs
        )


class Stream:
    """Takes one turn after the other, each with a request_id, from whichever server there is.

    A turn that was not acknowledged is asked for again, from the next server.
    """

    def __init__(
        self,
        model: str,
        characters: str,
        seed: int,
        durability: Durability,
        heard: Callable[[], None],
    ) -> None:
        """`durability` is what every outcome has to say; every message of a turn calls `heard`."""
        self.model = model
        self.seed = seed
        self.acknowledged: list[tuple[Turn, Answer]] = []
        """Since somebody last took them away."""
        self.replayed = 0
        """Turns acknowledged from the record."""
        self._characters = characters
        self._durability = durability
        self._heard = heard
        self._name = ""
        self._last: tuple[Turn, Answer] | None = None
        self._under_way: Turn | None = None
        self._beginnings: list[Answer] = []
        """What was heard of the turn under way, each time that it was asked for."""
        self._is_applied = False
        """Whether the session was found behind the turn under way."""

    @property
    def position(self) -> int:
        """Where the last acknowledged turn has left the session."""
        return self._last[0].end if self._last else 0

    async def go_on(self, server: AsyncStubs, turns: int | None = None) -> None:
        """Check what this server says of the past, then take so many turns, or turns without end.

        Raises grpc.aio.AioRpcError once the server is gone, AssertionError where it is wrong.
        """
        if self._name:
            await self._check_past(server)
        else:
            request = CreateSessionRequest(model=self.model, seed=self.seed)
            answer = await server.sessions.CreateSession(request, timeout=SECONDS)
            self._name = answer.session.name
        while turns is None or turns > 0:
            await self.ask_blindly(server)
            turns = None if turns is None else turns - 1

    async def _check_past(self, server: AsyncStubs) -> None:
        """Every acknowledged turn is there, and nothing but perhaps the one under way behind it."""
        request = GetSessionRequest(name=self._name)
        answer = await server.sessions.GetSession(request, timeout=SECONDS)
        position, turn = answer.session.position, self._under_way
        possible = {self.position} if turn is None else {self.position, turn.end}
        assert position in possible, f"{self._name} is at {position}, not at one of {possible}"
        self._is_applied = position != self.position
        if self._last is not None:
            (last, acknowledged), again = self._last, Answer()
            outcome = await self._ask(server, last, again)
            assert outcome.replayed, f"{self._name}: turn {last.number} was run again"
            assert again == acknowledged, f"{self._name}: another answer to turn {last.number}"

    async def ask_blindly(self, server: AsyncStubs) -> None:
        """Take the turn under way, or a new one; nothing of the past is checked before."""
        turn = self._under_way = self._under_way or self._next()
        answer = Answer()
        self._beginnings.append(answer)
        outcome = await self._ask(server, turn, answer)
        for beginning in self._beginnings:
            assert beginning.begins(answer), f"{self._name}: turn {turn.number} began otherwise"
        assert outcome.position == turn.end, f"{self._name} is at {outcome.position}"
        assert outcome.durability == self._durability, f"{self._name}: {outcome.durability}"
        assert outcome.replayed == self._is_applied, f"{self._name}: replayed {outcome.replayed}"
        self.replayed += outcome.replayed
        self._last = turn, answer
        self.acknowledged.append(self._last)
        self._under_way, self._beginnings, self._is_applied = None, [], False

    async def _ask(self, server: AsyncStubs, turn: Turn, answer: Answer) -> Outcome:
        """Ask for a turn; `answer` grows as it is heard."""
        call = server.completions.StreamComplete(
            CompleteRequest(
                session=self._name,
                prompt=turn.prompt,
                max_tokens=turn.drawn,
                logprobs=0,
                expected_position=turn.position,
                request_id=f"turn {turn.number}",
            ),
            timeout=SECONDS,
        )
        outcome = None
        async for event in call:
            self._heard()
            answer.text += event.delta.text
            answer.tokens += event.delta.token_ids
            answer.logprobs += [item.logprob for item in event.delta.logprobs]
            if event.HasField("outcome"):
                outcome = event.outcome
        assert outcome is not None, f"{self._name}: a turn ended without an outcome"
        return outcome

    def _next(self) -> Turn:
        number = self._last[0].number + 1 if self._last else 0
        chance = random.Random(f"{self.seed} {number}")
        told = chance.randint(0 if number else 1, MOST_TOLD)
        prompt = "".join(chance.choices(self._characters, k=told))
        return Turn(number, self.position, prompt, chance.randint(1, MOST_DRAWN))

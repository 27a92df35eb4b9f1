"""Random turns with request ids from a real server, against a list of what is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule
from support.calls import SECONDS, Stubs, connected, refused
from support.server import RunningServer
from unrolled.v1.completion_pb2 import (
    CompleteEvent,
    CompleteRequest,
    CompleteResponse,
    Delta,
    Outcome,
)
from unrolled.v1.session_pb2 import DeleteSessionRequest, ForkSessionRequest

LIMIT = 65536
"""Bytes that a session's answers may have together."""

PAYLOADS = (
    CompleteRequest(prompt="a", max_tokens=3),
    CompleteRequest(prompt="ab", max_tokens=0),
    # About 16, 33, 62 and 80 kilobytes.
    CompleteRequest(prompt="b", max_tokens=50, logprobs=20),
    CompleteRequest(prompt="c", max_tokens=105, logprobs=20),
    CompleteRequest(prompt="d", max_tokens=195, logprobs=20),
    CompleteRequest(prompt="e", max_tokens=260, logprobs=20),
)
GROWTH = (4, 2, 51, 106, 196, 261)
"""Tokens by which each of these advances a session."""


def size(answer: CompleteResponse) -> int:
    """Bytes of the messages that make up an answer."""
    said = Delta(text=answer.text, token_ids=answer.token_ids, logprobs=answer.logprobs)
    return said.ByteSize() + answer.outcome.ByteSize()


@dataclass
class Entry:
    """A turn on record."""

    request_id: str
    payload: int
    answer: CompleteResponse
    size: int
    """0 where there was no room for the answer."""


@dataclass(eq=False)
class Known:
    """A session as it has to be."""

    name: str
    position: int = 0
    record: list[Entry] = field(default_factory=list)

    def find(self, request_id: str) -> Entry | None:
        return next((entry for entry in self.record if entry.request_id == request_id), None)

    def add(self, request_id: str, payload: int, answer: CompleteResponse) -> None:
        """Four are kept, and of their answers the newest that fit."""
        counted = size(answer) if size(answer) <= LIMIT else 0
        self.record = [*self.record, Entry(request_id, payload, answer, counted)][-4:]
        for entry in self.record:
            if sum(each.size for each in self.record) > LIMIT:
                entry.size = 0


class RepetitionMachine(RuleBasedStateMachine):
    """Drives a server through gRPC; `Known` follows along."""

    stubs: ClassVar[Stubs]

    sessions = Bundle("sessions")

    def new(self) -> Known:
        return Known(self.stubs.create("lstm"))

    @initialize(target=sessions)
    def begin(self) -> Known:
        return self.new()

    @rule(target=sessions)
    def open(self) -> Known:
        return self.new()

    @rule(target=sessions, known=sessions)
    def fork(self, known: Known) -> Known:
        child = self.stubs.sessions.ForkSession(ForkSessionRequest(name=known.name)).session
        return Known(child.name, known.position)

    @rule(known=consumes(sessions))
    def delete(self, known: Known) -> None:
        self.stubs.sessions.DeleteSession(DeleteSessionRequest(name=known.name))

    @rule(known=sessions)
    def unnamed(self, known: Known) -> None:
        self.run(known, CompleteRequest(prompt="a", max_tokens=0), self.unary)
        known.position += 1

    @rule(
        known=sessions,
        request_id=st.sampled_from("uvwxyz"),
        payload=st.integers(0, len(PAYLOADS) - 1),
        streams=st.booleans(),
    )
    def ask(self, known: Known, request_id: str, payload: int, streams: bool) -> None:
        request = CompleteRequest(session=known.name, request_id=request_id)
        request.MergeFrom(PAYLOADS[payload])
        entry = known.find(request_id)
        if entry is None:
            answer = self.run(known, request, self.streamed if streams else self.unary)
            known.position += GROWTH[payload]
            assert answer.outcome.position == known.position
            known.add(request_id, payload, answer)
        elif entry.payload != payload:
            self.refuse(known, request, "REQUEST_ID_REUSED")
        elif not entry.size:
            self.refuse(known, request, "POSITION_MISMATCH")
        else:
            self.repeat(known, request, entry)

    @rule(known=sessions, place=st.integers(0, 3), streams=st.booleans())
    def ask_again(self, known: Known, place: int, streams: bool) -> None:
        """What is on record, more often than chance would have it."""
        for entry in known.record[place : place + 1]:
            self.ask(known, entry.request_id, entry.payload, streams)

    def run(
        self,
        known: Known,
        request: CompleteRequest,
        way: Callable[[CompleteRequest], CompleteResponse],
    ) -> CompleteResponse:
        request.session = known.name
        answer = way(request)
        assert not answer.outcome.replayed
        return answer

    def repeat(self, known: Known, request: CompleteRequest, entry: Entry) -> None:
        for way in (self.unary, self.streamed):
            again = way(request)
            assert again.outcome.replayed
            again.outcome.replayed = False
            assert again == entry.answer
        assert self.stubs.position(known.name) == known.position

    def refuse(self, known: Known, request: CompleteRequest, reason: str) -> None:
        assert refused(self.stubs.completions.Complete, request).reason == reason
        assert self.stubs.position(known.name) == known.position

    def unary(self, request: CompleteRequest) -> CompleteResponse:
        return self.stubs.completions.Complete(request, timeout=SECONDS)

    def streamed(self, request: CompleteRequest) -> CompleteResponse:
        call: Any = self.stubs.completions.StreamComplete(request, timeout=SECONDS)
        answer, outcome = CompleteResponse(), Outcome()
        for event in cast("Iterator[CompleteEvent]", call):
            answer.text += event.delta.text
            answer.token_ids.extend(event.delta.token_ids)
            answer.logprobs.extend(event.delta.logprobs)
            outcome = event.outcome
        answer.outcome.CopyFrom(outcome)
        return answer


def test_random_repetitions(stubs: Stubs) -> None:
    run_randomly(stubs)


def test_random_repetitions_with_a_store(crowded_server: RunningServer) -> None:
    with connected(crowded_server.address) as stubs:
        run_randomly(stubs)


def run_randomly(stubs: Stubs) -> None:
    RepetitionMachine.stubs = stubs
    RepetitionMachine.TestCase.settings = settings(
        max_examples=30,
        stateful_step_count=25,
        suppress_health_check=list(HealthCheck),
    )
    RepetitionMachine.TestCase("runTest").runTest()

"""Random commands on random sessions of a real server, each answer checked by both oracles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule
from support.models import Repository
from support.oracle import Draw, LoneRun, LoneSequence
from support.server import RunningServer
from unrolled.v1 import completion_pb2 as completion
from unrolled.v1 import session_pb2
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.session_pb2_grpc import SessionServiceStub

LONG = 60_000
"""More tokens than a turn draws before it is cut short."""

texts = st.text(alphabet="abc", max_size=12)
checkpoint_ids = st.sampled_from(["one", "other"])
counts = st.integers(0, 30)
seeds = st.integers(0, 2**64 - 1)
samplings: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"temperature": 0.0}),
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.5, 0.9, 2.0]),
            "top_k": st.integers(1, 6),
            "top_p": st.sampled_from([0.5, 0.9]),
            "min_p": st.sampled_from([0.01, 0.1]),
        },
    ),
)


@dataclass(eq=False)
class Known:
    """A session as it has to be."""

    name: str
    model: str
    sequence: LoneSequence
    undo: bool = False
    before: LoneSequence | None = None
    """Before the last turn, where that is kept."""
    checkpoints: dict[str, LoneSequence] = field(default_factory=dict)

    @property
    def position(self) -> int:
        return len(self.sequence.tokens)

    def begin_turn(self) -> None:
        if self.undo:
            self.before = self.sequence.copy()


@dataclass(frozen=True)
class Expected:
    """What a completion has to be."""

    tokens: list[int]
    logprobs: list[float]
    text: str
    reason: int
    stop: str


class SessionMachine(RuleBasedStateMachine):
    """Drives a server through gRPC; `Known.sequence` follows along."""

    stub: ClassVar[CompletionServiceStub]
    session_stub: ClassVar[SessionServiceStub]
    repository: ClassVar[Repository]
    runs: ClassVar[dict[str, LoneRun]]

    sessions = Bundle("sessions")

    # What has to be

    def characters(self, model: str) -> str:
        return self.repository.recipes[model].characters

    def ids(self, model: str, text: str) -> list[int]:
        return [self.characters(model).index(character) for character in text]

    def expect(
        self, known: Known, prompt: str, count: int, how: Draw, seed: int | None, stop: str
    ) -> Expected:
        """Advance the sequence as the server has to in a turn, one token at a time."""
        known.begin_turn()
        for token in self.ids(known.model, prompt):
            known.sequence.tell(token)
        end = "\n" if self.repository.recipes[known.model].end_token else None
        drawn: list[tuple[int, float]] = []
        text, reason, matched = "", completion.FINISH_REASON_LENGTH, ""
        while len(drawn) < count and reason == completion.FINISH_REASON_LENGTH:
            drawn.append(known.sequence.draw(how, seed))
            character = self.characters(known.model)[drawn[-1][0]]
            if character == end:
                reason = completion.FINISH_REASON_END
            elif stop and (text + character).endswith(stop):
                reason, matched = completion.FINISH_REASON_STOP, stop
                text = (text + character)[: -len(stop)]
            else:
                text += character
        tokens, logprobs = [token for token, _ in drawn], [value for _, value in drawn]
        return Expected(tokens, logprobs, text, reason, matched)

    def check_pytorch(self, known: Known, logprobs: list[float]) -> None:
        """The newest log-probabilities are those of a sequential PyTorch run, within 1e-4."""
        if not logprobs:
            return
        ids = torch.tensor([known.sequence.fed])
        with torch.no_grad():
            rows = self.repository.models[known.model](ids)[0, :-1]
        reference = rows[torch.arange(len(rows)), ids[0, 1:]].numpy()
        error = np.abs(np.array(logprobs) - reference[-len(logprobs) :]).max()
        assert error <= 1e-4

    def check_position(self, known: Known) -> None:
        got = self.session_stub.GetSession(session_pb2.GetSessionRequest(name=known.name))
        self.check_session(known, got.session)

    def check_session(self, known: Known, session: session_pb2.Session) -> None:
        assert session.position == known.position
        places = {place.id: place.position for place in session.checkpoints}
        assert places == {id_: len(past.tokens) for id_, past in known.checkpoints.items()}
        before = session.undo_position if session.HasField("undo_position") else None
        assert before == (None if known.before is None else len(known.before.tokens))
        assert session.undo == known.undo

    def tell(self, known: Known, text: str) -> list[float | None]:
        """Advance the sequence as a turn has to that draws nothing; log-probabilities."""
        known.begin_turn()
        return [known.sequence.tell(token) for token in self.ids(known.model, text)]

    def can_draw(self, known: Known, prompt: str) -> bool:
        has_start = self.repository.recipes[known.model].start_token is not None
        return has_start or bool(prompt) or known.position > 0

    # Commands

    @rule(
        target=sessions,
        model=st.sampled_from(["lstm", "gru", "rnn"]),
        seed=seeds,
        undo=st.booleans(),
    )
    def open(self, model: str, seed: int, undo: bool) -> Known:
        request = session_pb2.CreateSessionRequest(model=model, seed=seed, undo=undo)
        name = self.session_stub.CreateSession(request).session.name
        start = self.repository.recipes[model].start_token
        start_id = None if start is None else self.characters(model).index("\n")
        return Known(name, model, LoneSequence(self.runs[model], seed, start_id), undo)

    @rule(known=sessions, text=texts)
    def feed(self, known: Known, text: str) -> None:
        request = completion.CompleteRequest(session=known.name, prompt=text, max_tokens=0)
        response = self.stub.Complete(request)
        self.tell(known, text)
        assert response.text == ""
        assert response.outcome.position == known.position

    @rule(
        known=sessions,
        prompt=texts,
        count=counts,
        sampling=samplings,
        seed=st.none() | seeds,
        stop=st.sampled_from(["", "a", "bc", "e"]),
        streamed=st.booleans(),
    )
    def complete(
        self,
        known: Known,
        prompt: str,
        count: int,
        sampling: dict[str, Any],
        seed: int | None,
        stop: str,
        streamed: bool,
    ) -> None:
        request = completion.CompleteRequest(
            session=known.name,
            prompt=prompt,
            max_tokens=count,
            seed=seed,
            stop=[stop] if stop else [],
            logprobs=0,
            expected_position=known.position,
            **sampling,
        )
        if count and not self.can_draw(known, prompt):
            with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
                self.stub.Complete(request)
            return
        response = self.whole(request) if streamed else self.stub.Complete(request)
        wanted = self.expect(known, prompt, count, Draw(**sampling), seed, stop)
        self.check_completion(known, response, wanted)

    def whole(self, request: completion.CompleteRequest) -> completion.CompleteResponse:
        """A streamed completion put together."""
        response = completion.CompleteResponse()
        for event in self.stub.StreamComplete(request):
            response.text += event.delta.text
            response.token_ids.extend(event.delta.token_ids)
            response.logprobs.extend(event.delta.logprobs)
            if event.HasField("outcome"):
                response.outcome.CopyFrom(event.outcome)
        return response

    def check_completion(
        self, known: Known, response: completion.CompleteResponse, wanted: Expected
    ) -> None:
        logprobs = [item.logprob for item in response.logprobs]
        assert list(response.token_ids) == wanted.tokens
        assert logprobs == wanted.logprobs
        assert response.text == wanted.text
        assert response.outcome.finish_reason == wanted.reason
        assert response.outcome.matched_stop == wanted.stop
        assert response.outcome.position == known.position
        self.check_pytorch(known, logprobs)

    @rule(
        several=st.lists(sessions, min_size=2, max_size=8, unique_by=id),
        count=st.integers(1, 12),
        sampling=samplings,
    )
    def complete_together(self, several: list[Known], count: int, sampling: dict[str, Any]) -> None:
        calls = [
            self.stub.Complete.future(
                completion.CompleteRequest(
                    session=known.name,
                    prompt="a",
                    max_tokens=count + place,
                    logprobs=0,
                    **sampling,
                )
            )
            for place, known in enumerate(several)
        ]
        for place, (known, call) in enumerate(zip(several, calls, strict=True)):
            wanted = self.expect(known, "a", count + place, Draw(**sampling), None, "")
            self.check_completion(known, call.result(), wanted)

    @rule(known=sessions, text=texts)
    def score(self, known: Known, text: str) -> None:
        request = completion.ScoreRequest(session=known.name, text=text, logprobs=0)
        response = self.stub.Score(request)
        copy = known.sequence.copy()
        self.check_score(response, [copy.tell(token) for token in self.ids(known.model, text)])
        self.check_position(known)

    def check_score(self, response: completion.ScoreResponse, wanted: list[float | None]) -> None:
        given = [item.logprob if item.HasField("logprob") else None for item in response.tokens]
        assert given == wanted

    @rule(known=sessions, text=texts, count=st.integers(1, 9))
    def converse(self, known: Known, text: str, count: int) -> None:
        feed = completion.ConverseRequest.Feed(text=text)
        scored = completion.ConverseRequest.Feed(text="ab", logprobs=0)
        complete = completion.CompleteRequest(max_tokens=count, logprobs=0)
        commands: list[dict[str, Any]] = [
            {"open": completion.ConverseRequest.Open(session=known.name)},
            {"feed": feed},
            {"score": scored},
            {"complete": complete},
        ]
        requests = [
            completion.ConverseRequest(command_id=str(place), **command)
            for place, command in enumerate(commands)
        ]
        events = list(self.stub.Converse(iter(requests)))
        self.tell(known, text)
        told = self.tell(known, "ab")
        wanted = self.expect(known, "", count, Draw(), None, "")
        self.check_score(next(e.score for e in events if e.HasField("score")), told)
        deltas = [event.delta for event in events if event.HasField("delta")]
        assert [token for delta in deltas for token in delta.token_ids] == wanted.tokens
        assert "".join(delta.text for delta in deltas) == wanted.text
        assert [e.outcome.position for e in events][-1] == known.position

    @rule(known=sessions, sampling=samplings)
    def stop(self, known: Known, sampling: dict[str, Any]) -> None:
        """Stop a completion after its first delta; what was delivered stands."""
        drawn = list(self.stopped(known, sampling))
        outcome = drawn.pop()
        tokens = [token for delta in drawn for token in delta.token_ids]
        wanted = self.expect(known, "b", len(tokens), Draw(**sampling), None, "")
        assert tokens == wanted.tokens
        assert "".join(delta.text for delta in drawn) == wanted.text
        assert outcome.position == known.position
        ended = wanted.reason == completion.FINISH_REASON_END
        stopped = completion.FINISH_REASON_STOPPED
        assert outcome.finish_reason == (wanted.reason if ended else stopped)

    def stopped(self, known: Known, sampling: dict[str, Any]) -> Iterator[Any]:
        """Deltas and outcome of a completion that is stopped once its first delta is there."""
        stop_now = threading.Event()
        complete = completion.CompleteRequest(prompt="b", max_tokens=LONG, **sampling)

        def commands() -> Iterator[completion.ConverseRequest]:
            opening = completion.ConverseRequest.Open(session=known.name)
            yield completion.ConverseRequest(open=opening)
            yield completion.ConverseRequest(complete=complete)
            stop_now.wait()
            yield completion.ConverseRequest(stop=completion.ConverseRequest.Stop())

        for event in self.stub.Converse(commands()):
            kind = event.WhichOneof("event")
            if kind != "opened":
                stop_now.set()
                yield getattr(event, str(kind))

    @rule(known=sessions)
    def cancel(self, known: Known) -> None:
        """A stream cancelled after its first delta leaves no trace."""
        if known.model == "rnn":
            return  # it may end by itself before it is cancelled
        request = completion.CompleteRequest(session=known.name, prompt="c", max_tokens=LONG)
        stream = self.stub.StreamComplete(request)
        next(stream)
        stream.cancel()
        with pytest.raises(grpc.RpcError):
            list(stream)
        self.check_position(known)
        self.wait_until_free(known)
        self.tell(known, "")

    def wait_until_free(self, known: Known) -> None:
        """The server hears of a cancellation a moment after the caller."""
        while True:
            try:
                self.stub.Complete(completion.CompleteRequest(session=known.name, max_tokens=0))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
            else:
                return

    @rule(target=sessions, known=sessions, seed=st.none() | seeds)
    def fork(self, known: Known, seed: int | None) -> Known:
        request = session_pb2.ForkSessionRequest(name=known.name, seed=seed)
        child = self.session_stub.ForkSession(request).session
        assert child.position == known.position
        copy = Known(child.name, known.model, known.sequence.copy(seed), known.undo)
        self.check_session(copy, child)
        return copy

    @rule(known=sessions, id_=checkpoint_ids, streamed=st.booleans())
    def checkpoint(self, known: Known, id_: str, streamed: bool) -> None:
        if streamed:
            asked = completion.ConverseRequest.Checkpoint(
                checkpoint=id_, expected_position=known.position
            )
            session = self.conversed(known, checkpoint=asked).checkpointed.session
        else:
            request = session_pb2.CheckpointSessionRequest(name=known.name, checkpoint=id_)
            session = self.session_stub.CheckpointSession(request).session
        known.checkpoints[id_] = known.sequence.copy()
        self.check_session(known, session)

    @rule(known=sessions, id_=checkpoint_ids)
    def delete_checkpoint(self, known: Known, id_: str) -> None:
        request = session_pb2.DeleteCheckpointRequest(name=known.name, checkpoint=id_)
        if known.checkpoints.pop(id_, None) is None:
            with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
                self.session_stub.DeleteCheckpoint(request)
        else:
            self.check_session(known, self.session_stub.DeleteCheckpoint(request).session)

    @rule(known=sessions, id_=st.just("") | checkpoint_ids, streamed=st.booleans())
    def rewind(self, known: Known, id_: str, streamed: bool) -> None:
        past = known.checkpoints.get(id_) if id_ else known.before
        if past is None:
            request = session_pb2.RewindSessionRequest(name=known.name, checkpoint=id_)
            with pytest.raises(grpc.RpcError, match="NOT_FOUND" if id_ else "FAILED_PRECONDITION"):
                self.session_stub.RewindSession(request)
            return
        if streamed:
            asked = completion.ConverseRequest.Rewind(checkpoint=id_)
            session = self.conversed(known, rewind=asked).rewound.session
        else:
            request = session_pb2.RewindSessionRequest(
                name=known.name, checkpoint=id_, expected_position=known.position
            )
            session = self.session_stub.RewindSession(request).session
        known.sequence, known.before = past.copy(), None
        self.check_session(known, session)

    def conversed(self, known: Known, **command: Any) -> completion.ConverseResponse:
        """The event of one command."""
        opening = completion.ConverseRequest.Open(session=known.name)
        requests = [
            completion.ConverseRequest(open=opening),
            completion.ConverseRequest(command_id="it", **command),
        ]
        _, event = self.stub.Converse(iter(requests))
        assert event.command_id == "it"
        response: completion.ConverseResponse = event
        return response

    @rule(target=sessions, known=consumes(sessions))
    def delete(self, known: Known) -> Any:
        self.session_stub.DeleteSession(session_pb2.DeleteSessionRequest(name=known.name))
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            self.stub.Complete(completion.CompleteRequest(session=known.name, prompt="a"))
        return multiple()


def test_random_commands(server: RunningServer, repository: Repository) -> None:
    run_randomly(server, repository)


def test_random_commands_with_a_store(
    crowded_server: RunningServer, repository: Repository
) -> None:
    run_randomly(crowded_server, repository)


def run_randomly(server: RunningServer, repository: Repository) -> None:
    with grpc.insecure_channel(server.address) as channel:
        SessionMachine.stub = CompletionServiceStub(channel)
        SessionMachine.session_stub = SessionServiceStub(channel)
        SessionMachine.repository = repository
        SessionMachine.runs = {
            name: LoneRun(repository.path / name / "1") for name in repository.models
        }
        SessionMachine.TestCase.settings = settings(
            max_examples=40,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        )
        SessionMachine.TestCase("runTest").runTest()

"""Converse: commands in, events out, a turn each; what is drawn is checked by the lone run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from queue import SimpleQueue
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from support.calls import SECONDS, Refusal, Stubs, connected, refusal_of_status, refused
from support.lone import LoneSession
from support.metrics import Metrics
from support.models import CHARACTERS, Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_STOPPED,
    CompleteRequest,
    ConverseRequest,
    ConverseResponse,
    Delta,
    Outcome,
    ScoreRequest,
    TokenIds,
)
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
)

Open = ConverseRequest.Open
Feed = ConverseRequest.Feed

ENDLESS = 2_000_000_000
"""Tokens of a completion that does not end by itself within any test; the server's limit."""

NUMBERS = itertools.count()

SEED = 23


@pytest.fixture(scope="module")
def server(repository: Repository) -> Iterator[RunningServer]:
    """A server for endless completions; in the end its log must not hold an error."""
    flags = ("--max-tokens", str(ENDLESS), "--slow-turn", "0")
    with running_server(repository.path, *flags) as running:
        yield running
        _, log = running.terminate()
    assert [line for line in log.splitlines() if "level=info" not in line] == []


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with connected(server.address) as stubs:
        yield stubs


@pytest.fixture(scope="module")
def metrics(server: RunningServer) -> Metrics:
    return Metrics(server.metrics_url)


@pytest.fixture
def lone(repository: Repository) -> LoneSession:
    """What a session of "lstm" with SEED has to be."""
    return LoneSession(repository, "lstm", SEED)


def command(command_id: str, **what: Message) -> ConverseRequest:
    fields: dict[str, Any] = what
    return ConverseRequest(command_id=command_id, **fields)


def opening(model: str = "lstm") -> ConverseRequest:
    """Opens a new session with SEED."""
    return command("open", open=Open(model=model, seed=SEED))


def feeding(command_id: str, text: str) -> ConverseRequest:
    return command(command_id, feed=Feed(text=text))


def completing(command_id: str, prompt: str, max_tokens: int) -> ConverseRequest:
    return command(command_id, complete=CompleteRequest(prompt=prompt, max_tokens=max_tokens))


STOP = command("stop", stop=ConverseRequest.Stop())


class Talk:
    """A stream whose commands are sent one by one."""

    def __init__(self, stubs: Stubs) -> None:
        self._commands: SimpleQueue[ConverseRequest | None] = SimpleQueue()
        call = stubs.completions.Converse(iter(self._commands.get, None), timeout=SECONDS)
        self._call = cast("grpc.Call", call)
        self._events = cast("Iterator[ConverseResponse]", call)

    def send(self, *commands: ConverseRequest) -> None:
        for each in commands:
            self._commands.put(each)

    def half_close(self) -> None:
        """Send no more commands."""
        self._commands.put(None)

    def end(self) -> None:
        self.half_close()
        self._call.cancel()

    def next(self) -> ConverseResponse:
        return next(self._events)

    def rest(self) -> list[ConverseResponse]:
        """Half-close, and read the events that are still to come."""
        self.half_close()
        return list(self._events)

    def until_outcome(self) -> list[ConverseResponse]:
        """The events up to the next outcome, which is the last of them."""
        events = [self.next()]
        while events[-1].WhichOneof("event") != "outcome":
            events.append(self.next())
        return events


@contextmanager
def talking(stubs: Stubs) -> Iterator[Talk]:
    talk = Talk(stubs)
    try:
        yield talk
    finally:
        talk.end()


def converse(stubs: Stubs, *commands: ConverseRequest) -> list[ConverseResponse]:
    """Send all commands, then half-close; returns all events."""
    with talking(stubs) as talk:
        talk.send(*commands)
        return talk.rest()


def kinds(events: list[ConverseResponse]) -> list[tuple[str, str | None]]:
    """Command and kind of the events in order, a run of deltas as one."""
    return [key for key, _ in groupby((e.command_id, e.WhichOneof("event")) for e in events)]


def of(command_id: str, events: list[ConverseResponse]) -> list[ConverseResponse]:
    return [event for event in events if event.command_id == command_id]


def drawn(command_id: str, events: list[ConverseResponse]) -> Delta:
    """The deltas of a completion, joined."""
    whole, texts = Delta(), []
    for event in of(command_id, events):
        texts.append(event.delta.text)
        whole.token_ids.extend(event.delta.token_ids)
        whole.logprobs.extend(event.delta.logprobs)
    whole.text = "".join(texts)
    return whole


def outcome(command_id: str, events: list[ConverseResponse]) -> Outcome:
    """The outcome of a command, which has to be its last event and the only one."""
    *others, last = of(command_id, events)
    assert all(event.WhichOneof("event") != "outcome" for event in others)
    assert last.WhichOneof("event") == "outcome"
    return last.outcome


def error(command_id: str, events: list[ConverseResponse]) -> Refusal:
    """The error of a command, which has to be its only event."""
    (event,) = of(command_id, events)
    assert event.WhichOneof("event") == "error"
    return refusal_of_status(event.error)


# Open


@pytest.mark.parametrize("model", ["lstm", "lstm/1"])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_open_makes_a_new_session_with_the_seed(stubs: Stubs, model: str, seed: int) -> None:
    (event,) = converse(stubs, command("o", open=Open(model=model, seed=seed)))
    opened = event.opened
    assert event.command_id == "o"
    assert opened.name.startswith("sessions/")
    assert (opened.model, opened.position, opened.seed) == ("lstm/1", 0, seed)
    # It outlives the stream.
    got = stubs.sessions.GetSession(GetSessionRequest(name=opened.name)).session
    assert got == opened


def test_open_without_a_seed_draws_one(stubs: Stubs) -> None:
    opening_ = command("o", open=Open(model="lstm"))
    seeds = {converse(stubs, opening_)[0].opened.seed for _ in range(4)}
    assert len(seeds) == 4


def test_open_gives_a_new_session_its_life(stubs: Stubs) -> None:
    life = Open(model="lstm", idle_ttl=Duration(seconds=60), max_age=Duration(seconds=90))
    opened = converse(stubs, command("o", open=life))[0].opened
    idle = opened.expire_time.ToNanoseconds() - opened.use_time.ToNanoseconds()
    age = opened.end_time.ToNanoseconds() - opened.create_time.ToNanoseconds()
    # The server counts in float64 seconds since the epoch.
    assert (idle, age) == pytest.approx((60e9, 90e9), abs=1e3)


@pytest.mark.parametrize("field", ["idle_ttl", "max_age"])
@pytest.mark.parametrize("seconds", [0, -1, 3650 * 86400 + 1])
def test_open_refuses_a_life_that_is_none(stubs: Stubs, field: str, seconds: int) -> None:
    life: dict[str, Any] = {field: Duration(seconds=seconds)}
    (event,) = converse(stubs, command("o", open=Open(model="lstm", **life)))
    assert refusal_of_status(event.error).fields == [f"open.{field}"]


@pytest.mark.parametrize("model", ["", "lstm", "lstm/1"])
def test_open_continues_a_session(stubs: Stubs, lone: LoneSession, model: str) -> None:
    session = stubs.create("lstm", seed=SEED)
    stubs.tell(session, "abc")
    lone.tell("abc")
    before = stubs.sessions.GetSession(GetSessionRequest(name=session)).session
    opening_ = command("o", open=Open(session=session, model=model))
    opened, *events = converse(stubs, opening_, completing("c", "d", 9))
    assert opened.opened == before
    lone.tell("d")
    assert drawn("c", events).text == lone.draw(9)
    assert stubs.position(session) == 13


@pytest.mark.parametrize("other", ["gru", "lstm/2", "lstm/"])
def test_open_refuses_a_session_of_another_model(stubs: Stubs, other: str) -> None:
    wrong = command("o", open=Open(session=stubs.create("lstm"), model=other))
    events = converse(stubs, wrong, feeding("f", "a"))
    assert error("o", events).fields == ["open.model"]
    assert error("f", events).fields == ["open"]


@pytest.mark.parametrize("again", [Open(model="lstm"), Open(model="lstm", seed=1)], ids=repr)
def test_a_stream_opens_once(stubs: Stubs, again: Open) -> None:
    events = converse(stubs, opening(), command("again", open=again), feeding("f", "ab"))
    refusal = error("again", events)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    # The first session stays chosen.
    assert outcome("f", events).session == events[0].opened.name
    assert outcome("f", events).position == 2


def test_the_session_of_a_stream_cannot_be_opened_again(stubs: Stubs) -> None:
    with talking(stubs) as talk:
        talk.send(opening())
        session = talk.next().opened.name
        talk.send(command("again", open=Open(session=session)))
        assert error("again", [talk.next()]).reason == "INVALID_FIELD"


@pytest.mark.parametrize(
    "early",
    [
        feeding("x", "a"),
        completing("x", "a", 1),
        command("x", score=Feed(text="a")),
    ],
    ids=lambda early: early.WhichOneof("command"),
)
def test_a_command_before_open_is_refused(stubs: Stubs, early: ConverseRequest) -> None:
    events = converse(stubs, early, opening(), feeding("f", "a"))
    refusal = error("x", events)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert kinds(events) == [("x", "error"), ("open", "opened"), ("f", "outcome")]
    assert outcome("f", events).position == 1


@pytest.mark.parametrize(
    ("bad", "code", "reason", "metadata"),
    [
        (Open(model="nope"), "NOT_FOUND", "MODEL_NOT_FOUND", {"model": "nope"}),
        (Open(model="lstm/2"), "NOT_FOUND", "MODEL_NOT_FOUND", {"model": "lstm/2"}),
        (
            Open(session="sessions/nope"),
            "NOT_FOUND",
            "SESSION_NOT_FOUND",
            {"session": "sessions/nope"},
        ),
        (Open(), "INVALID_ARGUMENT", "INVALID_FIELD", None),
        (
            Open(model="lstm", session="sessions/nope"),
            "NOT_FOUND",
            "SESSION_NOT_FOUND",
            {"session": "sessions/nope"},
        ),
        (
            Open(session="sessions/x", seed=0),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"field": "open.seed"},
        ),
    ],
    ids=str,
)
def test_an_open_that_fails_may_be_tried_again(
    stubs: Stubs, bad: Open, code: str, reason: str, metadata: dict[str, str] | None
) -> None:
    events = converse(stubs, command("bad", open=bad), opening(), feeding("f", "a"))
    refusal = error("bad", events)
    assert (refusal.code, refusal.reason) == (code, reason)
    if metadata is None:
        # One of two fields is at fault; either may be named.
        assert refusal.metadata["field"] in ("open.model", "open.session")
    else:
        assert refusal.metadata == metadata
    assert outcome("f", events).position == 1


def test_open_is_refused_where_no_session_has_room(repository: Repository) -> None:
    with (
        running_server(repository.path, "--max-sessions", "1") as full,
        connected(full.address) as stubs,
    ):
        session = stubs.create("lstm")
        rpc = refused(stubs.sessions.CreateSession, CreateSessionRequest(model="lstm"))
        events = converse(
            stubs, opening(), command("o", open=Open(session=session)), feeding("f", "a")
        )
    assert error("open", events) == rpc
    assert (rpc.code, rpc.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
    assert outcome("f", events).session == session


# Turns


def test_feed_tells(stubs: Stubs, lone: LoneSession) -> None:
    ids = TokenIds(ids=[CHARACTERS.index(character) for character in "cd"])
    opened, *events = converse(
        stubs, opening(), feeding("f", "ab"), command("g", feed=Feed(tokens=ids))
    )
    assert kinds(events) == [("f", "outcome"), ("g", "outcome")]
    for name, position in (("f", 2), ("g", 4)):
        ended = outcome(name, events)
        assert ended.finish_reason == FINISH_REASON_LENGTH
        assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (2, 0)
        assert (ended.position, ended.session) == (position, opened.opened.name)
        assert (ended.model, ended.seed, ended.replayed) == ("lstm/1", SEED, False)
    lone.tell("abcd")
    request = CompleteRequest(session=opened.opened.name, max_tokens=9)
    assert stubs.completions.Complete(request, timeout=SECONDS).text == lone.draw(9)


def test_complete_draws(stubs: Stubs, lone: LoneSession) -> None:
    lone.tell("ab")
    text = lone.draw(40)
    opened, *events = converse(stubs, opening(), completing("c", "ab", 40))
    assert kinds(events) == [("c", "delta"), ("c", "outcome")]
    whole, ended = drawn("c", events), outcome("c", events)
    assert whole.text == text
    assert list(whole.token_ids) == [CHARACTERS.index(character) for character in text]
    assert not whole.logprobs
    assert ended.finish_reason == FINISH_REASON_LENGTH
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (2, 40)
    assert (ended.position, ended.session) == (42, opened.opened.name)
    assert (ended.model, ended.seed) == ("lstm/1", SEED)


def test_complete_takes_what_the_rpc_takes(stubs: Stubs, lone: LoneSession) -> None:
    lone.tell("ab")
    text = lone.draw(30)
    stop = text[9:12]
    found = text.index(stop)
    request = CompleteRequest(prompt="ab", max_tokens=30, stop=[stop], logprobs=2)
    _, *events = converse(stubs, opening(), command("c", complete=request))
    whole, ended = drawn("c", events), outcome("c", events)
    assert (ended.finish_reason, ended.matched_stop) == (FINISH_REASON_STOP, stop)
    assert whole.text == text[:found]
    assert len(whole.token_ids) == len(whole.logprobs) == found + 3
    assert ended.position == 2 + found + 3
    for token, entry in zip(whole.token_ids, whole.logprobs, strict=True):
        assert (entry.token_id, entry.token) == (token, CHARACTERS[token].encode())
        assert len(entry.top) == 2


def test_a_completion_may_have_its_own_seed(stubs: Stubs, repository: Repository) -> None:
    other = LoneSession(repository, "lstm", 99)
    request = CompleteRequest(prompt="ab", max_tokens=20, seed=99)
    other.tell("ab")
    events = converse(stubs, opening(), command("c", complete=request), feeding("f", "a"))
    assert drawn("c", events).text == other.draw(20)
    assert (outcome("c", events).seed, outcome("f", events).seed) == (99, SEED)


def test_score_tells_and_reports(stubs: Stubs, lone: LoneSession) -> None:
    first, second = lone.tell("abcd"), lone.tell("xyz")
    opened, *events = converse(
        stubs,
        opening(),
        command("s", score=Feed(text="abcd", logprobs=0)),
        command("t", score=Feed(text="xyz", logprobs=3)),
        completing("c", "", 9),
    )
    assert kinds(events)[:4] == [("s", "score"), ("s", "outcome"), ("t", "score"), ("t", "outcome")]
    for name, text, expected, top in (("s", "abcd", first, 0), ("t", "xyz", second, 3)):
        score = of(name, events)[0].score
        assert [t.logprob if t.HasField("logprob") else None for t in score.tokens] == expected
        assert b"".join(token.token for token in score.tokens) == text.encode()
        assert [CHARACTERS[token.token_id] for token in score.tokens] == list(text)
        assert score.total_logprob == pytest.approx(sum(filter(None, expected)), rel=1e-12)
        assert score.model == "lstm/1"
        assert all(len(token.top) == top for token in score.tokens)
        ended = outcome(name, events)
        assert ended.finish_reason == FINISH_REASON_LENGTH
        assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (len(text), 0)
    assert outcome("t", events).position == 7
    for token in of("t", events)[0].score.tokens:
        values = [other.logprob for other in token.top]
        assert values == sorted(values, reverse=True)
        assert len({other.token_id for other in token.top}) == 3
        assert token.logprob <= values[0]
    # Unlike the rpc it advances the session.
    assert drawn("c", events).text == lone.draw(9)
    assert stubs.position(opened.opened.name) == 16


def test_score_without_logprobs_reports_the_total_alone(stubs: Stubs, lone: LoneSession) -> None:
    lone.tell("ab")
    expected = lone.tell("xyz")
    _, *events = converse(
        stubs, opening(), feeding("f", "ab"), command("s", score=Feed(text="xyz"))
    )
    score = of("s", events)[0].score
    assert not score.tokens
    assert score.total_logprob == pytest.approx(sum(filter(None, expected)), rel=1e-12)
    assert outcome("s", events).position == 5


@pytest.mark.parametrize("logprobs", [None, 0, 5])
def test_score_says_what_the_rpc_says(stubs: Stubs, logprobs: int | None) -> None:
    session = stubs.create("lstm", seed=SEED)
    stubs.tell(session, "ab")
    request = ScoreRequest(session=session, text="wxyz", logprobs=logprobs)
    rpc = stubs.completions.Score(request, timeout=SECONDS)
    commands = (
        command("o", open=Open(session=session)),
        command("s", score=Feed(text="wxyz", logprobs=logprobs)),
    )
    assert of("s", converse(stubs, *commands))[0].score == rpc


def test_expected_position_is_checked_when_a_commands_turn_comes(stubs: Stubs) -> None:
    commands = (
        command("f", feed=Feed(text="ab", expected_position=0)),
        command("s", score=Feed(text="c", expected_position=2)),
        command("c", complete=CompleteRequest(max_tokens=4, expected_position=3)),
        command("x", feed=Feed(text="a", expected_position=3)),
        command("g", feed=Feed(text="a", expected_position=7)),
    )
    opened, *events = converse(stubs, opening(), *commands)
    assert [outcome(name, events).position for name in "fscg"] == [2, 3, 7, 8]
    refusal = error("x", events)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
    assert refusal.metadata == {"session": opened.opened.name, "position": "7"}


# Order, ids, half-close


def test_queued_commands_are_carried_out_in_order(stubs: Stubs, lone: LoneSession) -> None:
    commands = [
        feeding("1", "abc"),
        completing("2", "", 10),
        command("3", score=Feed(text="xy", logprobs=0)),
        feeding("4", "nope é"),
        completing("5", "d", 10),
        feeding("6", "e"),
        completing("7", "f", 10),
    ]
    _, *events = converse(stubs, opening(), *commands)
    assert kinds(events) == [
        ("1", "outcome"),
        ("2", "delta"),
        ("2", "outcome"),
        ("3", "score"),
        ("3", "outcome"),
        ("4", "error"),
        ("5", "delta"),
        ("5", "outcome"),
        ("6", "outcome"),
        ("7", "delta"),
        ("7", "outcome"),
    ]
    lone.tell("abc")
    assert drawn("2", events).text == lone.draw(10)
    lone.tell("xyd")
    assert drawn("5", events).text == lone.draw(10)
    lone.tell("ef")
    assert drawn("7", events).text == lone.draw(10)
    assert [outcome(name, events).position for name in "12567"] == [3, 13, 26, 27, 38]


def test_there_may_be_many_commands_in_line(stubs: Stubs, lone: LoneSession) -> None:
    count = 300
    feeds = [feeding(str(place), CHARACTERS[place % 50]) for place in range(count)]
    _, *events = converse(stubs, opening(), *feeds, completing("c", "", 9))
    assert [event.command_id for event in events[:count]] == [str(n) for n in range(count)]
    assert [event.outcome.position for event in events[:count]] == list(range(1, count + 1))
    lone.tell("".join(CHARACTERS[place % 50] for place in range(count)))
    assert drawn("c", events).text == lone.draw(9)


def test_behind_a_mebibyte_of_commands_nothing_is_read(stubs: Stubs) -> None:
    large = [feeding(name, "é" * 350_000) for name in ("x", "y")]
    _, *events = converse(stubs, opening(), completing("c", "x", 3000), *large, STOP)
    # The stop was read once there was nothing to stop any more.
    assert outcome("c", events).finish_reason == FINISH_REASON_LENGTH
    assert [error(name, events).reason for name in ("x", "y")] == ["UNKNOWN_TEXT"] * 2


@pytest.mark.parametrize("name", ["", "1", "\0 é😀\n", "x" * 10_000])
def test_every_event_repeats_the_id_of_its_command(stubs: Stubs, name: str) -> None:
    events = converse(
        stubs,
        command(name, open=Open(model="lstm")),
        feeding(name, "a"),
        completing(name, "b", 40),
        command(name, score=Feed(text="c")),
        feeding(name, "é"),
    )
    assert {event.command_id for event in events} == {name}
    whats = [what for _, what in kinds(events)]
    assert whats == ["opened", "outcome", "delta", "outcome", "score", "outcome", "error"]


def test_commands_with_the_same_id_are_separate_commands(stubs: Stubs) -> None:
    events = converse(stubs, opening(), feeding("f", "a"), feeding("f", "a"))
    assert [event.outcome.position for event in of("f", events)] == [1, 2]


def test_half_close_finishes_what_is_in_line(stubs: Stubs, lone: LoneSession) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), completing("c", "ab", 2000), feeding("f", "xy"))
        talk.send(completing("d", "", 9))
        talk.half_close()
        assert talk.next().command_id == "open"
        assert talk.next().delta.token_ids
        events = talk.rest()
    lone.tell("ab")
    lone.draw(2000)
    lone.tell("xy")
    assert outcome("c", events).usage.completion_tokens == 2000
    assert outcome("f", events).position == 2004
    assert drawn("d", events).text == lone.draw(9)


def test_a_stream_without_commands_ends(stubs: Stubs) -> None:
    assert converse(stubs) == []


# Stop


@pytest.fixture
def bulk() -> TokenIds:
    """A text that takes the server far longer than reading the commands sent along with it.

    It has not been told before, so nothing of it is remembered.
    """
    return TokenIds(ids=[next(NUMBERS) % SIZE] * 8 + [0] * 20_000)


def after_bulk(stubs: Stubs, bulk: TokenIds, text: str, count: int) -> str:
    """What is drawn after `bulk` and a text; the lone run would take long for that."""
    ids = [*bulk.ids, *map(CHARACTERS.index, text)]
    request = CompleteRequest(model="lstm", max_tokens=count, seed=SEED)
    request.prompt_tokens.ids.extend(ids)
    return stubs.completions.Complete(request, timeout=SECONDS).text


def expect_stopped(ended: Outcome, told: int, count: int, position: int) -> None:
    assert (ended.finish_reason, ended.matched_stop) == (FINISH_REASON_STOPPED, "")
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (told, count)
    assert ended.position == position


def test_stop_ends_a_completion_at_the_last_token_delivered(
    stubs: Stubs, lone: LoneSession
) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), completing("c", "abc", ENDLESS))
        session = talk.next().opened.name
        first = talk.next()
        assert first.delta.token_ids
        talk.send(STOP)
        events = [first, *talk.until_outcome()]
        count = len(drawn("c", events).token_ids)
        expect_stopped(outcome("c", events), told=3, count=count, position=3 + count)
        assert stubs.position(session) == 3 + count
        lone.tell("abc")
        assert drawn("c", events).text == lone.draw(count)
        # The session goes on from there.
        talk.send(completing("d", "x", 9))
        after = talk.rest()
    lone.tell("x")
    assert drawn("d", after).text == lone.draw(9)
    assert kinds(after) == [("d", "delta"), ("d", "outcome")]


def test_a_completion_that_has_not_begun_is_stopped_without_a_draw(
    stubs: Stubs, bulk: TokenIds
) -> None:
    feed = command("bulk", feed=Feed(tokens=bulk))
    commands = (feed, completing("c", "xyz", ENDLESS), STOP, completing("d", "", 9))
    _, *events = converse(stubs, opening(), *commands)
    size = len(bulk.ids)
    assert kinds(events)[:2] == [("bulk", "outcome"), ("c", "outcome")]
    assert outcome("bulk", events).position == size
    expect_stopped(outcome("c", events), told=3, count=0, position=size + 3)
    assert outcome("d", events).finish_reason == FINISH_REASON_LENGTH
    assert drawn("d", events).text == after_bulk(stubs, bulk, "xyz", 9)
    assert of("stop", events) == []


def test_stop_during_the_prompt_has_the_rest_of_it_told(
    stubs: Stubs, metrics: Metrics, bulk: TokenIds
) -> None:
    prompt = CompleteRequest(prompt_tokens=bulk, max_tokens=ENDLESS)
    with talking(stubs) as talk:
        talk.send(opening(), command("c", complete=prompt))
        session = talk.next().opened.name
        metrics.wait_for("unrolled_rows_active", 1)
        talk.send(STOP)
        events = talk.rest()
    size = len(bulk.ids)
    assert kinds(events) == [("c", "outcome")]
    expect_stopped(outcome("c", events), told=size, count=0, position=size)
    assert stubs.position(session) == size


@pytest.mark.parametrize("begun", [True, False])
def test_a_second_stop_leaves_the_next_completion_alone(
    stubs: Stubs, bulk: TokenIds, begun: bool
) -> None:
    """Neither while the stopped one tells its prompt, nor while it has not begun."""
    prompt = CompleteRequest(prompt_tokens=bulk, max_tokens=ENDLESS)
    line = [command("c", complete=prompt)]
    if not begun:
        line = [command("bulk", feed=Feed(tokens=bulk)), completing("c", "", ENDLESS)]
    _, *events = converse(stubs, opening(), *line, completing("d", "", 7), STOP, STOP, STOP)
    size = len(bulk.ids)
    told = size if begun else 0
    expect_stopped(outcome("c", events), told=told, count=0, position=size)
    assert outcome("d", events).finish_reason == FINISH_REASON_LENGTH
    assert outcome("d", events).usage.completion_tokens == 7
    assert of("stop", events) == []


def test_stop_takes_the_first_completion_in_line(stubs: Stubs, bulk: TokenIds) -> None:
    feed = command("bulk", feed=Feed(tokens=bulk))
    line = [completing("a", "x", ENDLESS), completing("b", "x", 5), completing("c", "x", 5)]
    events = converse(stubs, opening(), feed, *line, STOP)
    assert outcome("a", events).finish_reason == FINISH_REASON_STOPPED
    assert outcome("b", events).finish_reason == FINISH_REASON_LENGTH
    assert outcome("c", events).finish_reason == FINISH_REASON_LENGTH
    assert outcome("c", events).position == len(bulk.ids) + 1 + 6 + 6


def test_stop_may_say_which_completion(stubs: Stubs, bulk: TokenIds) -> None:
    feed = command("bulk", feed=Feed(tokens=bulk))
    line = [completing(each, "x", 5) for each in ("a", "b", "b", "c")]
    stops = [command("", stop=ConverseRequest.Stop(command_id=each)) for each in ("b", "bulk", "e")]
    _, *events = converse(stubs, opening(), feed, *line, *stops)
    stopped = FINISH_REASON_STOPPED
    reasons = [event.outcome.finish_reason for event in events if event.HasField("outcome")]
    assert [reason == stopped for reason in reasons] == [False, False, True, False, False]


def test_stop_of_a_completion_that_has_ended_leaves_the_next_alone(stubs: Stubs) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), completing("a", "x", 5), completing("b", "x", 3000))
        talk.next()
        talk.until_outcome()
        talk.send(command("", stop=ConverseRequest.Stop(command_id="a")))
        ended = outcome("b", talk.rest())
    assert ended.finish_reason == FINISH_REASON_LENGTH
    assert ended.usage.completion_tokens == 3000


def test_one_completion_after_the_other_can_be_stopped(stubs: Stubs) -> None:
    position = 0
    with talking(stubs) as talk:
        talk.send(opening())
        talk.next()
        for name in "abcd":
            talk.send(completing(name, "x", ENDLESS))
            first = talk.next()
            talk.send(STOP)
            events = [first, *talk.until_outcome()]
            count = len(drawn(name, events).token_ids)
            position += 1 + count
            expect_stopped(outcome(name, events), told=1, count=count, position=position)


def test_stop_is_for_the_next_completion_once_the_outcome_is_there(stubs: Stubs) -> None:
    """The completion whose outcome was received is not under way, so it takes no stop."""
    with talking(stubs) as talk:
        talk.send(opening())
        talk.next()
        for _ in range(50):
            talk.send(completing("short", "x", 1))
            assert outcome("short", talk.until_outcome()).usage.completion_tokens == 1
            talk.send(completing("long", "x", ENDLESS), STOP)
            events = talk.until_outcome()
            assert outcome("long", events).finish_reason == FINISH_REASON_STOPPED


def test_stop_does_nothing_where_nothing_is_drawn(stubs: Stubs, bulk: TokenIds) -> None:
    feed = command("bulk", feed=Feed(tokens=bulk))
    score = command("score", score=Feed(text="xy"))
    commands = (STOP, opening(), STOP, feed, STOP, score, STOP, completing("c", "", 12))
    _, *events = converse(stubs, *commands)
    size = len(bulk.ids)
    assert kinds(events) == [
        ("bulk", "outcome"),
        ("score", "score"),
        ("score", "outcome"),
        ("c", "delta"),
        ("c", "outcome"),
    ]
    assert outcome("bulk", events).position == size
    assert drawn("c", events).text == after_bulk(stubs, bulk, "xy", 12)
    assert outcome("c", events).finish_reason == FINISH_REASON_LENGTH


def test_stop_after_the_end_does_nothing(stubs: Stubs) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), completing("a", "x", 5))
        talk.next()
        talk.until_outcome()
        talk.send(STOP, completing("b", "x", 40))
        events = talk.rest()
    assert kinds(events) == [("b", "delta"), ("b", "outcome")]
    assert outcome("b", events).finish_reason == FINISH_REASON_LENGTH
    assert outcome("b", events).usage.completion_tokens == 40


# Errors

SIZE = len(CHARACTERS)
TOO_LONG = "r" * 129

INVALID = (
    ("complete.temperature", command("x", complete=CompleteRequest(temperature=-1.0))),
    ("complete.top_k", command("x", complete=CompleteRequest(top_k=-1))),
    ("complete.top_p", command("x", complete=CompleteRequest(top_p=0.0))),
    ("complete.min_p", command("x", complete=CompleteRequest(min_p=2.0))),
    ("complete.max_tokens", command("x", complete=CompleteRequest(max_tokens=-1))),
    ("complete.max_tokens", command("x", complete=CompleteRequest(max_tokens=ENDLESS + 1))),
    ("complete.stop[1]", command("x", complete=CompleteRequest(stop=["a", ""]))),
    ("complete.logprobs", command("x", complete=CompleteRequest(logprobs=21))),
    (
        "complete.prompt_tokens.ids[0]",
        command("x", complete=CompleteRequest(prompt_tokens=TokenIds(ids=[SIZE]))),
    ),
    ("complete.session", command("x", complete=CompleteRequest(session="sessions/x"))),
    ("complete.model", command("x", complete=CompleteRequest(model="lstm"))),
    ("feed.text", command("x", feed=Feed())),
    ("feed.tokens.ids[1]", command("x", feed=Feed(tokens=TokenIds(ids=[0, -1])))),
    ("score.text", command("x", score=Feed())),
    ("score.tokens.ids[0]", command("x", score=Feed(tokens=TokenIds(ids=[SIZE])))),
    ("score.logprobs", command("x", score=Feed(text="a", logprobs=21))),
    ("score.logprobs", command("x", score=Feed(text="a", logprobs=-1))),
    ("complete.request_id", command("x", complete=CompleteRequest(request_id=TOO_LONG))),
    ("feed.request_id", command("x", feed=Feed(text="a", request_id=TOO_LONG))),
    ("score.request_id", command("x", score=Feed(text="a", request_id=TOO_LONG))),
    ("command", command("x")),
)

UNKNOWN_TEXT = (
    ("complete.prompt", command("x", complete=CompleteRequest(prompt="abé"))),
    ("feed.text", command("x", feed=Feed(text="abé"))),
    ("score.text", command("x", score=Feed(text="abé"))),
)


def refused_amid(stubs: Stubs, lone: LoneSession, bad: ConverseRequest) -> Refusal:
    """The error of a command "x" between others, which must not notice it."""
    commands = (opening(), feeding("f", "ab"), bad, feeding("g", "c"), completing("c", "", 6))
    events = converse(stubs, *commands)
    assert [(event.command_id, event.WhichOneof("event")) for event in events[:4]] == [
        ("open", "opened"),
        ("f", "outcome"),
        ("x", "error"),
        ("g", "outcome"),
    ]
    lone.tell("abc")
    assert drawn("c", events).text == lone.draw(6)
    assert outcome("c", events).position == 9
    return error("x", events)


@pytest.mark.parametrize(("field", "bad"), INVALID, ids=str)
def test_a_bad_field_is_an_event_and_the_stream_goes_on(
    stubs: Stubs, lone: LoneSession, field: str, bad: ConverseRequest
) -> None:
    refusal = refused_amid(stubs, lone, bad)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (refusal.metadata, refusal.fields) == ({"field": field}, [field])
    assert refusal.message.startswith(f"{field}: ")
    assert refusal.retry_after is None


def test_what_is_not_implemented_is_refused(stubs: Stubs, lone: LoneSession) -> None:
    refusal = refused_amid(stubs, lone, command("x", feed=Feed(text="a", logprobs=0)))
    assert (refusal.code, refusal.reason) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED")
    assert refusal.metadata == {"field": "feed.logprobs"}


@pytest.mark.parametrize(("field", "bad"), UNKNOWN_TEXT, ids=str)
def test_text_that_the_model_lacks_is_refused_with_its_offset(
    stubs: Stubs, lone: LoneSession, field: str, bad: ConverseRequest
) -> None:
    refusal = refused_amid(stubs, lone, bad)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TEXT")
    assert refusal.metadata == {"field": field, "offset": "2"}
    assert refusal.fields == [field]


def test_an_error_event_says_what_the_status_of_the_rpc_says(stubs: Stubs) -> None:
    session = stubs.create("gru")
    for request in (
        CompleteRequest(max_tokens=1),
        CompleteRequest(prompt="a", max_tokens=1, expected_position=5),
    ):
        commands = command("o", open=Open(session=session)), command("x", complete=request)
        event = error("x", converse(stubs, *commands))
        request.session = session
        assert refused(stubs.completions.Complete, request) == event


def test_without_a_start_token_there_is_nothing_to_continue_from(stubs: Stubs) -> None:
    opened, *events = converse(
        stubs, opening("gru"), completing("x", "", 1), completing("c", "a", 5)
    )
    refusal = error("x", events)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOTHING_TO_CONTINUE")
    assert refusal.metadata == {"session": opened.opened.name}
    assert outcome("c", events).position == 6


def test_a_session_that_is_deleted_between_commands_is_not_found(stubs: Stubs) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), feeding("f", "a"))
        session = talk.next().opened.name
        assert talk.next().outcome.position == 1
        stubs.sessions.DeleteSession(DeleteSessionRequest(name=session))
        talk.send(feeding("g", "a"), completing("h", "a", 1))
        events = talk.rest()
    for name in "gh":
        refusal = error(name, events)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        assert refusal.metadata == {"session": session}


# Others who use the session


def test_a_session_that_draws_is_busy_for_others(stubs: Stubs) -> None:
    with talking(stubs) as one, talking(stubs) as two:
        one.send(opening(), completing("c", "abc", ENDLESS))
        session = one.next().opened.name
        first = one.next()
        assert first.delta.token_ids
        two.send(command("o", open=Open(session=session)), feeding("x", "a"))
        assert two.next().opened.name == session
        busy = error("x", [two.next()])
        assert (busy.code, busy.reason) == ("ABORTED", "SESSION_BUSY")
        assert busy.metadata == {"session": session}
        unary = CompleteRequest(session=session, prompt="a", max_tokens=1)
        assert refused(stubs.completions.Complete, unary) == busy
        # A stop is for the stream it comes in.
        two.send(STOP, completing("y", "a", 1))
        assert error("y", [two.next()]) == busy
        one.send(STOP)
        position = one.until_outcome()[-1].outcome.position
        two.send(feeding("z", "a"))
        assert outcome("z", [two.next()]).position == position + 1


def test_two_streams_may_take_turns(stubs: Stubs, lone: LoneSession) -> None:
    with talking(stubs) as one, talking(stubs) as two:
        one.send(opening())
        session = one.next().opened.name
        two.send(command("o", open=Open(session=session)))
        two.next()
        for _ in range(3):
            one.send(feeding("f", "a"))
            lone.tell("a")
            assert one.next().outcome.position == lone.position
            two.send(completing("c", "b", 7))
            lone.tell("b")
            events = two.until_outcome()
            assert drawn("c", events).text == lone.draw(7)
            assert outcome("c", events).position == lone.position


def test_between_commands_the_session_is_free(stubs: Stubs, lone: LoneSession) -> None:
    with talking(stubs) as talk:
        talk.send(opening(), feeding("f", "ab"))
        session = talk.next().opened.name
        assert talk.next().outcome.position == 2
        lone.tell("ab")
        request = CompleteRequest(session=session, prompt="c", max_tokens=5)
        lone.tell("c")
        answer = stubs.completions.Complete(request, timeout=SECONDS)
        assert answer.text == lone.draw(5)
        child = stubs.sessions.ForkSession(ForkSessionRequest(name=session)).session
        stubs.tell(child.name, "xyz")
        stubs.completions.Score(ScoreRequest(session=session, text="xyz"), timeout=SECONDS)
        assert stubs.position(session) == 8
        talk.send(completing("d", "e", 7))
        lone.tell("e")
        events = talk.rest()
    assert drawn("d", events).text == lone.draw(7)
    assert outcome("d", events).position == 16

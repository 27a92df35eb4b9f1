"""Checkpoints and rewinds over gRPC; what is drawn after them is checked by the lone run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from support.calls import SECONDS, Stubs, connected, refusal_of_status, refused, unread_turn
from support.lone import LoneSession
from support.metrics import Metrics
from support.models import Repository
from support.sealed import key_file
from support.server import RunningServer, running_server
from support.stored import Serving, serving
from unrolled.v1.completion_pb2 import (
    DURABILITY_FSYNC,
    DURABILITY_MEMORY,
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    ConverseResponse,
)
from unrolled.v1.session_pb2 import (
    CheckpointSessionRequest,
    CreateSessionRequest,
    DeleteCheckpointRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ImportSessionRequest,
    ListSessionsRequest,
    RewindSessionRequest,
    Session,
)


def create(stubs: Stubs, seed: int = 5, *, undo: bool = False, model: str = "lstm") -> str:
    request = CreateSessionRequest(model=model, seed=seed, undo=undo)
    return stubs.sessions.CreateSession(request, timeout=SECONDS).session.name


def get(stubs: Stubs, name: str) -> Session:
    return stubs.sessions.GetSession(GetSessionRequest(name=name), timeout=SECONDS).session


def turn(
    stubs: Stubs, session: str, prompt: str, drawn: int, request_id: str = ""
) -> CompleteResponse:
    request = CompleteRequest(
        session=session, prompt=prompt, max_tokens=drawn, request_id=request_id
    )
    return stubs.completions.Complete(request, timeout=SECONDS)


def mark(stubs: Stubs, session: str, checkpoint: str) -> Session:
    request = CheckpointSessionRequest(name=session, checkpoint=checkpoint)
    return stubs.sessions.CheckpointSession(request, timeout=SECONDS).session


def rewind(stubs: Stubs, session: str, checkpoint: str = "") -> Session:
    request = RewindSessionRequest(name=session, checkpoint=checkpoint)
    return stubs.sessions.RewindSession(request, timeout=SECONDS).session


def places(session: Session) -> dict[str, int]:
    return {place.id: place.position for place in session.checkpoints}


@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_what_is_drawn_after_a_rewind_is_what_was_drawn_before(
    repository: Repository, stubs: Stubs, model: str
) -> None:
    name = create(stubs, model=model)
    lone = LoneSession(repository, model, 5)
    lone.tell("ab")
    first, second = lone.draw(20), lone.draw(30)
    assert turn(stubs, name, "ab", 20).text == first
    assert places(mark(stubs, name, "here")) == {"here": 22}
    for _ in range(2):
        assert turn(stubs, name, "", 30).text == second
        assert rewind(stubs, name, "here").position == 22
    assert turn(stubs, name, "", 30).text == second


def test_the_last_turn_is_taken_back_once(repository: Repository, stubs: Stubs) -> None:
    name = create(stubs, undo=True)
    lone = LoneSession(repository, "lstm", 5)
    lone.tell("ab")
    first = lone.draw(10)
    lone.tell("c")
    second = lone.draw(5)
    assert not get(stubs, name).HasField("undo_position")
    assert turn(stubs, name, "ab", 10).text == first
    assert turn(stubs, name, "c", 5).text == second
    assert get(stubs, name).undo_position == 12
    after = rewind(stubs, name)
    assert (after.position, after.undo, after.HasField("undo_position")) == (12, True, False)
    refusal = refused(stubs.sessions.RewindSession, RewindSessionRequest(name=name))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOTHING_TO_UNDO")
    assert turn(stubs, name, "c", 5).text == second
    assert rewind(stubs, name).position == 12


def test_what_it_takes_is_counted(repository: Repository) -> None:
    with running_server(repository.path) as server, connected(server.address) as stubs:
        metrics = Metrics(server.metrics_url)

        def states() -> float:
            """Bytes of checkpoints, in states of the model; each has few more."""
            whole, rest = divmod(metrics.value("unrolled_session_checkpoint_bytes"), state_bytes)
            assert rest < 60 * (whole + 1)
            return whole

        plain, undone = create(stubs), create(stubs, undo=True)
        state_bytes = get(stubs, plain).state_bytes
        for name in (plain, undone):
            turn(stubs, name, "ab", 3)
        # Before its first turn it stood at the zero state, which takes no bytes.
        assert states() == 0
        turn(stubs, undone, "c", 1)
        assert states() == 1
        mark(stubs, plain, "one")
        mark(stubs, plain, "two")
        assert states() == 3
        mark(stubs, plain, "one")
        assert states() == 3
        request = DeleteCheckpointRequest(name=plain, checkpoint="one")
        stubs.sessions.DeleteCheckpoint(request, timeout=SECONDS)
        assert states() == 2
        stubs.sessions.DeleteSession(DeleteSessionRequest(name=undone), timeout=SECONDS)
        assert states() == 1
        stubs.sessions.DeleteSession(DeleteSessionRequest(name=plain), timeout=SECONDS)
        assert metrics.value("unrolled_session_checkpoint_bytes") == 0


def test_it_goes_back_to_the_beginning(repository: Repository, stubs: Stubs) -> None:
    """To the zero state, from which a model without a start token cannot go on by itself."""
    name = create(stubs, undo=True, model="gru")
    lone = LoneSession(repository, "gru", 5)
    lone.tell("a")
    text = lone.draw(9)
    assert turn(stubs, name, "a", 9).text == text
    assert rewind(stubs, name).position == 0
    nothing = CompleteRequest(session=name, max_tokens=1)
    assert refused(stubs.completions.Complete, nothing).reason == "NOTHING_TO_CONTINUE"
    assert turn(stubs, name, "a", 9).text == text


def test_a_turn_is_kept_only_where_that_was_asked_for(stubs: Stubs) -> None:
    name = create(stubs)
    turn(stubs, name, "a", 1)
    refusal = refused(stubs.sessions.RewindSession, RewindSessionRequest(name=name))
    assert refusal.metadata == {"session": name}
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOTHING_TO_UNDO")
    assert stubs.position(name) == 2


def test_a_fork_begins_without_checkpoints(stubs: Stubs) -> None:
    name = create(stubs, undo=True)
    turn(stubs, name, "a", 1)
    mark(stubs, name, "here")
    fork = stubs.sessions.ForkSession(ForkSessionRequest(name=name)).session
    assert (places(fork), fork.undo, fork.HasField("undo_position")) == ({}, True, False)
    turn(stubs, fork.name, "b", 3)
    assert rewind(stubs, fork.name).position == 2
    assert places(get(stubs, name)) == {"here": 2}


def test_an_imported_session_begins_without_checkpoints(
    repository: Repository, tmp_path: Path
) -> None:
    keys = key_file(tmp_path / "keys", "a")
    with (
        running_server(repository.path, "--seal-key-file", str(keys)) as running,
        connected(running.address) as stubs,
    ):
        name = create(stubs, undo=True)
        turn(stubs, name, "a", 1)
        mark(stubs, name, "here")
        snapshot = stubs.sessions.ExportSession(ExportSessionRequest(name=name)).snapshot
        for undo in (False, True):
            asked = ImportSessionRequest(snapshot=snapshot, undo=undo, max_age=Duration(seconds=9))
            imported = stubs.sessions.ImportSession(asked).session
            assert (imported.position, places(imported), imported.undo) == (2, {}, undo)
            assert imported.end_time == imported.expire_time


def test_a_checkpoint_moves_and_is_deleted(stubs: Stubs) -> None:
    name = create(stubs)
    for id_ in ("b", "a", "Z.z_9-"):
        turn(stubs, name, "a", 0)
        mark(stubs, name, id_)
    turn(stubs, name, "a", 0)
    assert list(places(mark(stubs, name, "b")).items()) == [("Z.z_9-", 3), ("a", 2), ("b", 4)]
    gone = DeleteCheckpointRequest(name=name, checkpoint="a")
    assert places(stubs.sessions.DeleteCheckpoint(gone).session) == {"Z.z_9-": 3, "b": 4}
    for call, request in (
        (stubs.sessions.DeleteCheckpoint, gone),
        (stubs.sessions.RewindSession, RewindSessionRequest(name=name, checkpoint="a")),
    ):
        refusal = refused(call, request)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "CHECKPOINT_NOT_FOUND")
        assert refusal.metadata == {"session": name, "checkpoint": "a"}
    assert stubs.position(name) == 4


def test_a_session_has_sixteen_checkpoints(stubs: Stubs) -> None:
    name = create(stubs, undo=True)
    turn(stubs, name, "a", 0)
    for number in range(16):
        mark(stubs, name, f"c{number}")
    more = CheckpointSessionRequest(name=name, checkpoint="more")
    refusal = refused(stubs.sessions.CheckpointSession, more)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "TOO_MANY_CHECKPOINTS")
    assert refusal.metadata == {"session": name, "limit": "16"}
    turn(stubs, name, "a", 0)
    assert places(mark(stubs, name, "c7"))["c7"] == 2
    assert rewind(stubs, name).position == 1


@pytest.mark.parametrize("id_", ["a b", "-a", "a/b", "é", "a" * 64, "a\n"])
def test_a_checkpoint_has_a_plain_name(stubs: Stubs, id_: str) -> None:
    name = create(stubs)
    for call, request in (
        (stubs.sessions.CheckpointSession, CheckpointSessionRequest(name=name, checkpoint=id_)),
        (stubs.sessions.RewindSession, RewindSessionRequest(name=name, checkpoint=id_)),
        (stubs.sessions.DeleteCheckpoint, DeleteCheckpointRequest(name=name, checkpoint=id_)),
    ):
        refusal = refused(call, request)
        assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ["checkpoint"])


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("CheckpointSession", CheckpointSessionRequest(checkpoint="a"), "name"),
        ("CheckpointSession", CheckpointSessionRequest(name="sessions/1"), "checkpoint"),
        ("RewindSession", RewindSessionRequest(), "name"),
        ("DeleteCheckpoint", DeleteCheckpointRequest(name="sessions/1"), "checkpoint"),
    ],
)
def test_what_is_needed_is_named(stubs: Stubs, method: str, request_: Message, field: str) -> None:
    refusal = refused(getattr(stubs.sessions, method), request_)
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", [field])


def test_the_position_is_guarded(stubs: Stubs) -> None:
    name = create(stubs)
    turn(stubs, name, "ab", 0)
    mark(stubs, name, "here")
    turn(stubs, name, "ab", 0)
    for call, request in (
        (
            stubs.sessions.CheckpointSession,
            CheckpointSessionRequest(name=name, checkpoint="x", expected_position=2),
        ),
        (
            stubs.sessions.RewindSession,
            RewindSessionRequest(name=name, checkpoint="here", expected_position=2),
        ),
    ):
        refusal = refused(call, request)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "POSITION_MISMATCH")
        assert refusal.metadata["position"] == "4"
    session = get(stubs, name)
    assert (session.position, places(session)) == (4, {"here": 2})


def test_a_session_that_is_busy_is_not_moved(server: RunningServer, stubs: Stubs) -> None:
    name = create(stubs)
    turn(stubs, name, "ab", 0)
    mark(stubs, name, "here")
    with unread_turn(server.address, CompleteRequest(session=name)):
        for call, request in (
            (stubs.sessions.CheckpointSession, CheckpointSessionRequest(name=name, checkpoint="x")),
            (stubs.sessions.RewindSession, RewindSessionRequest(name=name, checkpoint="here")),
            (
                stubs.sessions.DeleteCheckpoint,
                DeleteCheckpointRequest(name=name, checkpoint="here"),
            ),
        ):
            refusal = refused(call, request)
            assert (refusal.code, refusal.reason) == ("ABORTED", "SESSION_BUSY")
    assert places(get(stubs, name)) == {"here": 2}


def test_a_rewind_counts_as_a_use(stubs: Stubs) -> None:
    name = create(stubs)
    sessions = [get(stubs, name), mark(stubs, name, "here"), rewind(stubs, name, "here")]
    uses = [session.use_time.ToNanoseconds() for session in sessions]
    assert uses == sorted(set(uses))


def test_answers_of_turns_that_were_taken_back_are_forgotten(stubs: Stubs) -> None:
    name = create(stubs)
    kept = turn(stubs, name, "a", 5, "before")
    mark(stubs, name, "here")
    turn(stubs, name, "b", 5, "after")
    rewind(stubs, name, "here")
    again = turn(stubs, name, "a", 5, "before")
    assert (again.outcome.replayed, again.text) == (True, kept.text)
    assert stubs.position(name) == 6
    # The same name, with another payload too: it is a new one.
    other = turn(stubs, name, "c", 5, "after")
    assert (other.outcome.replayed, other.outcome.position) == (False, 12)


def test_an_answer_of_another_past_is_not_given_though_its_position_is_lower(
    stubs: Stubs,
) -> None:
    name = create(stubs)
    mark(stubs, name, "start")
    turn(stubs, name, "a", 20, "one")
    mark(stubs, name, "far")
    rewind(stubs, name, "start")
    turn(stubs, name, "b", 3, "two")
    assert rewind(stubs, name, "far").position == 21
    # It ended at 4, on the way that was left.
    assert not turn(stubs, name, "b", 3, "two").outcome.replayed
    assert stubs.position(name) == 25


# In a conversation


def conversed(stubs: Stubs, *commands: ConverseRequest) -> list[ConverseResponse]:
    for place, command in enumerate(commands):
        command.command_id = str(place)
    return list(stubs.completions.Converse(iter(commands), timeout=SECONDS))


def test_a_conversation_goes_back(repository: Repository, stubs: Stubs) -> None:
    lone = LoneSession(repository, "lstm", 5)
    lone.tell("ab")
    text = lone.draw(12)
    complete = CompleteRequest(prompt="ab", max_tokens=12)
    events = conversed(
        stubs,
        ConverseRequest(open=ConverseRequest.Open(model="lstm", seed=5, undo=True)),
        ConverseRequest(checkpoint=ConverseRequest.Checkpoint(checkpoint="start")),
        ConverseRequest(complete=complete),
        ConverseRequest(rewind=ConverseRequest.Rewind()),
        ConverseRequest(complete=complete),
        ConverseRequest(rewind=ConverseRequest.Rewind(checkpoint="start", expected_position=14)),
        ConverseRequest(complete=complete),
        ConverseRequest(rewind=ConverseRequest.Rewind(checkpoint="none")),
        ConverseRequest(checkpoint=ConverseRequest.Checkpoint()),
        ConverseRequest(
            checkpoint=ConverseRequest.Checkpoint(checkpoint="end", expected_position=1)
        ),
    )
    texts = ["", "", ""]
    for event in events:
        if event.HasField("delta"):
            texts[("2", "4", "6").index(event.command_id)] += event.delta.text
    assert texts == [text] * 3
    (started,) = [event for event in events if event.HasField("checkpointed")]
    assert (started.command_id, places(started.checkpointed.session)) == ("1", {"start": 0})
    assert started.checkpointed.durability == DURABILITY_MEMORY
    rewound = [event for event in events if event.HasField("rewound")]
    assert [event.command_id for event in rewound] == ["3", "5"]
    assert [event.rewound.session.position for event in rewound] == [0, 0]
    assert {event.rewound.durability for event in rewound} == {DURABILITY_MEMORY}
    errors = [refusal_of_status(event.error) for event in events if event.HasField("error")]
    assert [error.reason for error in errors] == [
        *("CHECKPOINT_NOT_FOUND", "INVALID_FIELD", "POSITION_MISMATCH")
    ]
    assert errors[1].fields == ["checkpoint.checkpoint"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("undo", True), ("idle_ttl", Duration(seconds=9)), ("max_age", Duration(seconds=9))],
)
def test_an_open_session_stays_as_it_was_made(stubs: Stubs, field: str, value: Any) -> None:
    opening = ConverseRequest.Open(session=create(stubs), **{field: value})
    (event,) = conversed(stubs, ConverseRequest(open=opening))
    assert refusal_of_status(event.error).fields == [f"open.{field}"]


# With a store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def rewound_durability(here: Serving, name: str, checkpoint: str) -> int:
    opening = ConverseRequest.Open(session=name)
    rewinding = ConverseRequest.Rewind(checkpoint=checkpoint)
    events = conversed(here.stubs, ConverseRequest(open=opening), ConverseRequest(rewind=rewinding))
    return events[-1].rewound.durability


def test_checkpoints_outlive_the_process_bit_for_bit(repository: Repository, store: Path) -> None:
    lone = LoneSession(repository, "lstm", 5)
    lone.tell("ab")
    first, second = lone.draw(20), lone.draw(30)
    with serving(repository.path, store) as here:
        name = create(here.stubs, undo=True)
        assert turn(here.stubs, name, "ab", 20, "one").text == first
        mark(here.stubs, name, "here")
        assert turn(here.stubs, name, "", 30, "two").text == second
        turn(here.stubs, name, "c", 7)
        here.kill()
    with serving(repository.path, store, "--max-sessions", "1") as here:
        listed = here.stubs.sessions.ListSessions(ListSessionsRequest()).sessions
        assert [(places(one), one.undo, one.undo_position) for one in listed] == [
            ({"here": 22}, True, 52)
        ]
        assert rewind(here.stubs, name).position == 52
        assert rewound_durability(here, name, "here") == DURABILITY_FSYNC
        # Out of memory and back.
        here.stubs.create("lstm")
        here.kill()
    with serving(repository.path, store) as here:
        session = get(here.stubs, name)
        assert (session.position, session.HasField("undo_position")) == (22, False)
        assert turn(here.stubs, name, "ab", 20, "one").outcome.replayed
        again = turn(here.stubs, name, "", 30, "two")
        assert (again.text, again.outcome.replayed) == (second, False)


def test_a_rewind_that_cannot_be_stored_leaves_the_session_where_it_was(
    repository: Repository, store: Path
) -> None:
    with serving(repository.path, store) as here:
        name = create(here.stubs)
        mark(here.stubs, name, "start")
        turn(here.stubs, name, "ab", 5)
        here.kill()
    with serving(repository.path, store, failpoints="commit.before_write=error") as here:
        asked = RewindSessionRequest(name=name, checkpoint="start")
        refusal = refused(here.stubs.sessions.RewindSession, asked)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert here.stubs.position(name) == 7
        here.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))

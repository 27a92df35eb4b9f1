"""Sessions as resources: over gRPC, and their bookkeeping with a clock of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from support.calls import SECONDS, Stubs, connected, refused
from support.lone import LoneSession
from support.memory import advance
from support.metrics import eventually
from support.models import Repository, build, export
from support.server import running_server
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    Session,
)
from unrolled_server import session as server_session
from unrolled_server.errors import SessionBusy, SessionNotFound, TooManySessions
from unrolled_server.models import ServedModel
from unrolled_server.sessions import Sessions
from unrolled_server.states import SLAB_BYTES, StateSlabs
from unrolled_server.types import Past
from unrolled_server.vocabulary import CharacterVocabulary

if TYPE_CHECKING:
    from unrolled_server.engine import Engine

DAY = 86400
ENDLESS = 2_000_000_000


# Over gRPC


@pytest.fixture(scope="module")
def versions(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The models "gru", "rnn" and a second version of "rnn", in a repository of its own."""
    work, path = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("versions")
    recipes = {name: repository.recipes[name] for name in ("gru", "rnn")}
    models = {name: build(recipe) for name, recipe in recipes.items()}
    for name in ("gru", "rnn"):
        export(models[name], recipes[name], work, path)
    export(build(recipes["rnn"], seed=1), recipes["rnn"], work, path)
    return Repository(path, models, recipes)


@pytest.fixture(scope="module")
def own_stubs(versions: Repository) -> Iterator[Stubs]:
    """A server of this module's own."""
    with (
        running_server(versions.path, "--max-tokens", str(ENDLESS)) as running,
        connected(running.address) as stubs,
    ):
        yield stubs


@pytest.fixture
def stubs(own_stubs: Stubs) -> Iterator[Stubs]:
    """The server without any session."""
    yield own_stubs
    while names := [session.name for session in page(own_stubs)[0]]:
        for name in names:
            own_stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))


def create(
    stubs: Stubs, model: str = "rnn", seed: int | None = None, ttl: Duration | None = None
) -> Session:
    request = CreateSessionRequest(model=model, seed=seed, idle_ttl=ttl)
    return stubs.sessions.CreateSession(request, timeout=SECONDS).session


def get(stubs: Stubs, name: str) -> Session:
    return stubs.sessions.GetSession(GetSessionRequest(name=name), timeout=SECONDS).session


def fork(stubs: Stubs, name: str, seed: int | None = None) -> Session:
    request = ForkSessionRequest(name=name, seed=seed)
    return stubs.sessions.ForkSession(request, timeout=SECONDS).session


def delete(stubs: Stubs, name: str) -> None:
    stubs.sessions.DeleteSession(DeleteSessionRequest(name=name), timeout=SECONDS)


def page(
    stubs: Stubs, model: str = "", size: int = 0, token: str = ""
) -> tuple[list[Session], str]:
    request = ListSessionsRequest(model=model, page_size=size, page_token=token)
    answer = stubs.sessions.ListSessions(request, timeout=SECONDS)
    return list(answer.sessions), answer.next_page_token


def pages(stubs: Stubs, model: str = "", size: int = 0) -> list[list[Session]]:
    """All pages, from the first to the last."""
    found, token = page(stubs, model, size)
    listed = [found]
    while token:
        found, token = page(stubs, model, size, token)
        listed.append(found)
    return listed


def names_of(listed: list[list[Session]]) -> list[str]:
    return [session.name for sessions in listed for session in sessions]


def nanoseconds(timestamp: Timestamp) -> int:
    return timestamp.ToNanoseconds()


def idle_time(session: Session) -> float:
    """Seconds from its last use until it ends."""
    return (nanoseconds(session.expire_time) - nanoseconds(session.use_time)) / 1e9


def expect_used_only(before: Session, after: Session) -> None:
    """A session was used, and nothing else about it has changed."""
    assert nanoseconds(after.use_time) > nanoseconds(before.use_time)
    assert idle_time(after) == pytest.approx(idle_time(before), abs=1e-5)
    unchanged = Session()
    unchanged.CopyFrom(after)
    unchanged.use_time.CopyFrom(before.use_time)
    unchanged.expire_time.CopyFrom(before.expire_time)
    assert unchanged == before


def test_a_new_session_is_empty(stubs: Stubs) -> None:
    session = create(stubs, "gru", seed=5)
    model = stubs.models.GetModel(GetModelRequest(name="gru")).model
    assert session.name.startswith("sessions/")
    assert (session.model, session.position, session.seed) == ("gru/1", 0, 5)
    assert (session.fingerprint, session.state_bytes) == (model.fingerprint, model.state_bytes)
    assert session.HasField("create_time")
    assert session.use_time == session.create_time
    assert get(stubs, session.name) == session


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_a_session_keeps_its_seed(stubs: Stubs, seed: int) -> None:
    session = create(stubs, seed=seed)
    assert session.seed == seed
    assert get(stubs, session.name).seed == seed


def test_without_a_seed_the_server_draws_one(stubs: Stubs) -> None:
    seeds = {create(stubs).seed for _ in range(4)}
    assert len(seeds) == 4


@pytest.mark.parametrize(("model", "label"), [("rnn", "rnn/2"), ("rnn/1", "rnn/1")])
def test_a_session_is_of_the_latest_version_unless_told(
    stubs: Stubs, model: str, label: str
) -> None:
    session = create(stubs, model)
    manifest = stubs.models.GetModel(GetModelRequest(name=label)).model
    assert (session.model, session.fingerprint) == (label, manifest.fingerprint)


def test_a_turn_moves_position_and_use_time_only(stubs: Stubs) -> None:
    session = create(stubs, seed=3)
    stubs.tell(session.name, "abc")
    used = get(stubs, session.name)
    assert used.position == 3
    used.position = 0
    expect_used_only(session, used)


def test_looking_at_a_session_is_no_use_of_it(stubs: Stubs) -> None:
    session = create(stubs)
    assert get(stubs, session.name) == get(stubs, session.name) == session
    assert page(stubs)[0] == [session]


def test_a_session_ends_an_hour_after_its_last_use_by_default(stubs: Stubs) -> None:
    session = create(stubs)
    assert idle_time(session) == pytest.approx(3600, abs=1e-5)
    stubs.tell(session.name, "a")
    assert idle_time(get(stubs, session.name)) == pytest.approx(3600, abs=1e-5)


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (Duration(seconds=7), 7.0),
        (Duration(seconds=90, nanos=500_000_000), 90.5),
        (Duration(seconds=3650 * DAY), 3650.0 * DAY),
    ],
)
def test_a_session_may_have_its_own_idle_time(stubs: Stubs, ttl: Duration, seconds: float) -> None:
    session = create(stubs, ttl=ttl)
    assert idle_time(session) == pytest.approx(seconds, abs=1e-5)
    stubs.tell(session.name, "a")
    assert idle_time(get(stubs, session.name)) == pytest.approx(seconds, abs=1e-5)


@pytest.mark.parametrize("nanos", [1, 1_000_000])
def test_a_session_ends_when_its_idle_time_is_over(stubs: Stubs, nanos: int) -> None:
    other = create(stubs)
    name = create(stubs, ttl=Duration(nanos=nanos)).name
    eventually(lambda: name not in names_of(pages(stubs)), f"{name} has ended")
    for method, request in (
        (stubs.sessions.GetSession, GetSessionRequest(name=name)),
        (stubs.sessions.ForkSession, ForkSessionRequest(name=name)),
        (stubs.sessions.DeleteSession, DeleteSessionRequest(name=name)),
        (stubs.completions.Complete, CompleteRequest(session=name, prompt="a")),
    ):
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert get(stubs, other.name) == other


def test_sessions_never_end_where_the_server_says_so(versions: Repository) -> None:
    with (
        running_server(versions.path, "--session-ttl", "0") as running,
        connected(running.address) as stubs,
    ):
        session = create(stubs)
        assert not session.HasField("expire_time")
        stubs.tell(session.name, "a")
        assert not get(stubs, session.name).HasField("expire_time")
        assert not fork(stubs, session.name).HasField("expire_time")
        assert idle_time(create(stubs, ttl=Duration(seconds=9))) == pytest.approx(9, abs=1e-5)


@pytest.mark.parametrize("seconds", [0, -1, 3650 * DAY + 1])
def test_an_age_out_of_range_is_refused(stubs: Stubs, seconds: int) -> None:
    request = CreateSessionRequest(model="rnn", max_age=Duration(seconds=seconds))
    refusal = refused(stubs.sessions.CreateSession, request)
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ["max_age"])


def test_a_session_says_when_it_ends_at_the_latest(stubs: Stubs) -> None:
    request = CreateSessionRequest(model="rnn", max_age=Duration(seconds=90, nanos=500_000_000))
    session = stubs.sessions.CreateSession(request, timeout=SECONDS).session
    made, end = nanoseconds(session.create_time), nanoseconds(session.end_time)
    assert (end - made) / 1e9 == pytest.approx(90.5, abs=1e-5)
    # The default idle time of an hour is longer.
    assert session.expire_time == session.end_time
    child = fork(stubs, session.name)
    assert child.create_time != session.create_time
    assert (child.end_time, child.expire_time) == (session.end_time, session.end_time)
    stubs.tell(session.name, "a")
    used = get(stubs, session.name)
    assert (used.end_time, used.expire_time) == (session.end_time, session.end_time)
    assert not create(stubs).HasField("end_time")


def test_a_server_may_bound_the_age_of_sessions(versions: Repository) -> None:
    with (
        running_server(versions.path, "--session-ttl", "0", "--session-max-age", "7d") as running,
        connected(running.address) as stubs,
    ):
        session = create(stubs)
        lifetime = nanoseconds(session.end_time) - nanoseconds(session.create_time)
        assert lifetime / 1e9 == pytest.approx(7 * DAY, abs=1e-5)
        assert session.expire_time == session.end_time
        idle = create(stubs, ttl=Duration(seconds=9))
        assert idle_time(idle) == pytest.approx(9, abs=1e-5)
        assert idle.HasField("end_time")


def test_a_session_that_draws_is_described_as_of_its_last_turn(stubs: Stubs) -> None:
    name = create(stubs, "gru").name
    stubs.tell(name, "abc")
    before = get(stubs, name)
    request = CompleteRequest(session=name, max_tokens=ENDLESS)
    call = stubs.completions.StreamComplete(request, timeout=SECONDS)
    assert next(call).delta.token_ids
    try:
        assert get(stubs, name) == before
        assert page(stubs)[0] == [before]
        assert fork(stubs, name).position == 3
    finally:
        call.cancel()


# Fork and delete


def test_a_fork_stands_where_its_parent_stood(stubs: Stubs) -> None:
    parent = create(stubs, seed=11)
    stubs.tell(parent.name, "abc")
    before = get(stubs, parent.name)
    child = fork(stubs, parent.name)
    assert child.name != parent.name
    for field in ("model", "fingerprint", "position", "seed", "state_bytes"):
        assert getattr(child, field) == getattr(before, field)
    assert nanoseconds(child.create_time) > nanoseconds(parent.create_time)
    assert child.use_time == child.create_time
    assert get(stubs, child.name) == child
    expect_used_only(before, get(stubs, parent.name))


def test_a_score_is_a_use_and_nothing_else(stubs: Stubs) -> None:
    session = create(stubs, "gru")
    stubs.tell(session.name, "abc")
    before = get(stubs, session.name)
    stubs.completions.Score(ScoreRequest(session=session.name, text="xyz"), timeout=SECONDS)
    expect_used_only(before, get(stubs, session.name))


def test_what_is_refused_is_no_use(stubs: Stubs) -> None:
    session = create(stubs)
    for method, request in (
        (stubs.completions.Complete, CompleteRequest(session=session.name, temperature=-1.0)),
        (stubs.completions.Complete, CompleteRequest(session=session.name, prompt="é")),
        (stubs.completions.Score, ScoreRequest(session=session.name, text="é")),
        (stubs.completions.Score, ScoreRequest(session=session.name)),
    ):
        refused(method, request)
        assert get(stubs, session.name) == session


def test_parent_and_child_draw_alike_and_apart(stubs: Stubs, versions: Repository) -> None:
    parent = create(stubs, "gru", seed=11).name
    stubs.tell(parent, "abc")
    child, other = fork(stubs, parent).name, fork(stubs, parent, seed=12)
    assert other.seed == 12
    texts = []
    for name, seed, prompt in (
        (parent, 11, "d"),
        (child, 11, "d"),
        (other.name, 12, "d"),
        (fork(stubs, child).name, 11, "xyz"),
    ):
        lone = LoneSession(versions, "gru", seed)
        lone.tell("abc")
        if prompt == "xyz":
            # A fork of the child, made before the child went on.
            assert get(stubs, name).position == 3
        lone.tell(prompt)
        request = CompleteRequest(session=name, prompt=prompt, max_tokens=20)
        texts.append(stubs.completions.Complete(request, timeout=SECONDS).text)
        assert texts[-1] == lone.draw(20)
        assert get(stubs, name).position == lone.position
    assert texts[0] == texts[1] != texts[2]


def test_a_fork_of_an_empty_session_is_empty(stubs: Stubs, versions: Repository) -> None:
    parent = create(stubs, "gru", seed=4).name
    child = fork(stubs, parent).name
    stubs.tell(parent, "xyz")
    lone = LoneSession(versions, "gru", 4)
    lone.tell("a")
    request = CompleteRequest(session=child, prompt="a", max_tokens=20)
    assert stubs.completions.Complete(request, timeout=SECONDS).text == lone.draw(20)
    assert stubs.position(parent) == 3


def test_a_child_outlives_its_parent(stubs: Stubs) -> None:
    parent = create(stubs, "gru").name
    stubs.tell(parent, "abc")
    child = fork(stubs, parent).name
    score = ScoreRequest(session=parent, text="xyz", logprobs=0)
    expected = stubs.completions.Score(score, timeout=SECONDS)
    delete(stubs, parent)
    # What the parent has freed is taken by another.
    stubs.tell(create(stubs, "gru").name, "qqq")
    score.session = child
    assert stubs.completions.Score(score, timeout=SECONDS) == expected


def test_delete_ends_one_session(stubs: Stubs) -> None:
    gone, kept = create(stubs), create(stubs)
    delete(stubs, gone.name)
    refusal = refused(stubs.sessions.GetSession, GetSessionRequest(name=gone.name))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert refusal.metadata == {"session": gone.name}
    assert page(stubs)[0] == [kept]
    again = refused(stubs.sessions.DeleteSession, DeleteSessionRequest(name=gone.name))
    assert again == refusal


# Listing


def test_there_may_be_no_sessions(stubs: Stubs) -> None:
    assert page(stubs) == ([], "")
    assert page(stubs, "gru") == ([], "")


@pytest.mark.parametrize("size", [1, 2, 5, 23, 24, 25, 1000])
def test_pages_hold_every_session_once_in_the_order_of_names(stubs: Stubs, size: int) -> None:
    sessions = [create(stubs) for _ in range(24)]
    listed = pages(stubs, size=size)
    assert all(len(part) <= size for part in listed)
    assert [session for part in listed for session in part] == sorted(
        sessions, key=lambda session: session.name
    )


def test_a_page_holds_a_hundred_by_default(stubs: Stubs) -> None:
    names = sorted(create(stubs).name for _ in range(105))
    listed = pages(stubs)
    assert len(listed[0]) == 100
    assert names_of(listed) == names


@pytest.mark.parametrize("size", [-(2**31), -1, 1001, 2**31 - 1])
def test_a_page_has_a_size_of_1_to_1000(stubs: Stubs, size: int) -> None:
    refusal = refused(stubs.sessions.ListSessions, ListSessionsRequest(page_size=size))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refusal.metadata == {"field": "page_size"}


def test_a_page_goes_on_from_a_page_only(stubs: Stubs) -> None:
    name = create(stubs).name
    refusal = refused(stubs.sessions.ListSessions, ListSessionsRequest(page_token=name))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refusal.metadata == {"field": "page_token"}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sessions_are_listed_by_model_and_version(stubs: Stubs, size: int) -> None:
    labels = ["gru/1", "rnn/1", "rnn/2", "rnn/1"] * 4
    names = [create(stubs, label).name for label in labels]
    for model, chosen in (
        ("gru", {"gru/1"}),
        ("gru/1", {"gru/1"}),
        ("rnn", {"rnn/1", "rnn/2"}),
        ("rnn/1", {"rnn/1"}),
        ("rnn/2", {"rnn/2"}),
        ("", {"gru/1", "rnn/1", "rnn/2"}),
    ):
        listed = pages(stubs, model, size)
        expected = [name for name, label in zip(names, labels, strict=True) if label in chosen]
        assert names_of(listed) == sorted(expected)
        assert {session.model for part in listed for session in part} == chosen
        assert all(len(part) <= size for part in listed)


def test_a_rare_model_is_found_behind_many_sessions_of_another(stubs: Stubs) -> None:
    for _ in range(300):
        create(stubs, "rnn/1")
    rare = [create(stubs, "gru").name for _ in range(3)]
    for size in (1, 2, 3, 1000):
        assert names_of(pages(stubs, "gru", size)) == sorted(rare)
    assert names_of(pages(stubs, "rnn/2")) == []


def test_a_page_goes_on_where_the_page_before_ended_whatever_ends_meanwhile(stubs: Stubs) -> None:
    names = sorted(create(stubs).name for _ in range(12))
    found, token = page(stubs, size=4)
    assert [session.name for session in found] == names[:4]
    for name in [*names[:4], names[5]]:
        delete(stubs, name)
    found, token = page(stubs, size=4, token=token)
    assert [session.name for session in found] == [names[4], *names[6:9]]
    found, token = page(stubs, size=4, token=token)
    assert ([session.name for session in found], token) == (names[9:], "")


# The bookkeeping


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


TTL = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def three(clock: Clock) -> Sessions:
    """Room for three sessions of TTL."""
    return Sessions(3, TTL, clock)


def served(name: str = "m", version: int = 1, size: int = 4) -> ServedModel:
    """A model without an engine."""
    vocabulary = CharacterVocabulary([b"a"], None, (), None)
    return ServedModel(name, version, "f" * 64, size, vocabulary, cast("Engine", None), "cpu")


MODEL = served()


def at(position: int) -> Past:
    """A place in a sequence, different for each position."""
    state = np.arange(4, dtype=np.float32) + 10 * position
    return Past(state, position + 1, position, bytes([position]))


def end_nothing() -> None:
    """What a turn that need not be told does when its session ends."""


def living(sessions: Sessions, *made: server_session.Session) -> list[server_session.Session]:
    """Those that have not ended."""
    found = []
    for session in made:
        with suppress(SessionNotFound):
            found.append(sessions.get(session.name))
    return found


def expect_at(sessions: Sessions, session: server_session.Session, expected: Past | None) -> None:
    """Where the session stands; None: at the start."""
    got = sessions.past(session)
    assert session.position == got.position
    if expected is None:
        assert got == Past(None, None, 0)
        return
    assert (got.pending, got.position) == (expected.pending, expected.position)
    assert got.partial == expected.partial
    assert got.state is not None
    assert expected.state is not None
    assert got.state.tolist() == expected.state.tolist()


def test_a_session_expires_once_it_was_idle_long_enough(three: Sessions, clock: Clock) -> None:
    session = three.create(MODEL)
    assert session.expires == clock.now + TTL
    clock.now += TTL - 1
    three.expire()
    assert three.get(session.name) == session
    clock.now += 1
    with pytest.raises(SessionNotFound):
        three.get(session.name)
    three.expire()
    assert three.count(MODEL) == 0
    assert three.ended == {"expired": 1, "deleted": 0}


def test_a_session_that_is_over_is_not_found_before_anybody_has_looked(
    three: Sessions, clock: Clock
) -> None:
    session = three.create(MODEL)
    clock.now += TTL
    for act in (three.get, three.delete, lambda name: three.fork(name, None)):
        with pytest.raises(SessionNotFound):
            act(session.name)


def test_a_commit_postpones_the_end_and_a_look_does_not(three: Sessions, clock: Clock) -> None:
    used, seen = three.create(MODEL), three.create(MODEL)
    created = clock.now
    clock.now += TTL - 1
    advance(three, used, at(1))
    three.past(three.get(seen.name))
    clock.now += 1
    three.expire()
    assert (living(three, used, seen), three.count(MODEL)) == ([used], 1)
    assert (used.created, used.used) == (created, created + TTL - 1)
    clock.now += TTL - 1
    three.expire()
    assert three.count(MODEL) == 0


def test_a_fork_postpones_the_end_of_the_parent(three: Sessions, clock: Clock) -> None:
    parent = three.create(MODEL)
    clock.now += TTL - 1
    child = three.fork(parent.name, None)
    clock.now += TTL - 1
    three.expire()
    assert living(three, parent, child) == [parent, child]
    assert child.created == child.used == parent.used > parent.created
    clock.now += 1
    three.expire()
    assert three.count(MODEL) == 0


def test_a_session_may_have_its_own_idle_time_in_memory(three: Sessions, clock: Clock) -> None:
    short, default = three.create(MODEL, idle_ttl=2.0), three.create(MODEL)
    long = three.create(MODEL, idle_ttl=10 * TTL)
    clock.now += 2
    three.expire()
    assert living(three, short, default, long) == [default, long]
    assert three.count(MODEL) == 2
    clock.now += TTL
    three.expire()
    assert living(three, default, long) == [long]
    assert three.count(MODEL) == 1


def test_an_idle_time_of_0_is_for_ever(clock: Clock) -> None:
    sessions = Sessions(3, 0.0, clock)
    forever, limited = sessions.create(MODEL), sessions.create(MODEL, idle_ttl=TTL)
    child = sessions.fork(forever.name, None)
    assert forever.expires is None
    clock.now += 10_000 * DAY
    sessions.expire()
    assert living(sessions, forever, limited, child) == [forever, child]
    assert sessions.count(MODEL) == 2


def test_no_use_postpones_the_latest_end(three: Sessions, clock: Clock) -> None:
    aged, idle = three.create(MODEL, max_age=1.5 * TTL), three.create(MODEL)
    made = clock.now
    assert (aged.expires, aged.latest) == (made + TTL, made + 1.5 * TTL)
    clock.now += TTL - 1
    for session in (aged, idle):
        advance(three, session, at(1))
    assert (aged.expires, aged.latest) == (made + 1.5 * TTL, made + 1.5 * TTL)
    assert idle.latest is None
    clock.now = made + 1.5 * TTL - 1
    three.expire()
    assert living(three, aged, idle) == [aged, idle]
    clock.now += 1
    assert living(three, aged, idle) == [idle]
    three.expire()
    assert three.count(MODEL) == 1


def test_a_turn_that_began_before_the_latest_end_stands(three: Sessions, clock: Clock) -> None:
    session = three.create(MODEL, max_age=TTL / 2)
    three.hold(session, end_nothing)
    clock.now += TTL
    three.expire()
    advance(three, session, at(1))
    expect_at(three, session, at(1))
    three.release(session)
    assert living(three, session) == []
    three.expire()
    assert three.count(MODEL) == 0


def test_a_fork_ends_with_its_parent_at_the_latest(clock: Clock) -> None:
    sessions = Sessions(3, 0.0, clock, max_age=3 * TTL)
    parent = sessions.create(MODEL, max_age=2 * TTL)
    clock.now += TTL
    child, other = sessions.fork(parent.name, None), sessions.create(MODEL)
    assert child.expires == child.latest == parent.latest == clock.now + TTL
    assert other.latest == clock.now + 3 * TTL
    clock.now += TTL
    sessions.expire()
    assert living(sessions, parent, child, other) == [other]


def test_a_session_has_no_latest_end_of_the_one_before_it_in_its_row(clock: Clock) -> None:
    sessions = Sessions(1, 0.0, clock)
    sessions.delete(sessions.create(MODEL, max_age=TTL).name)
    session = sessions.create(MODEL)
    assert (session.expires, session.latest) == (None, None)


def test_a_busy_session_does_not_expire(three: Sessions, clock: Clock) -> None:
    session = three.create(MODEL)
    three.hold(session, end_nothing)
    clock.now += 10 * TTL
    three.expire()
    assert three.get(session.name) == session
    advance(three, session, at(1))
    three.release(session)
    clock.now += TTL - 1
    three.expire()
    assert three.get(session.name) == session
    # It does once it has been idle, although it was looked at while it could not.
    clock.now += 1
    three.expire()
    assert three.count(MODEL) == 0


def test_a_session_that_was_busy_for_long_expires_in_the_end(three: Sessions, clock: Clock) -> None:
    session = three.create(MODEL)
    three.hold(session, end_nothing)
    for _ in range(5):
        clock.now += TTL
        three.expire()
    three.release(session)
    clock.now += 2 * TTL
    three.expire()
    assert three.count(MODEL) == 0


def test_the_limit_holds_and_drops_no_live_session(three: Sessions) -> None:
    kept = [three.create(MODEL) for _ in range(3)]
    for _ in range(2):
        with pytest.raises(TooManySessions) as caught:
            three.create(MODEL)
        assert caught.value.metadata == {"limit": "3"}
        with pytest.raises(TooManySessions):
            three.fork(kept[0].name, None)
    assert living(three, *kept) == kept
    assert three.count(MODEL) == 3


def test_a_refused_fork_is_no_use_of_the_parent(three: Sessions, clock: Clock) -> None:
    parent, *_ = [three.create(MODEL) for _ in range(3)]
    created = clock.now
    clock.now += 1
    with pytest.raises(TooManySessions):
        three.fork(parent.name, None)
    assert parent.used == created


def test_an_expired_session_makes_room(three: Sessions, clock: Clock) -> None:
    three.create(MODEL, idle_ttl=1.0)
    others = [three.create(MODEL) for _ in range(2)]
    clock.now += 1
    new = three.create(MODEL)
    assert living(three, *others, new) == [*others, new]
    with pytest.raises(TooManySessions):
        three.create(MODEL)


def test_a_deleted_session_makes_room(three: Sessions) -> None:
    first, *_ = [three.create(MODEL) for _ in range(3)]
    three.delete(first.name)
    three.create(MODEL)
    assert three.count(MODEL) == 3
    assert three.ended == {"expired": 0, "deleted": 1}


def test_many_short_sessions_leave_nothing_behind(three: Sessions, clock: Clock) -> None:
    """More than any bookkeeping of ended sessions keeps."""
    kept = three.create(MODEL)
    for _ in range(5000):
        three.delete(three.create(MODEL).name)
    clock.now += TTL - 1
    three.expire()
    assert living(three, kept) == [kept]
    clock.now += 1
    assert living(three, kept) == []
    # Of very many ended sessions one look forgets some.
    for _ in range(5):
        three.expire()
    assert three.count(MODEL) == 0


def test_an_expired_session_makes_room_behind_many_that_were_used(clock: Clock) -> None:
    count = 20_000
    sessions = Sessions(count + 1, TTL, clock)
    used = [sessions.create(MODEL) for _ in range(count)]
    clock.now += 1
    idle = sessions.create(MODEL)
    clock.now += TTL - 2
    for session in used:
        advance(sessions, session, Past(None, 0, 1))
    clock.now += 1
    assert living(sessions, idle) == [idle]
    clock.now += 1
    assert living(sessions, idle) == []
    new = sessions.create(MODEL)
    assert living(sessions, new, *used) == [new, *used]


def test_sessions_are_counted_by_model(three: Sessions) -> None:
    other = served("m", 2)
    one, two = three.create(MODEL), three.create(other)
    three.fork(two.name, None)
    assert (three.count(MODEL), three.count(other)) == (1, 2)
    three.delete(one.name)
    assert (three.count(MODEL), three.count(other)) == (0, 2)


def test_names_and_seeds_are_drawn_anew(clock: Clock) -> None:
    sessions = Sessions(1000, TTL, clock)
    made = [sessions.create(MODEL) for _ in range(1000)]
    assert len({session.name for session in made}) == 1000
    assert len({session.seed for session in made}) == 1000
    assert all(0 <= session.seed < 2**64 for session in made)
    assert all(session.name.startswith("sessions/") for session in made)


def test_a_fork_copies_the_past_and_is_independent(three: Sessions) -> None:
    parent = three.create(MODEL, seed=7)
    advance(three, parent, at(3))
    child, other = three.fork(parent.name, None), three.fork(parent.name, 8)
    assert (child.seed, other.seed) == (7, 8)
    for session in (parent, child, other):
        expect_at(three, session, at(3))
    advance(three, parent, at(4))
    advance(three, other, at(5))
    expect_at(three, parent, at(4))
    expect_at(three, child, at(3))
    expect_at(three, other, at(5))
    three.delete(parent.name)
    # The new session may lie where the parent's state lay.
    new = three.create(MODEL)
    expect_at(three, new, None)
    advance(three, new, at(6))
    expect_at(three, child, at(3))
    expect_at(three, other, at(5))


def test_a_fork_of_an_empty_session_is_empty_too(three: Sessions) -> None:
    parent = three.create(MODEL)
    child = three.fork(parent.name, None)
    advance(three, parent, at(2))
    expect_at(three, child, None)


def test_a_fork_of_a_busy_session_is_free_and_as_of_the_last_commit(three: Sessions) -> None:
    parent = three.create(MODEL)
    advance(three, parent, at(2))
    three.hold(parent, end_nothing)
    child = three.fork(parent.name, None)
    expect_at(three, child, at(2))
    three.hold(child, end_nothing)


def test_a_checkpoint_is_apart_from_the_session(three: Sessions) -> None:
    session = three.create(MODEL)
    given = at(1)
    advance(three, session, given)
    taken = three.past(session)
    assert given.state is not None
    assert taken.state is not None
    given.state.fill(-1)
    taken.state.fill(-2)
    expect_at(three, session, at(1))
    before = three.past(session)
    advance(three, session, at(2))
    assert before.state is not None
    assert before.state.tolist() == [10.0, 11.0, 12.0, 13.0]


def test_a_commit_after_the_end_raises_and_changes_nothing(three: Sessions) -> None:
    session, other = three.create(MODEL), three.create(MODEL)
    advance(three, session, at(1))
    three.hold(session, end_nothing)
    three.delete(session.name)
    advance(three, other, at(2))
    with pytest.raises(SessionNotFound):
        advance(three, session, at(3))
    three.release(session)
    expect_at(three, other, at(2))
    assert (living(three, session, other), three.count(MODEL)) == ([other], 1)


def test_a_session_is_held_once(three: Sessions) -> None:
    session, other = three.create(MODEL), three.create(MODEL)
    three.hold(session, end_nothing)
    with pytest.raises(SessionBusy) as caught:
        three.hold(session, end_nothing)
    assert caught.value.metadata == {"session": session.name}
    three.hold(other, end_nothing)
    three.release(session)
    three.hold(session, end_nothing)


def test_a_deleted_session_ends_its_turn(three: Sessions) -> None:
    session = three.create(MODEL)
    told: list[str] = []
    three.hold(session, lambda: told.append("ended"))
    three.delete(session.name)
    assert told == ["ended"]
    assert three.count(MODEL) == 0
    free = three.create(MODEL)
    three.hold(free, lambda: told.append("never"))
    three.release(free)
    three.delete(free.name)
    assert told == ["ended"]


# The slabs


def test_slots_are_used_again() -> None:
    slabs = StateSlabs(8)
    first = {slabs.allocate() for _ in range(100)}
    assert len(first) == 100
    for slot in first:
        slabs.free(slot)
    assert {slabs.allocate() for _ in range(100)} == first
    assert slabs.allocate() not in first


@pytest.mark.parametrize("size", [SLAB_BYTES // 8, SLAB_BYTES // 4, SLAB_BYTES // 4 + 1])
def test_slabs_are_added_and_what_they_hold_stays(size: int) -> None:
    slabs = StateSlabs(size)
    slots = []
    for number in range(5):
        slots.append(slabs.allocate())
        slabs.write(slots[-1], np.full(size, number, np.float32))
    assert len(set(slots)) == 5
    for number, slot in enumerate(slots):
        state = slabs.read(slot)
        assert state.shape == (size,)
        assert state.dtype == np.float32
        assert (state == number).all()


def test_neighbours_do_not_touch() -> None:
    slabs = StateSlabs(3)
    slots = [slabs.allocate() for _ in range(20)]
    for slot in slots:
        slabs.write(slot, np.full(3, slot, np.float32))
    slabs.write(slots[7], np.full(3, -1.0, np.float32))
    for slot in slots:
        value = -1 if slot == slots[7] else slot
        assert slabs.read(slot).tolist() == [value] * 3


def test_what_is_read_and_written_is_copied() -> None:
    slabs = StateSlabs(2)
    slot, given = slabs.allocate(), np.array([1, 2], np.float32)
    slabs.write(slot, given)
    given.fill(9)
    read = slabs.read(slot)
    assert read.tolist() == [1, 2]
    read.fill(8)
    assert slabs.read(slot).tolist() == [1, 2]
    slabs.write(slot, np.array([3, 4], np.float32))
    assert read.tolist() == [8, 8]

"""Sessions that move from one server process to another in a sealed snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import unrolled
from client.command import run
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray
from support.calls import SECONDS, Refusal, Stubs, connected, refused
from support.checkpoints import read_manifest
from support.lone import LoneSession
from support.metrics import Metrics
from support.models import Repository, export
from support.sealed import Forged, key_file, mutations
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    ExportSessionRequest,
    ExportSessionResponse,
    GetSessionRequest,
    ImportSessionRequest,
    Session,
)
from unrolled_export import speed
from unrolled_export.__main__ import main as export_main

DAY = 86400
MUTATIONS = 2000
ROUNDING = 1e-5
"""Of seconds since the epoch."""


@dataclass(frozen=True)
class Place:
    """A server, and its services."""

    address: str
    stubs: Stubs

    def export(self, name: str, ttl: Duration | None = None) -> ExportSessionResponse:
        request = ExportSessionRequest(name=name, ttl=ttl)
        return self.stubs.sessions.ExportSession(request, timeout=SECONDS)

    def take(self, snapshot: bytes, ttl: Duration | None = None) -> Session:
        request = ImportSessionRequest(snapshot=snapshot, idle_ttl=ttl)
        return self.stubs.sessions.ImportSession(request, timeout=SECONDS).session

    def get(self, name: str) -> Session:
        return self.stubs.sessions.GetSession(GetSessionRequest(name=name), timeout=SECONDS).session

    def refusal(self, snapshot: bytes) -> Refusal:
        """How an import is refused."""
        request = ImportSessionRequest(snapshot=snapshot)
        return refused(self.stubs.sessions.ImportSession, request)


@contextmanager
def place(models: Path, keys: Path) -> Iterator[Place]:
    with (
        running_server(models, "--seal-key-file", str(keys)) as running,
        connected(running.address) as stubs,
    ):
        yield Place(running.address, stubs)


@pytest.fixture(scope="module")
def first(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Serves "lstm", "gru" and "rnn"; seals with the key "a"."""
    keys = key_file(tmp_path_factory.mktemp("first") / "keys", "a")
    with place(repository.path, keys) as served:
        yield served


@pytest.fixture(scope="module")
def elsewhere(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the same "gru", the same "lstm" as "renamed", and "small", it in int8."""
    work, path = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("elsewhere")
    recipes, models = repository.recipes, repository.models
    export(models["gru"], recipes["gru"], work, path)
    export(models["lstm"], replace(recipes["lstm"], name="renamed"), work, path)
    command = ["convert", str(work / "renamed.safetensors"), "--vocab", str(work / "renamed.json")]
    command += ["--output", str(path), "--name", "small", "--precision", "int8"]
    with pytest.MonkeyPatch.context() as patch:
        # What an export measures is not of interest here.
        patch.setattr(speed, "SECONDS", 0.001)
        assert export_main(command) == 0
    return path


@pytest.fixture(scope="module")
def second(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Serves what is elsewhere; seals with the key "b", and knows "a" as well."""
    keys = key_file(tmp_path_factory.mktemp("second") / "keys", "b", "a")
    with place(elsewhere, keys) as served:
        yield served


def seconds(session: Session) -> float:
    """From the last use of a session until it ends."""
    return (session.expire_time.ToNanoseconds() - session.use_time.ToNanoseconds()) / 1e9


# There


@pytest.mark.parametrize("model", ["lstm", "gru"])
@pytest.mark.parametrize(("told", "drawn"), [("", 0), ("a", 0), ("abc", 0), ("abc", 40), ("a", 1)])
def test_a_moved_session_goes_on_as_if_it_had_stayed(
    repository: Repository, first: Place, second: Place, model: str, told: str, drawn: int
) -> None:
    stayed = first.stubs.create(model, seed=9)
    request = CompleteRequest(session=stayed, prompt=told, max_tokens=drawn)
    first.stubs.completions.Complete(request, timeout=SECONDS)
    moved = second.take(first.export(stayed).snapshot)
    goes_on = CompleteRequest(prompt="xyz", max_tokens=50, logprobs=3)
    answers = []
    for served, name in ((first, stayed), (second, moved.name)):
        goes_on.session = name
        answers.append(served.stubs.completions.Complete(goes_on, timeout=SECONDS))
    lone = LoneSession(repository, model, 9)
    lone.tell(told)
    lone.draw(drawn)
    lone.tell("xyz")
    assert answers[0].text == lone.draw(50)
    assert (answers[1].text, answers[1].token_ids) == (answers[0].text, answers[0].token_ids)
    assert list(answers[1].logprobs) == list(answers[0].logprobs)
    assert answers[1].outcome.position == answers[0].outcome.position == lone.position


def test_what_is_said_of_both(first: Place, second: Place) -> None:
    name = first.stubs.create("lstm", seed=2**64 - 1)
    first.stubs.tell(name, "abc")
    before = first.get(name)
    export = first.export(name)
    moved = second.take(export.snapshot)
    assert moved.model == "renamed/1"
    assert moved.create_time == moved.use_time
    for field in ("fingerprint", "position", "seed", "state_bytes"):
        assert getattr(moved, field) == getattr(before, field) == getattr(export.session, field)
    assert second.get(moved.name) == moved
    assert export.session == first.get(name)
    assert export.session.use_time.ToNanoseconds() > before.use_time.ToNanoseconds()
    assert before.state_bytes <= len(export.snapshot) <= before.state_bytes + 1100


def test_a_snapshot_may_be_imported_often_and_where_it_comes_from(first: Place) -> None:
    name = first.stubs.create("rnn", seed=1)
    first.stubs.tell(name, "abc")
    snapshot = first.export(name).snapshot
    copies = [first.take(snapshot) for _ in range(3)]
    assert len({name, *(copy.name for copy in copies)}) == 4
    first.stubs.tell(copies[0].name, "a")
    positions = [first.stubs.position(session.name) for session in copies]
    assert (first.stubs.position(name), positions) == (3, [4, 3, 3])


@pytest.mark.parametrize(
    ("ttl", "lasts"),
    [(None, 3600.0), (Duration(seconds=7), 7.0), (Duration(seconds=3650 * DAY), 3650.0 * DAY)],
)
def test_an_imported_session_has_an_idle_time_of_its_own(
    first: Place, ttl: Duration | None, lasts: float
) -> None:
    request = CreateSessionRequest(model="rnn", idle_ttl=Duration(seconds=99))
    exported = first.stubs.sessions.CreateSession(request, timeout=SECONDS).session
    imported = first.take(first.export(exported.name).snapshot, ttl)
    assert seconds(imported) == pytest.approx(lasts, abs=1e-5)


def test_an_export_says_when_it_expires(first: Place) -> None:
    name = first.stubs.create("rnn")
    assert not first.export(name).HasField("expire_time")
    before = time.time()
    export = first.export(name, Duration(seconds=90, nanos=500_000_000))
    after = time.time()
    assert before <= export.expire_time.ToNanoseconds() / 1e9 - 90.5 + ROUNDING
    assert export.expire_time.ToNanoseconds() / 1e9 - 90.5 - ROUNDING <= after
    assert first.take(export.snapshot).position == 0


def test_clients_of_both_kinds_and_a_file(first: Place, second: Place, tmp_path: Path) -> None:
    file = tmp_path / "session.snapshot"
    with unrolled.Client(first.address) as here, unrolled.Client(second.address) as there:
        with here.create_session("gru", seed=3) as session:
            session.feed("abc")
            file.write_bytes(session.export(ttl=60))
            expected = session.complete("d", max_tokens=20).text
        with there.import_session(file.read_bytes()) as moved:
            assert moved.complete("d", max_tokens=20).text == expected
            back = tmp_path / "back.snapshot"
            command = ["sessions", "export", moved.name, "--output", str(back)]
            assert run("--server", second.address, *command).returncode == 0
        done = run("--server", second.address, "sessions", "import", str(back), "--json")
        assert '"position": "24"' in done.stdout
        assert done.stderr == ""


# Not there


def test_the_newer_key_is_not_known_before_the_older_one_goes(first: Place, second: Place) -> None:
    name = second.stubs.create("gru")
    snapshot = second.export(name).snapshot
    assert second.take(snapshot).position == 0
    assert first.refusal(snapshot) == first.refusal(b"")


def test_a_model_that_is_not_served_there_is_named(first: Place, second: Place) -> None:
    snapshot = first.export(first.stubs.create("rnn")).snapshot
    refusal = second.refusal(snapshot)
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert refusal.metadata == {"model": "rnn/1"}
    assert first.get(first.take(snapshot).name).fingerprint in refusal.message


@pytest.mark.parametrize("nanos", [1, 1000])
def test_an_expired_snapshot_is_refused(first: Place, nanos: int) -> None:
    snapshot = first.export(first.stubs.create("rnn"), Duration(nanos=nanos)).snapshot
    assert first.refusal(snapshot) == first.refusal(b"")


def test_there_are_no_snapshots_without_keys(server: RunningServer) -> None:
    with connected(server.address) as stubs:
        name = stubs.create("rnn")
        refusals = [
            refused(stubs.sessions.ExportSession, ExportSessionRequest(name=name)),
            refused(stubs.sessions.ImportSession, ImportSessionRequest(snapshot=b"any")),
        ]
        assert stubs.position(name) == 0
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SNAPSHOTS_DISABLED")
        assert (refusal.metadata, refusal.retry_after) == ({}, None)
        assert "--seal-key-file" in refusal.message


@pytest.mark.parametrize(
    "ttl", [Duration(), Duration(seconds=-1), Duration(seconds=3650 * DAY, nanos=1000)]
)
def test_times_that_are_none_are_refused(first: Place, ttl: Duration) -> None:
    export = ExportSessionRequest(name=first.stubs.create("rnn"), ttl=ttl)
    snapshot = first.export(export.name).snapshot
    restore = ImportSessionRequest(snapshot=snapshot, idle_ttl=ttl)
    sessions = first.stubs.sessions
    for field, refusal in (
        ("ttl", refused(sessions.ExportSession, export)),
        ("idle_ttl", refused(sessions.ImportSession, restore)),
    ):
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert refusal.metadata == {"field": field}


def test_what_is_not_there_is_not_exported(first: Place) -> None:
    nameless = refused(first.stubs.sessions.ExportSession, ExportSessionRequest())
    assert (nameless.code, nameless.metadata) == ("INVALID_ARGUMENT", {"field": "name"})
    unknown = refused(first.stubs.sessions.ExportSession, ExportSessionRequest(name="sessions/x"))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")


def test_all_that_is_wrong_gets_one_answer(first: Place) -> None:
    whole = first.export(first.stubs.create("rnn", seed=1)).snapshot
    expected = first.refusal(b"")
    assert (expected.code, expected.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (expected.metadata, expected.fields) == ({"field": "snapshot"}, ["snapshot"])
    assert not expected.message.endswith("...")
    found = {
        mutant
        for _, mutant in zip(range(MUTATIONS), mutations([whole], seed=2), strict=False)
        if first.refusal(mutant) != expected
    }
    assert not found
    assert first.refusal(bytes(1 << 20)) == expected
    assert first.take(whole).position == 0


# States


def forged(repository: Path, model: str, state: NDArray[np.float32]) -> bytes:
    manifest = read_manifest(repository / model / "1")
    return Forged(f"{model}/1", manifest.fingerprint, state).sealed()


def states(hidden: float, cell: float) -> NDArray[np.float32]:
    """Of "lstm": 2 layers of 48, h before c."""
    layer = [*[hidden] * 48, *[cell] * 48]
    return np.array(layer * 2, np.float32)


@pytest.mark.parametrize("hidden", [1.01, -1.01, 1e30])
def test_products_in_bytes_need_hidden_states_within_1(
    elsewhere: Path, second: Place, hidden: float
) -> None:
    assert len(read_manifest(elsewhere / "small" / "1").quantized_weights) > 0
    for bounded in (states(1.0, 50.0), states(-1.0, -50.0), states(1 + 1e-6, 0.0)):
        assert second.take(forged(elsewhere, "small", bounded)).position == 3
    outside = forged(elsewhere, "small", states(hidden, 0.0))
    assert second.refusal(outside) == second.refusal(b"")
    assert second.take(forged(elsewhere, "renamed", states(hidden, 0.0))).position == 3


@pytest.mark.parametrize("model", ["small", "renamed"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_state_is_finite(elsewhere: Path, second: Place, model: str, number: float) -> None:
    for wrong in (states(number, 0.0), states(0.0, number)):
        assert second.refusal(forged(elsewhere, model, wrong)) == second.refusal(b"")


def test_keys_are_rotated_while_the_server_runs(repository: Repository, tmp_path: Path) -> None:
    keys = key_file(tmp_path / "keys", "a")
    flags = ("--seal-key-file", str(keys))
    with (
        running_server(repository.path, *flags) as running,
        connected(running.address) as stubs,
    ):
        here, metrics = Place(running.address, stubs), Metrics(running.metrics_url)
        name = stubs.create("lstm")
        old = here.export(name).snapshot

        key_file(keys, "b", "a")
        metrics.wait_for("unrolled_file_reloads_total", 1, files="seal_keys", result="good")
        new = here.export(name).snapshot
        assert here.take(old).position == here.take(new).position == 0

        key_file(keys, "b")
        metrics.wait_for("unrolled_file_reloads_total", 2, files="seal_keys", result="good")
        assert here.refusal(old).metadata["field"] == "snapshot"
        keys.write_text("b\n")
        metrics.wait_for("unrolled_files_good", 0, files="seal_keys")
        assert here.take(new).position == 0

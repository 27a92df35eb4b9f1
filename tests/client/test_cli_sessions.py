"""unrolled sessions."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import grpc
from client.command import run
from client.fake_service import FakeService, failure
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    ImportSessionRequest,
    ListSessionsRequest,
)


def test_a_life(fake: FakeService) -> None:
    def sessions(*arguments: str) -> str:
        done = run("--server", fake.target, "sessions", *arguments)
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    assert sessions("create", "--seed", "0", "--idle-ttl", "90") == "sessions/1\n"
    assert sessions("fork", "sessions/1", "--seed", "5") == "sessions/2\n"
    assert [line.split()[0] for line in sessions().splitlines()] == [
        *("SESSION", "sessions/1", "sessions/2")
    ]
    shown = dict(line.split(maxsplit=1) for line in sessions("show", "sessions/2").splitlines())
    assert (shown["model"], shown["position"], shown["expires"]) == ("tiny/1", "0 tokens", "never")
    assert sessions("delete", "sessions/1", "sessions/2") == ""

    assert not fake.sessions
    (created,) = fake.heard(CreateSessionRequest)
    assert (created.model, created.seed, created.HasField("seed")) == ("tiny", 0, True)
    assert created.idle_ttl.ToTimedelta() == timedelta(seconds=90)
    assert fake.heard(ForkSessionRequest) == [ForkSessionRequest(name="sessions/1", seed=5)]


def test_listing_goes_through_all_pages_and_takes_options_on_both_sides(fake: FakeService) -> None:
    names = [fake.add_session(f"sessions/{letter}").name for letter in "abc"]
    for words in (
        ["--model", "tiny", "--json", "list"],
        ["list", "--model", "tiny", "--json"],
        ["--model", "tiny", "--json"],
    ):
        fake.received.clear()
        done = run("--server", fake.target, "sessions", *words)

        assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == names
        assert [request.model for request in fake.heard(ListSessionsRequest)] == ["tiny"] * 2


def test_json_of_one(fake: FakeService) -> None:
    fake.add_session("sessions/a", position=3)
    for action in ("show", "fork"):
        done = run("--server", fake.target, "sessions", action, "--json", "sessions/a")

        assert int(json.loads(done.stdout)["position"]) == 3


def test_there_and_back_in_a_file(fake: FakeService, tmp_path: Path) -> None:
    fake.add_session("sessions/a", position=3)
    file = tmp_path / "a.snapshot"

    def sessions(*arguments: str) -> str:
        done = run("--server", fake.target, "sessions", *arguments)
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    assert sessions("export", "sessions/a", "--output", str(file), "--ttl", "90") == ""
    assert file.stat().st_mode & 0o777 == 0o600
    assert sessions("import", str(file), "--idle-ttl", "60") == "sessions/1\n"
    assert json.loads(sessions("import", "--json", str(file)))["name"] == "sessions/2"

    (exported,) = fake.heard(ExportSessionRequest)
    assert (exported.name, exported.ttl.seconds) == ("sessions/a", 90)
    first, second = fake.heard(ImportSessionRequest)
    assert first.snapshot == second.snapshot == file.read_bytes()
    assert (first.idle_ttl.seconds, second.HasField("idle_ttl")) == (60, False)
    assert [session.position for session in fake.sessions.values()] == [3, 3, 3]


def test_an_export_replaces_no_file(fake: FakeService, tmp_path: Path) -> None:
    fake.add_session("sessions/a")
    file = tmp_path / "a.snapshot"
    file.write_bytes(b"precious")

    done = run("--server", fake.target, "sessions", "export", "sessions/a", "--output", str(file))

    assert (done.returncode, done.stdout, file.read_bytes()) == (1, "", b"precious")
    assert str(file) in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_export_that_fails_leaves_no_file(fake: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "a.snapshot"
    done = run("--server", fake.target, "sessions", "export", "none", "--output", str(file))

    assert (done.returncode, file.exists()) == (1, False)
    assert "(SESSION_NOT_FOUND)" in done.stderr


def test_a_server_without_keys_says_what_to_do(fake: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "a.snapshot"
    file.touch()
    fake.failure = failure(grpc.StatusCode.FAILED_PRECONDITION, "no key", "SNAPSHOTS_DISABLED")
    done = run("--server", fake.target, "sessions", "import", str(file))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("unrolled: no key (SNAPSHOTS_DISABLED): ")
    assert "--seal-key-file" in done.stderr


def test_what_cannot_be_read_is_not_imported(fake: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "none.snapshot"
    done = run("--server", fake.target, "sessions", "import", str(file))

    assert (done.returncode, done.stdout, fake.received) == (1, "", [])
    assert str(file) in done.stderr


def test_an_unknown_session_says_what_to_do(fake: FakeService) -> None:
    for action in ("show", "fork", "delete"):
        done = run("--server", fake.target, "sessions", action, "sessions/none")

        assert (done.stdout, done.returncode) == ("", 1)
        assert done.stderr.startswith(
            "unrolled: session 'sessions/none' is unknown or has ended (SESSION_NOT_FOUND): "
        )
        assert done.stderr.count("\n") == 1


def test_what_cannot_be_shown_can_be_deleted(fake: FakeService) -> None:
    """Its record may be damaged, or its model no longer served."""
    fake.add_session("sessions/a")
    done = run("--server", fake.target, "sessions", "delete", "sessions/a")
    assert (done.stderr, done.returncode) == ("", 0)
    assert fake.received == [DeleteSessionRequest(name="sessions/a")]


def test_what_is_gone_keeps_no_other_from_being_deleted(fake: FakeService) -> None:
    fake.add_session("sessions/b")
    done = run("--server", fake.target, "sessions", "delete", "sessions/a", "sessions/b")
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)
    assert "SESSION_NOT_FOUND" in done.stderr
    assert fake.received[-1] == DeleteSessionRequest(name="sessions/b")


def test_wrong_usage_is_2(fake: FakeService) -> None:
    for wrong in (
        ["create", "--idle-ttl", "inf"],
        ["delete"],
        ["rewind", "sessions/a", ""],
        ["show"],
        ["rename", "a", "b"],
        ["export", "a"],
        ["export", "a", "--output", "b", "--ttl", "soon"],
        ["import"],
    ):
        assert run("--server", fake.target, "sessions", *wrong).returncode == 2
    assert not fake.received

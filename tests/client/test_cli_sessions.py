"""unrolled sessions."""

from __future__ import annotations

import json
from datetime import timedelta

from client.command import run
from client.fake_service import FakeService
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    ForkSessionRequest,
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


def test_an_unknown_session_says_what_to_do(fake: FakeService) -> None:
    for action in ("show", "fork", "delete"):
        done = run("--server", fake.target, "sessions", action, "sessions/none")

        assert (done.stdout, done.returncode) == ("", 1)
        assert done.stderr.startswith(
            "unrolled: session 'sessions/none' is unknown or has ended (SESSION_NOT_FOUND): "
        )
        assert done.stderr.count("\n") == 1


def test_wrong_usage_is_2(fake: FakeService) -> None:
    for wrong in (["create", "--idle-ttl", "inf"], ["delete"], ["show"], ["rename", "a", "b"]):
        assert run("--server", fake.target, "sessions", *wrong).returncode == 2
    assert not fake.received

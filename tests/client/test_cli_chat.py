"""unrolled chat: on pipes, and on a terminal."""

from __future__ import annotations

import grpc
from client.command import run, terminal
from client.fake_service import FakeService, failure
from unrolled.v1.completion_pb2 import CompleteRequest, ConverseRequest, ScoreRequest
from unrolled.v1.session_pb2 import CreateSessionRequest, ForkSessionRequest

BUSY = failure(grpc.StatusCode.ABORTED, "another turn is under way", "SESSION_BUSY")


def completions(fake: FakeService) -> list[CompleteRequest]:
    commands = fake.heard(ConverseRequest)
    return [command.complete for command in commands if command.HasField("complete")]


def test_lines_are_turns_of_one_session(fake: FakeService) -> None:
    done = run("--server", fake.target, "chat", "--max-tokens", "5", told="Grüße\n\nb".encode())

    assert (done.stdout, done.returncode) == ("To be\n" * 3, 0)
    assert completions(fake) == [
        CompleteRequest(prompt="Grüße\n", max_tokens=5),
        CompleteRequest(prompt="\n", max_tokens=5),
        CompleteRequest(prompt="b\n", max_tokens=5),
    ]
    assert fake.sessions["sessions/1"].position == 6 + 1 + 2 + 15
    resume = f"unrolled --server {fake.target} chat --session sessions/1"
    assert done.stderr.splitlines() == [
        "sessions/1 of tiny/1, position 0; /help lists the commands",
        f"kept sessions/1; resume it with: {resume}",
    ]


def test_a_session_is_resumed(fake: FakeService) -> None:
    fake.add_session("sessions/a", position=1234)
    done = run("--server", fake.target, "chat", "--session", "sessions/a", told=b"/session\n")

    assert done.stdout == "sessions/a of tiny/1, position 1,234\n"
    assert not fake.heard(CreateSessionRequest)


def test_lines_may_be_told_without_a_line_break(fake: FakeService) -> None:
    run("--server", fake.target, "chat", "--no-newline", told=b"ab\n")

    assert completions(fake) == [CompleteRequest(prompt="ab")]


def test_two_slashes_tell_one(fake: FakeService) -> None:
    run("--server", fake.target, "chat", told=b"//usr//bin\n/\n")

    assert completions(fake) == [CompleteRequest(prompt="/usr//bin\n")]


def test_a_fork_is_gone_on_with(fake: FakeService) -> None:
    done = run("--server", fake.target, "chat", told=b"ab\n/fork 9\nc\n/session\n")

    assert done.stdout.splitlines() == [
        "To be",
        "sessions/2 is a fork of sessions/1, and is now in use",
        "To be",
        "sessions/2 of tiny/1, position 15",
    ]
    assert fake.heard(ForkSessionRequest) == [ForkSessionRequest(name="sessions/1", seed=9)]
    assert fake.sessions["sessions/1"].position == 8
    assert "kept sessions/2" in done.stderr


def test_a_score_is_told_in_every_measure_and_moves_nothing(fake: FakeService) -> None:
    done = run("--server", fake.target, "chat", told=b"/score a bc\n")

    assert [line.split() for line in done.stdout.splitlines()] == [
        ["tokens", "4,", "the", "first", "without", "a", "probability"],
        ["log-probability", "-1.500", "nats"],
        ["bits", "per", "character", "0.721"],
        ["bits", "per", "byte", "0.721"],
        ["perplexity", "1.649", "per", "token"],
        ["TOKEN", "LOGPROB"],
        ["'a'", "-"],
        ["'", "'", "-0.500"],
        ["'b'", "-0.500"],
        ["'c'", "-0.500"],
    ]
    assert fake.heard(ScoreRequest) == [ScoreRequest(session="sessions/1", text="a bc", logprobs=0)]
    assert fake.sessions["sessions/1"].position == 0


def test_delete_ends_the_session_and_its_forks(fake: FakeService) -> None:
    done = run("--server", fake.target, "chat", "--delete", told=b"ab\n/fork\n/quit\nnever told\n")

    assert done.returncode == 0
    assert not fake.sessions
    assert len(completions(fake)) == 1


def test_on_pipes_the_first_failure_ends_the_chat(fake: FakeService) -> None:
    fake.command_failure = BUSY
    done = run("--server", fake.target, "chat", told=b"ab\nnever told\n")

    assert (done.stdout, done.returncode) == ("", 1)
    assert [request.prompt for request in completions(fake)] == ["ab\n"]
    _, kept, problem = done.stderr.splitlines()
    assert kept.startswith("kept sessions/1")
    assert problem.startswith("unrolled: another turn is under way (SESSION_BUSY): ")


def test_on_pipes_an_unknown_command_ends_the_chat(fake: FakeService) -> None:
    for wrong in (b"/nonsense", b"/score", b"/fork -1", b"\xff"):
        done = run("--server", fake.target, "chat", told=wrong + b"\nab\n")

        assert (done.stdout, done.returncode) == ("", 2)
    assert not completions(fake)


def test_wrong_usage_is_2(fake: FakeService) -> None:
    fake.add_session("sessions/a")
    both = run("--server", fake.target, "chat", "--session", "sessions/a", "--model", "tiny")
    seed = run("--server", fake.target, "chat", "--session", "sessions/a", "--seed", "1")

    assert (both.returncode, seed.returncode) == (2, 2)
    assert seed.stderr == "unrolled: --seed is for a new session: this one has its own\n"


def test_on_a_terminal_answers_follow_their_lines(fake: FakeService) -> None:
    with terminal("--server", fake.target, "chat") as screen:
        screen.expect("> ")
        screen.type("ab\n")
        assert screen.expect("> ") == "ab\nTo be\n"
        screen.type("/help\n")
        assert "/fork [SEED]" in screen.expect("> ")
        screen.type("\x04")
        assert "kept sessions/1" in screen.rest()
        assert screen.status() == 0


def test_interrupting_a_completion_keeps_what_was_shown(fake: FakeService) -> None:
    fake.holds = True
    with terminal("--server", fake.target, "chat") as screen:
        screen.expect("> ")
        screen.type("ab\n")
        screen.expect("To ")
        screen.type("\x03")
        screen.expect("\n> ")
        fake.holds = False
        screen.type("c\n")
        screen.expect("To be\n> ")
        screen.type("/session\n")
        assert "position 13" in screen.expect("> ")
        screen.type("/quit\n")
        assert screen.status() == 0

    commands = [command.WhichOneof("command") for command in fake.heard(ConverseRequest)]
    assert commands == ["open", "complete", "stop", "open", "complete"]
    _, completion, stop, *_ = fake.heard(ConverseRequest)
    assert stop.stop.command_id == completion.command_id
    assert not fake.abandoned.is_set()


def test_interrupting_twice_gives_up_the_turn(fake: FakeService) -> None:
    fake.holds = True
    fake.ignores_stop = True
    with terminal("--server", fake.target, "chat") as screen:
        screen.expect("> ")
        screen.type("ab\n")
        screen.expect("To ")
        screen.type("\x03")
        assert fake.heard_stop.wait(60)
        screen.type("\x03")
        screen.expect("unrolled: the turn was given up; ")
        screen.expect("> ")
        screen.type("/quit\n")
        assert screen.status() == 0

    assert fake.abandoned.wait(60)
    assert fake.sessions["sessions/1"].position == 0


def test_interrupting_at_the_prompt_does_not_leave(fake: FakeService) -> None:
    with terminal("--server", fake.target, "chat") as screen:
        screen.expect("> ")
        screen.type("half a line")
        screen.expect("half a line")
        screen.interrupt("/quit or Ctrl-D leaves\n")
        screen.expect("> ")
        screen.type("ab\n")
        screen.expect("To be\n> ")
        screen.type("\x04")
        assert screen.status() == 0

    assert completions(fake) == [CompleteRequest(prompt="ab\n")]


def test_on_a_terminal_a_failure_does_not_end_the_chat(fake: FakeService) -> None:
    with terminal("--server", fake.target, "chat") as screen:
        screen.expect("> ")
        fake.command_failure = BUSY
        screen.type("ab\n")
        assert "unrolled: another turn is under way (SESSION_BUSY): " in screen.expect("> ")
        screen.type("/nonsense\n")
        assert "there is no command /nonsense" in screen.expect("> ")
        screen.type("ab\n")
        screen.expect("To be\n> ")
        screen.type("/quit\n")
        assert screen.status() == 0

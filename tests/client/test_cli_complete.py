"""unrolled complete, as a user sees it and as the server hears it."""

from __future__ import annotations

import json
import os
import signal

import grpc
from client.command import environment, run, started, terminal
from client.fake_service import FakeService, failure, model
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled.v1.model_pb2 import ListModelsRequest, Model


def test_prompt_and_completion_are_printed_unchanged(fake: FakeService) -> None:
    done = run("--server", fake.target, "complete", "--model", "tiny", "ROMEO:")

    assert (done.stdout, done.stderr, done.returncode) == ("ROMEO:To be", "", 0)
    assert fake.received == [CompleteRequest(model="tiny", prompt="ROMEO:")]


def test_options_reach_the_server(fake: FakeService) -> None:
    fake.add_session("sessions/a", position=3)
    options = "--session sessions/a --max-tokens 5 --temperature 0 --top-k 3 --top-p 0.5"
    more = "--min-p 0.25 --seed 18446744073709551615 --logprobs 0 --no-echo --request-id once"
    place = ("--expected-position", "3")
    stops = ("--stop", "END", "--stop", "\n")
    done = run(
        "complete", "--server", fake.target, "a", *options.split(), *more.split(), *place, *stops
    )

    assert (done.stdout, done.returncode) == ("To be", 0)
    assert fake.received == [
        CompleteRequest(
            session="sessions/a",
            prompt="a",
            max_tokens=5,
            temperature=0,
            top_k=3,
            top_p=0.5,
            min_p=0.25,
            seed=2**64 - 1,
            logprobs=0,
            expected_position=3,
            request_id="once",
            stop=["END", "\n"],
        )
    ]


def test_standard_input_is_told_exactly(fake: FakeService) -> None:
    for arguments in ((), ("-",)):
        done = run(
            "--server", fake.target, "complete", *arguments, told="Grüße\r\nan alle\n".encode()
        )

        assert done.stdout == "Grüße\r\nan alle\nTo be"
    assert [r.prompt for r in fake.heard(CompleteRequest)] == ["Grüße\r\nan alle\n"] * 2


def test_empty_standard_input_is_no_prompt(fake: FakeService) -> None:
    done = run("--server", fake.target, "complete")

    assert done.stdout == "To be"
    assert fake.heard(CompleteRequest)[0].WhichOneof("input") is None


def test_on_a_terminal_nothing_is_read_and_the_line_is_ended(fake: FakeService) -> None:
    with terminal("--server", fake.target, "complete") as screen:
        assert screen.rest() == "To be\n"
        assert screen.status() == 0


def test_json_has_a_line_for_each_event(fake: FakeService) -> None:
    done = run("--server", fake.target, "complete", "--json", "ab")

    *deltas, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["delta"]["text"] for event in deltas] == ["To ", "be"]
    assert last["outcome"]["finish_reason"] == "FINISH_REASON_LENGTH"
    assert int(last["outcome"]["position"]) == 7


def test_logprobs_are_a_table_beside_the_text(fake: FakeService) -> None:
    fake.drawn = ("a\n",)
    done = run("--server", fake.target, "complete", "--logprobs", "1", "x")

    assert done.stdout == "xa\n"
    assert [line.split() for line in done.stderr.splitlines()] == [
        ["TOKEN", "LOGPROB", "LIKELIEST"],
        ["'a'", "-1.000", "'e'", "-0.500"],
        ["'\\n'", "-1.000", "'e'", "-0.500"],
    ]


def test_the_only_ready_model_is_used(fake: FakeService) -> None:
    fake.models = [
        model("tiny", 1),
        model("tiny", 2),
        Model(name="broken", version=1, status=Model.STATUS_FAILED),
    ]
    run("--server", fake.target, "complete", "ab")

    assert fake.received == [ListModelsRequest(), CompleteRequest(model="tiny", prompt="ab")]


def test_among_several_models_the_user_chooses(fake: FakeService) -> None:
    fake.models = [model("b"), model("a")]
    done = run("--server", fake.target, "complete", "ab")

    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == "unrolled: choose a model with --model: a, b\n"


def test_no_model_is_ready(fake: FakeService) -> None:
    fake.models = []
    done = run("--server", fake.target, "complete", "ab")

    assert done.returncode == 1
    assert done.stderr == "unrolled: no model is ready: `unrolled models` says why\n"


def test_a_refusal_is_one_line_and_prints_no_prompt(fake: FakeService) -> None:
    fake.failure = failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "9 turns\nwait", "OVERLOADED", retry_after=1.5
    )
    done = run("--server", fake.target, "complete", "--model", "tiny", "ab")

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "unrolled: 9 turns wait (OVERLOADED): try again, in 1.5 s\n"


def test_nobody_there_names_the_address(fake: FakeService) -> None:
    done = run("complete", "ab", env=environment(UNROLLED_SERVER="127.0.0.1:1"))

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.count("\n") == 1
    assert "(UNAVAILABLE): is a server running at 127.0.0.1:1?" in done.stderr


def test_the_environment_names_the_server(fake: FakeService) -> None:
    assert run("complete", "ab", env=environment(UNROLLED_SERVER=fake.target)).returncode == 0


def test_wrong_usage_is_2(fake: FakeService) -> None:
    for wrong in (
        ["complete", "--top-k", "many", "a"],
        ["complete", "--max-tokens", str(2**31), "a"],
        ["complete", "--seed", "-1", "a"],
        ["complete", "--temp", "1", "a"],
        ["complete", "--expected-position", "3", "a"],
        ["complete", "--session", "s", "--expected-position", str(2**63), "a"],
        ["complete", "a", "b"],
        ["complete", os.fsdecode(b"\xff")],
        [],
    ):
        done = run("--server", fake.target, *wrong)

        assert (done.stdout, done.returncode) == ("", 2)
    assert not fake.received


def test_input_that_is_not_utf_8_is_refused(fake: FakeService) -> None:
    done = run("--server", fake.target, "complete", told=b"ab\xff")

    assert done.returncode == 2
    assert done.stderr == "unrolled: standard input is not valid UTF-8 at byte 2\n"


def test_text_shows_while_it_is_drawn_and_interrupting_ends_the_turn(fake: FakeService) -> None:
    fake.holds = True
    with started("--server", fake.target, "complete", "ab") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"abTo "
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()

    assert (out, err, process.returncode) == (b"", b"", 130)
    assert fake.abandoned.wait(30)


def test_a_reader_that_leaves_ends_it_quietly(fake: FakeService) -> None:
    fake.holds = True
    with started("--server", fake.target, "complete", "ab") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        fake.holds = False
        fake.proceed.set()

        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_characters_that_the_terminal_lacks_do_not_end_it(fake: FakeService) -> None:
    fake.drawn = ("é",)
    ascii_only = environment(PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    done = run("--server", fake.target, "complete", "a", env=ascii_only)

    assert (done.stdout, done.returncode) == ("a?", 0)

"""unrolled score, as a user sees it and as the server hears it."""

from __future__ import annotations

import json
import math

import grpc
import pytest
from client.command import run, terminal
from client.fake_service import FakeService, failure
from support.lone import LoneSession
from support.models import Repository
from support.server import RunningServer
from unrolled.cli.scores import score_report
from unrolled.v1.completion_pb2 import ScoreRequest, ScoreResponse, TokenLogprob


def figures(report: str) -> dict[str, str]:
    """The lines of a report by their names."""
    return {line[:20].rstrip(): line[20:] for line in report.splitlines()}


def test_a_text_is_scored_in_every_measure(fake: FakeService) -> None:
    done = run("--server", fake.target, "score", "--model", "tiny", "aéé")

    assert (done.stderr, done.returncode) == ("", 0)
    assert figures(done.stdout) == {
        "tokens": "3, the first without a probability",
        "log-probability": "-1.000 nats",
        "bits per character": "0.721",
        "bits per byte": "0.361",
        "perplexity": "1.649 per token",
    }
    assert fake.received == [ScoreRequest(model="tiny", text="aéé", logprobs=0)]


def test_the_figures_are_those_of_the_model(server: RunningServer, repository: Repository) -> None:
    text = "Hear me speak"
    done = run("score", "--server", server.address, "--model", "lstm", text)

    first, *others = LoneSession(repository, "lstm", 0).tell(text)
    nats = -math.fsum(logprob for logprob in others if logprob is not None)
    said = figures(done.stdout)
    assert first is None
    assert said["log-probability"] == f"{-nats:.3f} nats"
    assert said["bits per character"] == said["bits per byte"] == f"{nats / math.log(2) / 12:.3f}"
    assert said["perplexity"] == f"{math.exp(nats / 12):.3f} per token"


def test_tokens_are_a_line_each(fake: FakeService) -> None:
    done = run("--server", fake.target, "score", "--model", "tiny", "--tokens", "a\nb")

    assert [line.split() for line in done.stdout.splitlines()[5:]] == [
        ["TOKEN", "LOGPROB"],
        ["'a'", "-"],
        ["'\\n'", "-0.500"],
        ["'b'", "-0.500"],
    ]


def test_a_session_scores_what_would_come_next(fake: FakeService) -> None:
    done = run("--server", fake.target, "score", "--session", "sessions/a", "--logprobs", "2", "ab")

    assert done.returncode == 0
    assert fake.received == [ScoreRequest(session="sessions/a", text="ab", logprobs=2)]


@pytest.mark.parametrize(
    ("options", "logprobs"), [([], None), (["--tokens"], 0), (["--logprobs", "3"], 3)]
)
def test_json_is_the_answer_to_what_was_asked(
    fake: FakeService, options: list[str], logprobs: int | None
) -> None:
    done = run("--server", fake.target, "score", "--model", "tiny", "--json", *options, "ab")

    answer = json.loads(done.stdout)
    assert (answer["total_logprob"], answer["model"]) == (-0.5, "tiny/1")
    assert fake.received == [ScoreRequest(model="tiny", text="ab", logprobs=logprobs)]


def test_standard_input_is_scored_exactly(fake: FakeService) -> None:
    for arguments in ((), ("-",)):
        run("--server", fake.target, "score", *arguments, told="Grüße\r\nan alle\n".encode())

    assert [r.text for r in fake.heard(ScoreRequest)] == ["Grüße\r\nan alle\n"] * 2


def test_wrong_usage_is_2(fake: FakeService) -> None:
    for wrong in (
        ["--model", "tiny", "--session", "sessions/a", "a"],
        ["--logprobs", "all", "a"],
        ["--temperature", "1", "a"],
        [""],
        [],
    ):
        done = run("--server", fake.target, "score", *wrong)

        assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr == "unrolled: there is no text to score\n"
    assert not fake.received


def test_on_a_terminal_nothing_is_read(fake: FakeService) -> None:
    with terminal("--server", fake.target, "score") as screen:
        assert screen.rest() == "unrolled: there is no text to score\n"
        assert screen.status() == 2


def test_a_refusal_is_one_line(fake: FakeService) -> None:
    fake.failure = failure(grpc.StatusCode.NOT_FOUND, "no model 'x'", "MODEL_NOT_FOUND")
    done = run("--server", fake.target, "score", "--model", "x", "a")

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("unrolled: no model 'x' (MODEL_NOT_FOUND): ")


def answer(first: bytes, *others: bytes) -> ScoreResponse:
    """Of tokens whose chance is a half each, but for the first."""
    scored = [TokenLogprob(token=token, logprob=math.log(0.5)) for token in others]
    total = len(others) * math.log(0.5)
    return ScoreResponse(tokens=[TokenLogprob(token=first), *scored], total_logprob=total)


def test_a_character_that_the_first_byte_began_is_not_counted() -> None:
    said = figures(score_report("éa", answer(b"\xc3", b"\xa9", b"a")))

    assert (said["bits per character"], said["bits per byte"]) == ("2.000", "1.000")
    assert said["perplexity"] == "2.000 per token"


def test_a_space_that_only_the_first_piece_has_is_no_part_of_the_text() -> None:
    said = figures(score_report("the cat", answer(b" the", b" cat")))

    assert (said["bits per character"], said["bits per byte"]) == ("0.250", "0.250")


@pytest.mark.parametrize(
    ("text", "tokens"), [("what ever", [b"<unk>", b"ever"]), ("a", [b"a"]), ("é", [b"\xc3"])]
)
def test_what_cannot_be_known_is_left_out(text: str, tokens: list[bytes]) -> None:
    said = figures(score_report(text, answer(*tokens)))

    assert [name for name in said if name.startswith("bits")] == []
    assert ("perplexity" in said) == (len(tokens) > 1)


def test_what_was_certain_is_no_bit_and_what_was_impossible_is_endless() -> None:
    certain = TokenLogprob(token=b"a", logprob=0.0)
    said = figures(score_report("a", ScoreResponse(tokens=[certain], total_logprob=0.0)))
    assert (said["bits per byte"], said["perplexity"]) == ("0.000", "1.000 per token")

    unlikely = TokenLogprob(token=b"a", logprob=-1000.0)
    said = figures(score_report("a", ScoreResponse(tokens=[unlikely], total_logprob=-1000.0)))
    assert said["perplexity"] == "inf per token"

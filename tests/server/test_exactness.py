"""Sessions are exact: the same tokens and log-probabilities, however they came about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from support.models import CHARACTERS, Recipe, Repository, TorchModel
from support.oracle import Draw, LoneRun, LoneSequence
from support.server import RunningServer
from unrolled.v1.completion_pb2 import CompleteRequest, CompleteResponse, ScoreRequest, TokenIds
from unrolled.v1.completion_pb2_grpc import CompletionServiceStub
from unrolled.v1.session_pb2 import CreateSessionRequest
from unrolled.v1.session_pb2_grpc import SessionServiceStub

SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"min_p": 0.05, "top_p": 0.95, "top_k": 20},
)


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def lone(repository: Repository, name: str, seed: int) -> LoneSequence:
    recipe = repository.recipes[name]
    start = None if recipe.start_token is None else recipe.characters.index("\n")
    return LoneSequence(LoneRun(repository.path / name / "1"), seed, start)


def expected(
    sequence: LoneSequence, prompt: str, recipe: Recipe, count: int, how: Draw
) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities that `count` draws after `prompt` have to be."""
    for character in prompt:
        sequence.tell(recipe.characters.index(character))
    drawn = [sequence.draw(how) for _ in range(count)]
    return [token for token, _ in drawn], [logprob for _, logprob in drawn]


def prompt_of(seed: int) -> str:
    return CHARACTERS[seed % 50 : seed % 50 + 1 + seed % 5]


def logprobs_of(response: CompleteResponse) -> list[float]:
    return [item.logprob for item in response.logprobs]


def torch_logprobs(model: TorchModel, ids: list[int]) -> np.ndarray:
    """[T - 1]: of every token but the first, in one sequential PyTorch run."""
    with torch.no_grad():
        rows = model(torch.tensor([ids]))[0]
    chosen: np.ndarray = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
    return chosen


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_completion_is_what_a_lone_run_draws(
    repository: Repository, channel: grpc.Channel, name: str, sampling: dict[str, Any]
) -> None:
    response = CompletionServiceStub(channel).Complete(
        CompleteRequest(model=name, prompt="Hello", max_tokens=50, seed=11, logprobs=0, **sampling)
    )
    recipe = repository.recipes[name]
    tokens, logprobs = expected(lone(repository, name, 11), "Hello", recipe, 50, Draw(**sampling))
    assert list(response.token_ids) == tokens
    assert logprobs_of(response) == logprobs
    assert response.text == "".join(recipe.characters[token] for token in tokens)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_log_probabilities_are_those_of_pytorch(
    repository: Repository, channel: grpc.Channel, name: str
) -> None:
    response = CompletionServiceStub(channel).Complete(
        CompleteRequest(model=name, prompt="The ", max_tokens=300, seed=3, logprobs=0)
    )
    ids = [CHARACTERS.index(character) for character in "The "] + list(response.token_ids)
    reference = torch_logprobs(repository.models[name], ids)[3:]
    assert np.abs(np.array(logprobs_of(response)) - reference).max() <= 1e-4


def test_greedy_text_is_that_of_pytorch(repository: Repository, channel: grpc.Channel) -> None:
    response = CompletionServiceStub(channel).Complete(
        CompleteRequest(model="lstm", prompt="a", max_tokens=200, temperature=0)
    )
    ids = [CHARACTERS.index("a"), *response.token_ids]
    with torch.no_grad():
        rows = repository.models["lstm"](torch.tensor([ids]))[0, :-1]
    best, second = rows.topk(2).values.unbind(-1)
    clear = (best - second > 1e-3).numpy()
    assert clear.mean() > 0.9
    assert (rows.argmax(-1).numpy() == np.array(ids[1:]))[clear].all()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_two_turns_give_what_one_gives(channel: grpc.Channel, sampling: dict[str, Any]) -> None:
    stub, sessions = CompletionServiceStub(channel), SessionServiceStub(channel)
    parts = []
    for cuts in ([40], [13, 27], [1, 1, 38]):
        created = sessions.CreateSession(CreateSessionRequest(model="lstm", seed=9))
        text, logprobs = "", []
        for place, count in enumerate(cuts):
            response = stub.Complete(
                CompleteRequest(
                    session=created.session.name,
                    prompt="Once" if place == 0 else None,
                    max_tokens=count,
                    logprobs=0,
                    **sampling,
                )
            )
            text += response.text
            logprobs += logprobs_of(response)
        parts.append((text, logprobs))
    assert parts[0] == parts[1] == parts[2]


def test_a_prompt_fed_in_parts_gives_what_it_gives_at_once(
    channel: grpc.Channel,
) -> None:
    stub, sessions = CompletionServiceStub(channel), SessionServiceStub(channel)
    prompt = "It was the best of times, it was the worst of times"
    answers = []
    for size in (len(prompt), 1, 7):
        created = sessions.CreateSession(CreateSessionRequest(model="gru", seed=4))
        name = created.session.name
        for start in range(0, len(prompt), size):
            part = prompt[start : start + size]
            stub.Complete(CompleteRequest(session=name, prompt=part, max_tokens=0))
        response = stub.Complete(CompleteRequest(session=name, max_tokens=30, logprobs=5))
        answers.append((response.text, list(map(str, response.logprobs))))
    assert answers[0] == answers[1] == answers[2]


def test_256_sessions_at_once_each_give_what_each_gives_alone(
    repository: Repository, channel: grpc.Channel
) -> None:
    stub, sessions = CompletionServiceStub(channel), SessionServiceStub(channel)

    created = [
        sessions.CreateSession(CreateSessionRequest(model="lstm", seed=seed)).session.name
        for seed in range(256)
    ]

    def turns(second: bool) -> list[CompleteResponse]:
        calls = [
            stub.Complete.future(
                CompleteRequest(
                    session=name,
                    prompt=prompt_of(seed),
                    max_tokens=4 if second else 5 + seed % 7,
                    logprobs=0,
                    **SAMPLINGS[seed % len(SAMPLINGS)],
                )
            )
            for seed, name in enumerate(created)
        ]
        return [call.result() for call in calls]

    firsts, seconds = turns(second=False), turns(second=True)
    recipe = repository.recipes["lstm"]
    run = LoneRun(repository.path / "lstm" / "1")
    for seed, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        sequence = LoneSequence(run, seed, None)
        how = Draw(**SAMPLINGS[seed % len(SAMPLINGS)])
        for response, count in ((first, 5 + seed % 7), (second, 4)):
            tokens, logprobs = expected(sequence, prompt_of(seed), recipe, count, how)
            assert list(response.token_ids) == tokens
            assert logprobs_of(response) == logprobs


def test_a_score_is_what_a_lone_run_and_pytorch_say(
    repository: Repository, channel: grpc.Channel
) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    stub = CompletionServiceStub(channel)
    response = stub.Score(ScoreRequest(model="lstm", text=text, logprobs=0))
    ids = [CHARACTERS.index(character) for character in text]
    sequence = lone(repository, "lstm", 0)
    told = [sequence.tell(token) for token in ids]
    assert told[0] is None
    assert not response.tokens[0].HasField("logprob")
    assert [item.logprob for item in response.tokens[1:]] == told[1:]
    reference = torch_logprobs(repository.models["lstm"], ids)
    assert np.abs(np.array(told[1:], np.float64) - reference).max() <= 1e-4
    assert response.total_logprob == pytest.approx(float(reference.sum()), abs=1e-3)
    total = stub.Score(ScoreRequest(model="lstm", tokens=TokenIds(ids=ids)))
    assert total.total_logprob == response.total_logprob
    assert not total.tokens


def test_the_likeliest_tokens_are_those_of_pytorch(
    repository: Repository, channel: grpc.Channel
) -> None:
    response = CompletionServiceStub(channel).Complete(
        CompleteRequest(model="gru", prompt="abc", max_tokens=20, seed=1, logprobs=20)
    )
    ids = [CHARACTERS.index(character) for character in "abc"] + list(response.token_ids)
    with torch.no_grad():
        rows = repository.models["gru"](torch.tensor([ids]))[0, 2:-1].numpy()
    for item, row in zip(response.logprobs, rows, strict=True):
        assert len(item.top) == 20
        given = np.array([other.logprob for other in item.top])
        assert np.abs(given - np.sort(row)[::-1][:20]).max() <= 1e-4
        assert np.abs(given - row[[other.token_id for other in item.top]]).max() <= 1e-4
        assert all(other.token.decode() == CHARACTERS[other.token_id] for other in item.top)


def test_stops_leave_the_session_at_the_token_that_completed_them(
    repository: Repository, channel: grpc.Channel
) -> None:
    stub, sessions = CompletionServiceStub(channel), SessionServiceStub(channel)
    whole = stub.Complete(CompleteRequest(model="lstm", prompt="abc", max_tokens=120, seed=21))
    for start in (0, 3, 8, 22, 57):
        stop = whole.text[start : start + 3]
        created = sessions.CreateSession(CreateSessionRequest(model="lstm", seed=21))
        name = created.session.name
        first = stub.Complete(
            CompleteRequest(session=name, prompt="abc", max_tokens=120, stop=[stop])
        )
        end = whole.text.index(stop)
        assert first.text == whole.text[:end]
        assert first.outcome.matched_stop == stop
        assert list(first.token_ids) == list(whole.token_ids)[: end + 3]
        assert first.outcome.position == 3 + end + 3
        rest = stub.Complete(CompleteRequest(session=name, max_tokens=120 - end - 3, logprobs=0))
        assert rest.text == whole.text[end + 3 :]


def test_an_end_token_ends_the_turn(repository: Repository, channel: grpc.Channel) -> None:
    stub = CompletionServiceStub(channel)
    for seed in range(12):
        response = stub.Complete(
            CompleteRequest(model="rnn", prompt="a", max_tokens=400, seed=seed)
        )
        sequence = lone(repository, "rnn", seed)
        recipe = repository.recipes["rnn"]
        sequence.tell(recipe.characters.index("a"))
        drawn: list[int] = []
        while len(drawn) < 400 and drawn[-1:] != [recipe.characters.index("\n")]:
            drawn.append(sequence.draw(Draw())[0])
        assert list(response.token_ids) == drawn
        assert response.text == "".join(recipe.characters[token] for token in drawn).rstrip("\n")

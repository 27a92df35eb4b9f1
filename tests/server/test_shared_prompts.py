"""Prompts that begin alike: what they share is run once, and nothing else tells the difference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import unrolled
from support.calls import SECONDS, Stubs, connected
from support.metrics import Metrics
from support.models import Repository
from support.oracle import Draw, LoneRun, LoneSequence
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import (
    CompleteRequest,
    CompleteResponse,
    ConverseRequest,
    ScoreRequest,
)

DRAWN = 30
SAMPLINGS = (Draw(), Draw(0.0), Draw(0.7, top_k=5))


@pytest.fixture(scope="module")
def server(repository: Repository) -> Iterator[RunningServer]:
    """A server that nobody else warms; every test has prompts of its own."""
    with running_server(repository.path) as running:
        yield running


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with connected(server.address) as stubs:
        yield stubs


def prompt_of(repository: Repository, model: str, length: int, seed: int) -> str:
    """Characters that no other seed begins with."""
    characters = list(repository.recipes[model].characters)
    return "".join(np.random.default_rng(seed).choice(characters, length))


def cached(response: CompleteResponse) -> int:
    return response.outcome.usage.cached_tokens


def complete(stubs: Stubs, **fields: object) -> CompleteResponse:
    return stubs.completions.Complete(CompleteRequest(**fields), timeout=SECONDS)  # type: ignore[arg-type]


def check(
    repository: Repository, model: str, prompt: str, how: Draw, response: CompleteResponse
) -> None:
    """The answer is that of a lone run bit for bit, and of PyTorch within 1e-4."""
    recipe = repository.recipes[model]
    ids = [recipe.characters.index(character) for character in prompt]
    lone = LoneSequence(LoneRun(repository.path / model / "1"), response.outcome.seed, None)
    for token in ids:
        lone.tell(token)
    drawn = [lone.draw(how) for _ in range(len(response.token_ids))]
    logprobs = [item.logprob for item in response.logprobs]
    assert list(response.token_ids) == [token for token, _ in drawn]
    assert logprobs == [logprob for _, logprob in drawn]
    text = "".join(recipe.characters[token] for token, _ in drawn)
    assert response.text == (text if recipe.end_token is None else text.rstrip("\n"))
    ids += response.token_ids
    with torch.no_grad():
        rows = repository.models[model](torch.tensor([ids]))[0, len(prompt) - 1 : -1]
    chosen = rows[torch.arange(len(drawn)), torch.tensor(ids[len(prompt) :])].numpy()
    assert np.abs(np.array(logprobs) - chosen).max() <= 1e-4


@pytest.mark.parametrize("model", ["lstm", "gru", "rnn"])
def test_a_hit_a_part_of_one_and_a_miss_answer_alike(
    stubs: Stubs, repository: Repository, model: str
) -> None:
    head = prompt_of(repository, model, 700, 1)
    tails = [prompt_of(repository, model, 200, seed) for seed in (2, 3)]
    for seed, (prompt, saved) in enumerate(
        [
            (head + tails[0], 0),
            (head + tails[0], 768),
            (head + tails[1], 512),
            (head + tails[1], 768),
            (head, 512),
            (head[:600] + tails[1], 512),
            (tails[1] + head, 0),
        ]
    ):
        how = SAMPLINGS[seed % len(SAMPLINGS)]
        response = complete(
            stubs, model=model, prompt=prompt, max_tokens=DRAWN, seed=seed, logprobs=0,
            temperature=how.temperature, top_k=how.top_k,
        )  # fmt: skip
        usage = response.outcome.usage
        assert usage.cached_tokens == saved
        assert usage.prompt_tokens == response.outcome.position - usage.completion_tokens
        assert usage.prompt_tokens == len(prompt)
        check(repository, model, prompt, how, response)


@pytest.mark.parametrize(
    ("length", "saved"),
    [(0, 0), (1, 0), (255, 0), (256, 0), (257, 256), (258, 256), (512, 256), (513, 512)],
)
def test_lengths_about_a_block(
    stubs: Stubs, repository: Repository, length: int, saved: int
) -> None:
    """A prompt's last token is always run: what follows depends on it."""
    prompt = prompt_of(repository, "lstm", length, 100 + length)
    again = [
        complete(stubs, model="lstm", prompt=prompt, max_tokens=DRAWN, seed=5, logprobs=0)
        for _ in range(2)
    ]
    assert [cached(each) for each in again] == [0, saved]
    assert again[0].token_ids == again[1].token_ids
    assert str(again[0].logprobs) == str(again[1].logprobs)
    if length:
        check(repository, "lstm", prompt, Draw(), again[1])


def test_prompts_told_at_the_same_time_are_remembered_each_for_itself(
    stubs: Stubs, repository: Repository
) -> None:
    prompts = [prompt_of(repository, "gru", 600 + 50 * seed, 110 + seed) for seed in range(6)]
    for saved in ([0] * 6, [512, 512, 512, 512, 768, 768]):
        calls = [
            stubs.completions.Complete.future(
                CompleteRequest(model="gru", prompt=prompt, max_tokens=DRAWN, logprobs=0),
                timeout=SECONDS,
            )
            for prompt in prompts
        ]
        answers = [call.result() for call in calls]
        assert list(map(cached, answers)) == saved
    for prompt, answer in zip(prompts, answers, strict=True):
        check(repository, "gru", prompt, Draw(), answer)


def test_a_system_prompt_of_10000_characters_is_run_once(
    server: RunningServer, stubs: Stubs, repository: Repository
) -> None:
    metrics = Metrics(server.metrics_url)
    system, runs, saved = prompt_of(repository, "gru", 10_000, 7), [], []
    for question in range(4):
        before = metrics.value("unrolled_batch_rows_count", model="gru/1")
        prompt = system + prompt_of(repository, "gru", 100, 10 + question)
        saved.append(cached(complete(stubs, model="gru", prompt=prompt, max_tokens=1)))
        runs.append(metrics.value("unrolled_batch_rows_count", model="gru/1") - before)
    # A run takes 64 steps at most; from 8192 on prompts are remembered each 256 tokens.
    assert runs[0] >= 10_000 / 64
    assert saved == [0, 9984, 9984, 9984]
    assert max(runs[1:]) <= 10_100 - 9984


def test_what_a_session_begins_with_is_shared_and_what_follows_is_not(
    stubs: Stubs, repository: Repository
) -> None:
    head, more = (prompt_of(repository, "lstm", 600, seed) for seed in (20, 21))
    for begun in (False, True):
        session = stubs.create("lstm", seed=3)
        told = complete(stubs, session=session, prompt=head, max_tokens=0)
        assert cached(told) == (512 if begun else 0)
        assert told.outcome.position == 600
        # A past of one's own is no prefix of anybody else's.
        response = complete(stubs, session=session, prompt=more, max_tokens=DRAWN, logprobs=0)
        assert cached(response) == 0
        check(repository, "lstm", head + more, Draw(), response)
    # Nor did it become one.
    assert cached(complete(stubs, model="lstm", prompt=more, max_tokens=0)) == 0


def test_a_turn_that_only_tells_ends_where_a_prefix_ends(
    stubs: Stubs, repository: Repository
) -> None:
    """Nothing is left to run: the session gets the state as it was remembered."""
    head = prompt_of(repository, "lstm", 257, 30)
    answers = []
    for _ in range(2):
        session = stubs.create("lstm", seed=8)
        told = complete(stubs, session=session, prompt=head, max_tokens=0)
        assert told.outcome.position == 257
        answers.append(complete(stubs, session=session, max_tokens=DRAWN, logprobs=0))
        check(repository, "lstm", head, Draw(), answers[-1])
    assert answers[0].text == answers[1].text


def test_a_conversation_begins_with_what_is_known(stubs: Stubs, repository: Repository) -> None:
    head = prompt_of(repository, "gru", 600, 40)
    commands = [
        ConverseRequest(open=ConverseRequest.Open(model="gru", seed=2)),
        ConverseRequest(feed=ConverseRequest.Feed(text=head)),
        ConverseRequest(complete=CompleteRequest(max_tokens=DRAWN, logprobs=0)),
    ]

    saved, texts = [], []
    for _ in range(2):
        events = list(stubs.completions.Converse(iter(commands), timeout=SECONDS))
        outcomes = [event.outcome for event in events if event.HasField("outcome")]
        saved.append([outcome.usage.cached_tokens for outcome in outcomes])
        texts.append("".join(event.delta.text for event in events))
    assert saved == [[0, 0], [512, 0]]
    assert texts[0] == texts[1]
    assert len(texts[0]) == DRAWN


def test_scores_are_of_every_token_whatever_is_known(stubs: Stubs, repository: Repository) -> None:
    text = prompt_of(repository, "gru", 600, 50)
    scores = []
    for known in (False, True):
        request = ScoreRequest(model="gru", text=text, logprobs=0)
        score = stubs.completions.Score(request, timeout=SECONDS)
        assert len(score.tokens) == len(text)
        scores.append(str(score))
        # A score leaves nothing behind.
        response = complete(stubs, model="gru", prompt=text, max_tokens=1)
        assert cached(response) == (512 if known else 0)
    assert scores[0] == scores[1]


def test_a_recorded_answer_says_what_its_turn_was_saved(
    stubs: Stubs, repository: Repository
) -> None:
    head = prompt_of(repository, "lstm", 600, 60)
    complete(stubs, model="lstm", prompt=head, max_tokens=0)
    session = stubs.create("lstm", seed=8)
    request = CompleteRequest(session=session, prompt=head, max_tokens=5, request_id="once")
    first, again = (stubs.completions.Complete(request, timeout=SECONDS) for _ in range(2))
    assert again.outcome.replayed
    assert again.outcome.usage == first.outcome.usage
    assert cached(again) == 512


def test_a_turn_that_was_cancelled_leaves_what_it_has_run(
    server: RunningServer, stubs: Stubs, repository: Repository
) -> None:
    metrics = Metrics(server.metrics_url)
    head = prompt_of(repository, "rnn", 1_000_000, 70)
    entries = metrics.value("unrolled_prefix_cache_entries")
    call = stubs.completions.Complete.future(
        CompleteRequest(model="rnn", prompt=head, max_tokens=0), timeout=SECONDS
    )
    while metrics.value("unrolled_prefix_cache_entries") < entries + 4:
        assert not call.done()
    call.cancel()
    assert cached(complete(stubs, model="rnn", prompt=head[:1025], max_tokens=0)) == 1024


def test_the_metrics_say_what_was_saved_and_what_is_held(repository: Repository) -> None:
    heads = [prompt_of(repository, "lstm", 300, seed) for seed in range(20)]
    # Two layers' hidden and cell states of 48 in float32, and what it takes to keep them.
    state, limit = 4 * 4 * 48, 10_000
    with running_server(repository.path, "--prefix-cache-bytes", str(limit)) as server:
        value = Metrics(server.metrics_url).value
        with connected(server.address) as stubs:
            saved = [
                cached(complete(stubs, model="lstm", prompt=head, max_tokens=3))
                for head in (*heads, *heads[::-1])
            ]
            complete(stubs, model="rnn", prompt="abc", max_tokens=3)
        # The newest have stayed, and are found again first.
        held = saved.count(256)
        assert saved == [0] * 20 + [256] * held + [0] * (20 - held)
        assert held == value("unrolled_prefix_cache_entries")
        assert value("unrolled_prefix_cache_limit_bytes") == limit
        assert limit // (state + 512) <= held <= limit // state
        assert held * state < value("unrolled_prefix_cache_bytes") <= limit
        assert value("unrolled_prefix_cache_evictions_total") == 40 - 2 * held
        assert value("unrolled_prefix_cache_hit_tokens_total", model="lstm/1") == 256 * held
        for model, told in (("lstm/1", 40 * 300), ("rnn/1", 3)):
            assert value("unrolled_prefix_cache_query_tokens_total", model=model) == told
            assert value("unrolled_prompt_tokens_total", model=model) == told


def test_without_room_everything_is_run(repository: Repository) -> None:
    head = prompt_of(repository, "lstm", 1000, 80)
    with running_server(repository.path, "--prefix-cache-bytes", "0") as server:
        with connected(server.address) as stubs:
            for _ in range(2):
                response = complete(stubs, model="lstm", prompt=head, max_tokens=3, logprobs=0)
                assert cached(response) == 0
                check(repository, "lstm", head, Draw(), response)
        assert Metrics(server.metrics_url).value("unrolled_prefix_cache_entries") == 0


def test_tenants_share_nothing(repository: Repository, tmp_path: Path) -> None:
    head, keys = prompt_of(repository, "gru", 600, 90), tmp_path / "keys"
    keys.write_text(
        "".join(
            f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("alice", "bob")
        )
    )
    with running_server(repository.path, "--api-key-file", str(keys)) as server:
        saved = []
        for name in ("alice", "alice", "bob", "bob"):
            with unrolled.Client(server.address, api_key=name) as client:
                completion = client.complete(head, model="gru", max_tokens=3)
            saved.append(completion.outcome.usage.cached_tokens)
    assert saved == [0, 512, 0, 512]

"""The metrics endpoint: every number is what was done, and a real Prometheus takes it."""

from __future__ import annotations

import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from support.calls import LONG, SECONDS, Stubs, connected, refused, unread_turn
from support.metrics import Metrics, eventually
from support.models import Repository
from support.programs import promtool
from support.prometheus import running_prometheus
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import (
    CompleteRequest,
    ConverseRequest,
    ConverseResponse,
    ScoreRequest,
)
from unrolled.v1.model_pb2 import GetModelRequest
from unrolled.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
)

COMPLETION, SESSION, MODEL = (
    f"unrolled.v1.{name}Service" for name in ("Completion", "Session", "Model")
)

CALLS = {
    (f"{COMPLETION}/Complete", "OK"): 3,
    (f"{COMPLETION}/Complete", "NOT_FOUND"): 1,
    (f"{COMPLETION}/Complete", "INVALID_ARGUMENT"): 2,
    (f"{COMPLETION}/StreamComplete", "OK"): 1,
    (f"{COMPLETION}/StreamComplete", "FAILED_PRECONDITION"): 1,
    (f"{COMPLETION}/Converse", "OK"): 1,
    (f"{COMPLETION}/Score", "OK"): 1,
    (f"{SESSION}/CreateSession", "OK"): 4,
    (f"{SESSION}/ForkSession", "OK"): 1,
    (f"{SESSION}/DeleteSession", "OK"): 1,
    (f"{SESSION}/GetSession", "NOT_FOUND"): 1,
    (f"{MODEL}/GetModel", "OK"): 1,
    ("other", "UNIMPLEMENTED"): 1,
}
"""What `use` calls, by method and code."""


@dataclass(frozen=True)
class Used:
    """A server that has done what `use` asked of it and nothing else."""

    server: RunningServer
    metrics: Metrics
    drawn: dict[str, int]
    """Tokens that the caller was handed, by model."""
    state_bytes: int
    """Of one session of "lstm"."""


def use(stubs: Stubs) -> dict[str, int]:
    """Make CALLS, apart from those of models and unknown services; returns the drawn tokens."""
    complete, score = stubs.completions.Complete, stubs.completions.Score
    # lstm: tells 5 + 0 + 3, scores 7 + 4.
    first = complete(CompleteRequest(model="lstm", prompt="Hello", max_tokens=37), timeout=SECONDS)
    session = stubs.create("lstm")
    stream = stubs.completions.StreamComplete(
        CompleteRequest(session=session, max_tokens=50), timeout=SECONDS
    )
    streamed = sum(len(event.delta.token_ids) for event in stream)
    said = converse(stubs, told="abc", scored="defg", count=9)
    score(ScoreRequest(model="lstm", text="Goodbye"), timeout=SECONDS)
    # rnn: tells 4 + 2; an end token ends the text inside a run, the rest of which counts nowhere.
    ended = complete(
        CompleteRequest(model="rnn", prompt="abca", max_tokens=200, seed=4), timeout=SECONDS
    )
    complete(CompleteRequest(model="rnn", prompt="ab", max_tokens=0), timeout=SECONDS)
    # Refused: neither tells nor draws.
    refused(complete, CompleteRequest(model="nobody", prompt="a"))
    refused(complete, CompleteRequest(model="lstm", prompt="a", max_tokens=-1))
    refused(complete, CompleteRequest(model="lstm", prompt="\u00e9"))
    moved = CompleteRequest(session=session, prompt="a", expected_position=7)
    refused(stubs.completions.StreamComplete, moved)
    use_sessions(stubs, session)
    return {
        "gru/1": 0,
        "lstm/1": len(first.token_ids) + streamed + said,
        "rnn/1": len(ended.token_ids),
    }


def converse(stubs: Stubs, told: str, scored: str, count: int) -> int:
    """Hold a conversation in a new session; returns the drawn tokens."""
    commands = [
        ConverseRequest(open=ConverseRequest.Open(model="lstm")),
        ConverseRequest(feed=ConverseRequest.Feed(text=told)),
        ConverseRequest(score=ConverseRequest.Feed(text=scored)),
        ConverseRequest(complete=CompleteRequest(max_tokens=count)),
    ]
    call = stubs.completions.Converse(iter(commands), timeout=SECONDS)
    return sum(len(event.delta.token_ids) for event in cast("Iterator[ConverseResponse]", call))


def use_sessions(stubs: Stubs, session: str) -> None:
    """Fork one, delete one, let one expire; a gru session stays."""
    services = stubs.sessions
    services.ForkSession(ForkSessionRequest(name=session), timeout=SECONDS)
    gone = stubs.create("lstm")
    services.DeleteSession(DeleteSessionRequest(name=gone), timeout=SECONDS)
    refused(services.GetSession, GetSessionRequest(name=gone))
    ttl = Duration()
    ttl.FromTimedelta(timedelta(milliseconds=1))
    services.CreateSession(CreateSessionRequest(model="gru", idle_ttl=ttl), timeout=SECONDS)
    stubs.create("gru")


@pytest.fixture(scope="module")
def used(repository: Repository) -> Iterator[Used]:
    with running_server(repository.path) as server, connected(server.address) as stubs:
        drawn = use(stubs)
        model = stubs.models.GetModel(GetModelRequest(name="lstm"), timeout=SECONDS).model
        with grpc.insecure_channel(server.address) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/unrolled.v2.ElsewhereService/Do"
            )
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=SECONDS)
        metrics = Metrics(server.metrics_url)
        # An error's code is counted when it has been sent; the expiry is looked for now and then.
        metrics.wait_for("unrolled_rpc_handled_total", sum(CALLS.values()))
        metrics.wait_for("unrolled_sessions_ended_total", 1, reason="expired")
        yield Used(server, metrics, drawn, model.state_bytes)


def test_tokens_are_counted_by_what_became_of_them(used: Used) -> None:
    value = used.metrics.value
    assert used.drawn["lstm/1"] == 37 + 50 + 9
    assert 1 <= used.drawn["rnn/1"] < 200
    for model, drawn in used.drawn.items():
        assert value("unrolled_generated_tokens_total", model=model) == drawn
    for model, told, scored in (("gru/1", 0, 0), ("lstm/1", 5 + 3, 7 + 4), ("rnn/1", 4 + 2, 0)):
        assert value("unrolled_prompt_tokens_total", model=model) == told
        assert value("unrolled_scored_tokens_total", model=model) == scored
    assert value("unrolled_engine_failures_total") == 0


def test_calls_are_counted_by_method_and_code(used: Used) -> None:
    value = used.metrics.value
    for (method, code), count in CALLS.items():
        assert value("unrolled_rpc_handled_total", method=method, code=code) == count
    for method in {method for method, _ in CALLS}:
        count = sum(number for (name, _), number in CALLS.items() if name == method)
        assert value("unrolled_rpc_started_total", method=method) == count
        if method != "other":
            assert value("unrolled_rpc_duration_seconds_count", method=method) == count
    # Nothing else was.
    assert value("unrolled_rpc_handled_total") == sum(CALLS.values())
    assert value("unrolled_rpc_started_total") == sum(CALLS.values())


def test_sessions_are_counted_while_they_live_and_when_they_end(used: Used) -> None:
    value = used.metrics.value
    # Of those made, forked and opened; one was deleted, and of gru one expired.
    assert value("unrolled_sessions", model="lstm/1") == 3
    assert value("unrolled_sessions", model="gru/1") == 1
    assert value("unrolled_sessions", model="rnn/1") == 0
    assert value("unrolled_sessions_ended_total", reason="deleted") == 1
    assert value("unrolled_sessions_ended_total", reason="expired") == 1
    assert value("unrolled_session_state_bytes", model="lstm/1") == 3 * used.state_bytes > 0
    # What no turn has been in is at the zero state, which is kept nowhere.
    assert value("unrolled_session_state_bytes", model="gru/1") == 0
    assert value("unrolled_sessions_limit") == 100_000


def test_latencies_have_an_observation_for_every_token(used: Used) -> None:
    value = used.metrics.value
    for model, turns in (("gru/1", 0), ("lstm/1", 3), ("rnn/1", 1)):
        assert value("unrolled_time_to_first_token_seconds_count", model=model) == turns
        # A turn's first message may hold more tokens than one.
        after = value("unrolled_inter_token_latency_seconds_count", model=model)
        assert 0 <= after <= used.drawn[model] - turns
    assert value("unrolled_inter_token_latency_seconds_count", model="lstm/1") > 0
    # One turn after the other.
    runs = value("unrolled_batch_rows_count", model="lstm/1")
    assert value("unrolled_batch_rows_sum", model="lstm/1") == runs > 0
    for part in ("run", "host"):
        assert value("unrolled_step_duration_seconds_count", model="lstm/1", part=part) == runs


def test_no_row_is_left_when_all_turns_are_over(used: Used) -> None:
    for gauge in ("active", "waiting", "parked"):
        assert used.metrics.value(f"unrolled_rows_{gauge}") == 0


def test_rows_are_counted_where_they_are(repository: Repository) -> None:
    with running_server(repository.path, "--max-rows", "1") as server:
        metrics = Metrics(server.metrics_url)
        with connected(server.address) as stubs:
            # Told for as long as the test takes.
            prompt = CompleteRequest(model="lstm", prompt="a" * 1_000_000, max_tokens=0)
            calls = [stubs.completions.Complete.future(prompt, timeout=SECONDS) for _ in range(3)]
            metrics.wait_for("unrolled_rows_waiting", 2, model="lstm/1")
            assert metrics.value("unrolled_rows_active", model="lstm/1") == 1
            assert metrics.value("unrolled_rows_active") == 1
            for call in calls:
                call.cancel()
        request = CompleteRequest(model="gru", prompt="a", max_tokens=LONG)
        with unread_turn(server.address, request):
            metrics.wait_for("unrolled_rows_parked", 1, model="gru/1")
            assert metrics.value("unrolled_rows_active", model="gru/1") == 0
        for gauge in ("active", "waiting", "parked"):
            metrics.wait_for(f"unrolled_rows_{gauge}", 0)


def test_promtool_finds_nothing_to_criticise(used: Used) -> None:
    result = subprocess.run(
        [promtool(), "check", "metrics"],
        input=used.metrics.text(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_a_real_prometheus_scrapes_the_server(used: Used, tmp_path: Path) -> None:
    target = urllib.parse.urlsplit(used.server.metrics_url)
    assert target.path == "/metrics"
    with running_prometheus(tmp_path, target.netloc) as scraper:
        eventually(lambda: scraper.query("up") == [1], "up == 1")
        eventually(lambda: scraper.health(used.server.metrics_url) == "up", "the target is up")
        for model, drawn in used.drawn.items():
            scraper.wait_for(f'unrolled_generated_tokens_total{{model="{model}"}}', drawn)
        labels = f'method="{COMPLETION}/Complete",code="INVALID_ARGUMENT"'
        scraper.wait_for(f"unrolled_rpc_handled_total{{{labels}}}", 2)
        scraper.wait_for("sum(unrolled_rpc_started_total)", sum(CALLS.values()))
        # The buckets are a histogram to it.
        buckets = 'unrolled_inter_token_latency_seconds_bucket{model="lstm/1"}'
        scraper.wait_for(f"histogram_quantile(0.5, {buckets}) > bool 0", 1)

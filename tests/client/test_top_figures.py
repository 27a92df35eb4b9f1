"""Figures from two pages of metrics, against what was observed and against Prometheus."""

from __future__ import annotations

import json
import math
import random
import socket
import subprocess
from pathlib import Path

import pytest
from client.metrics_page import BOUNDS, Answers, Server, answering
from support.programs import promtool
from unrolled.top.figures import Figures, figures, quantile
from unrolled.top.scrape import Samples, Scrape, Unreachable, difference, fetch, parse
from unrolled.top.watch import HISTORY, Watch


def page(text: str) -> Samples:
    return parse(text + "\n")


def between(before: str, after: str, seconds: float, now: float | None = None) -> Figures:
    return figures(Scrape(100.0, parse(before)), Scrape(100.0 + seconds, parse(after)), now)


def test_counters_rise_by_what_came_between() -> None:
    rise = difference(page('a_total{x="1"} 5\nb_total 2.5'), page('a_total{x="1"} 12\nb_total 2.5'))
    assert rise.total("a_total") == 7
    assert rise.total("b_total") == 0
    assert rise.total("c_total") == 0


def test_a_counter_that_fell_began_again_at_0() -> None:
    before, after = 'a_total{x="1"} 100\na_total{x="2"} 3', 'a_total{x="1"} 4\na_total{x="2"} 9'
    rise = difference(page(before), page(after))
    assert rise.by("x", "a_total") == {"1": 4, "2": 6}


def test_a_series_that_is_new_began_at_0_and_one_that_is_gone_is_gone() -> None:
    rise = difference(page('a_total{x="old"} 8'), page('a_total{x="new"} 3'))
    assert rise.by("x", "a_total") == {"new": 3}


def test_after_a_restart_everything_counts_from_0_even_what_is_larger() -> None:
    before = "process_start_time_seconds 1000\na_total 5"
    assert (
        difference(page(before), page("process_start_time_seconds 2000\na_total 7")).total(
            "a_total"
        )
        == 7
    )


def observed(server: Server) -> None:
    """Two seconds of work."""
    server.drawn.labels(server.model).inc(300)
    server.told.labels(server.model).inc(40)
    server.scored.labels(server.model).inc(10)
    server.cpu.inc(3)
    server.memory.set(2**20)
    server.sessions_limit.set(50)
    server.active_limit.set(256)
    server.sessions.labels(server.model, "memory").set(20)
    server.sessions.labels(server.model, "store").set(5)
    server.state_bytes.labels(server.model).set(2048)
    server.active.labels(server.model).set(6)
    server.waiting.labels(server.model).set(2)
    server.parked.labels(server.model).set(1)
    server.handled.labels("a/B", "OK").inc(18)
    server.handled.labels("a/B", "NOT_FOUND").inc(1)
    server.handled.labels("a/C", "NOT_FOUND").inc(3)
    for rows in (2, 4, 12):
        server.batch.labels(server.model).observe(rows)
    server.steps.labels(server.model, "run").observe(1.5)
    server.steps.labels(server.model, "host").observe(0.25)


def test_rates_shares_and_what_stands() -> None:
    server = Server()
    # What was before is not of this time.
    for _ in range(3):
        observed(server)
    before = server.page()
    observed(server)
    now = between(before, server.page(), 2.0, now=1_700_000_090.0)

    assert (now.version, now.uptime, now.cores, now.memory_bytes) == ("7.8.9", 90, 1.5, 2**20)
    assert (now.sessions, now.sessions_limit, now.active_limit) == (25, 50, 256)
    assert (now.calls, now.failures) == (11, {"NOT_FOUND": 2})
    (model,) = now.models
    assert model == now.model("tiny/1")
    assert (model.name, model.status, model.cell) == ("tiny/1", "ready", "lstm")
    assert (model.precision, model.device) == ("fp32", "cpu")
    assert (model.active, model.waiting, model.parked) == (6, 2, 1)
    assert (model.sessions, model.state_bytes) == ({"memory": 20, "store": 5}, 2048)
    assert (model.drawn, model.told, model.scored) == (150, 20, 5)
    assert model.rows_a_run == 6
    assert model.steps == {"run": 0.75, "host": 0.125}


def test_models_keep_apart_and_in_order() -> None:
    server = Server(model="b/1")
    server.add_model("a/2", "failed")
    before = server.page()
    server.drawn.labels("b/1").inc(10)
    now = between(before, server.page(), 1.0)
    assert [(model.name, model.status, model.drawn) for model in now.models] == [
        ("a/2", "failed", 0),
        ("b/1", "ready", 10),
    ]
    assert now.model("c/1") is None


def test_without_work_there_are_no_quantiles_and_no_failures() -> None:
    server = Server()
    observed(server)
    server.first_token.labels(server.model).observe(0.01)
    now = between(server.page(), server.page(), 1.0)
    (model,) = now.models
    assert (model.first_token.p50, model.first_token.p99, model.rows_a_run) == (None, None, None)
    assert (now.failures, now.uptime) == ({}, None)


def test_quantiles_are_of_what_came_between_and_in_the_right_bucket() -> None:
    server = Server()
    server.inter_token.labels(server.model).observe(0.9)
    before = server.page()
    draws = random.Random(5)
    values = sorted(draws.lognormvariate(-7.5, 1.2) for _ in range(2000))
    for value in values:
        server.inter_token.labels(server.model).observe(value)
    (model,) = between(before, server.page(), 1.0).models
    for share, got in ((0.5, model.inter_token.p50), (0.99, model.inter_token.p99)):
        true = values[math.ceil(share * len(values)) - 1]
        above = next(bound for bound in BOUNDS if bound >= true)
        below = max((bound for bound in BOUNDS if bound < true), default=0.0)
        assert got is not None
        assert below <= got <= above
    assert (model.first_token.p50, model.first_token.p99) == (None, None)


HISTOGRAMS = [
    [4, 0, 0, 0],
    [0, 7, 0, 0],
    [0, 0, 0, 9],
    [1, 2, 3, 4],
    [100, 1, 0, 0],
    [0, 50, 0, 50],
    [3, 0, 0, 1],
]


def test_quantiles_are_those_of_prometheus(tmp_path: Path) -> None:
    bounds = ("0.1", "0.5", "2", "+Inf")
    series, cases = [], []
    for number, counts in enumerate(HISTOGRAMS):
        cumulative = [sum(counts[: place + 1]) for place in range(len(counts))]
        for bound, count in zip(bounds, cumulative, strict=True):
            series.append({"series": f'h_bucket{{n="{number}",le="{bound}"}}', "values": count})
        pairs = list(zip(map(float, bounds), map(float, cumulative), strict=True))
        for share in (0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
            expression = f'histogram_quantile({share}, h_bucket{{n="{number}"}})'
            sample = {"labels": f'{{n="{number}"}}', "value": quantile(share, pairs)}
            cases.append({"expr": expression, "eval_time": "0", "exp_samples": [sample]})
    tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": cases}]}
    file = tmp_path / "quantiles.json"
    file.write_text(json.dumps(tests))
    done = subprocess.run(
        [promtool(), "test", "rules", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_observations_have_no_quantile() -> None:
    assert quantile(0.5, []) is None
    assert quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]) is None


def failure(url: str, timeout: float = 10.0) -> str:
    with pytest.raises(Unreachable) as caught:
        fetch(url, timeout)
    message = str(caught.value)
    assert message.startswith(url)
    assert "\n" not in message
    return message


def test_a_page_is_fetched() -> None:
    server = Server()
    server.drawn.labels("tiny/1").inc(3)
    with answering() as answers:
        answers.body = server.page().encode()
        scrape = fetch(answers.url, 10.0, clock=lambda: 17.0)
    assert scrape.at == 17.0
    assert scrape.samples.total("unrolled_generated_tokens_total") == 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", "answers 404 Not Found"),
        (500, b"a 1\n", "answers 500"),
        (200, b"<!DOCTYPE html>\n<html><body>hello</body></html>\n", "no metrics"),
        (200, b"\xff\xfe", "no metrics"),
        (200, b"", "not those of an unrolled server"),
        (200, b"up 1\n", "not those of an unrolled server"),
    ],
)
def test_what_is_no_page_of_metrics_is_named(status: int, body: bytes, said: str) -> None:
    with answering() as answers:
        answers.status, answers.body = status, body
        assert said in failure(answers.url)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/metrics"
    assert "Connection refused" in failure(url)
    assert failure("http://no-such-host.invalid/metrics")


def test_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"
        assert "no answer in time" in failure(url, 0.05)


def test_one_who_hangs_up() -> None:
    with answering() as answers:
        hang_up(answers)
        assert failure(answers.url)


def hang_up(answers: Answers) -> None:
    """Make the next answer one that is not HTTP."""
    answers.status = "gibberish"  # type: ignore[assignment]


class Served:
    """An endpoint without a network: a server, a clock, or nobody."""

    def __init__(self) -> None:
        self.server: Server | None = Server()
        self.now = 0.0

    def __call__(self) -> Scrape:
        self.now += 1.0
        if self.server is None:
            raise Unreachable("nobody there")
        return Scrape(self.now, parse(self.server.page()))

    def draw(self, tokens: int) -> None:
        assert self.server is not None
        self.server.drawn.labels("tiny/1").inc(tokens)


def drawn(watch: Watch) -> list[float]:
    """Rates of the one model after another look, oldest first."""
    return [each.models[0].drawn for each in watch.look().history]


def test_the_first_look_knows_nothing_yet() -> None:
    watch = Watch(Served())
    assert watch.look().history == ()
    assert drawn(watch) == [0]


def test_an_outage_is_said_and_bridged() -> None:
    served = Served()
    watch = Watch(served)
    watch.look()
    served.draw(6)
    assert drawn(watch) == [6]
    up, served.server = served.server, None
    seen = watch.look()
    assert seen.problem == "nobody there"
    assert len(seen.history) == 1
    served.server = up
    served.draw(8)
    # Over both seconds since the last page.
    assert drawn(watch) == [6, 4]
    assert watch.look().problem is None


def test_a_restarted_server_counts_anew() -> None:
    served = Served()
    watch = Watch(served)
    served.draw(1000)
    watch.look()
    served.server = Server(started=1_700_000_500.0)
    served.draw(7)
    assert drawn(watch) == [7]


def test_the_history_has_an_end() -> None:
    served = Served()
    watch = Watch(served)
    for tokens in range(HISTORY + 10):
        served.draw(tokens)
        watch.look()
    served.draw(1)
    assert drawn(watch) == [*range(11, HISTORY + 10), 1]

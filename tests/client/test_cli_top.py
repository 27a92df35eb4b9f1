"""unrolled top, as a process."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from client.command import environment, run, started, terminal
from client.metrics_page import Server, answering
from support.calls import SECONDS, connected
from support.metrics import Metrics
from support.models import Repository
from support.server import RunningServer, running_server
from unrolled.v1.completion_pb2 import CompleteRequest

INTERVAL = ("--interval", "20ms")


@pytest.fixture
def nobody() -> str:
    """A URL where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}/metrics"


def test_a_real_server(server: RunningServer) -> None:
    done = run("top", "--once", *INTERVAL, "--metrics", server.metrics_url)
    assert (done.stderr, done.returncode) == ("", 0)
    assert f"{server.metrics_url}  up " in done.stdout
    for model in ("gru/1", "lstm/1", "rnn/1"):
        assert any(line.startswith(f"{model} ") for line in done.stdout.splitlines())


def test_its_figures_are_what_was_done(repository: Repository) -> None:
    with (
        running_server(repository.path, "--max-sessions", "7") as server,
        started("top", "--json", *INTERVAL, "--metrics", server.metrics_url) as command,
        connected(server.address) as stubs,
    ):
        assert command.stdout is not None
        first = json.loads(command.stdout.readline())
        stubs.create("gru")
        request = CompleteRequest(model="lstm", prompt="Hello", max_tokens=37)
        stubs.completions.Complete(request, timeout=SECONDS)
        Metrics(server.metrics_url).wait_for("unrolled_generated_tokens_total", 37)
        # Rates times their seconds add up to what was done, however the looks fell.
        sums = {"drawn": 0.0, "told": 0.0}
        while round(sums["drawn"]) < 37 or round(sums["told"]) < 5:
            now = json.loads(command.stdout.readline())
            (lstm,) = [model for model in now["models"] if model["name"] == "lstm/1"]
            for name in sums:
                sums[name] += lstm[name] * now["seconds"]
        assert {name: round(value, 6) for name, value in sums.items()} == {"drawn": 37, "told": 5}
    assert (first["sessions"], first["sessions_limit"], first["active_limit"]) == (0, 7, 256)
    assert (now["sessions"], now["uptime"] > 0) == (1, True)


def test_figures_of_a_store(repository: Repository, tmp_path: Path) -> None:
    flags = ("--store", f"sqlite:{tmp_path / 'sessions.db'}", "--max-sessions", "2")
    with (
        running_server(repository.path, *flags) as server,
        started("top", "--json", *INTERVAL, "--metrics", server.metrics_url) as command,
        connected(server.address) as stubs,
    ):
        assert command.stdout is not None
        command.stdout.readline()
        for session in [stubs.create("lstm") for _ in range(5)]:
            turn = CompleteRequest(session=session, prompt="a", max_tokens=3, request_id="once")
            for _ in range(2):
                stubs.completions.Complete(turn, timeout=SECONDS)
        Metrics(server.metrics_url).wait_for("unrolled_replays_total", 5)
        sums = {"commits": 0.0, "evicted": 0.0, "replays": 0.0}
        while round(sums["replays"]) < 5:
            now = json.loads(command.stdout.readline())
            sums["replays"] += now["replays"] * now["seconds"]
            for name in ("commits", "evicted"):
                sums[name] += now["store"][name] * now["seconds"]
        # Every turn found its session out of memory.
        wanted = {"commits": 5, "evicted": 5 - 2 + 5, "replays": 5}
        assert {name: round(value, 6) for name, value in sums.items()} == wanted
        assert (now["sessions"], now["sessions_in_memory"]) == (5, 2)
        assert now["models"][1]["sessions"] == {"memory": 2, "store": 3}
        assert now["store"]["size_bytes"] > 0 < now["store"]["free_bytes"]
        once = run("top", "--once", *INTERVAL, "--metrics", server.metrics_url)
        assert "sessions 5, in memory 2" in once.stdout
        assert "2 memory, 3 store" in once.stdout


def test_a_live_view_outlives_its_server() -> None:
    with answering() as answers:
        answers.body = Server().page().encode()
        with terminal("top", *INTERVAL, "--metrics", answers.url, TERM="xterm") as screen:
            screen.expect("unrolled 7.8.9")
            answers.status = 503
            screen.expect("503 Service Unavailable; trying again")
            answers.body = Server(started=1_800_000_000.0, model="later/1").page().encode()
            answers.status = 200
            screen.expect("later/1 ")
            screen.type("\x03")
            screen.rest()
            assert screen.status() == 0


def test_into_a_pipe_pictures_follow_each_other(nobody: str) -> None:
    with started("top", *INTERVAL, "--metrics", nobody) as command:
        assert command.stdout is not None
        lines = [command.stdout.readline().decode() for _ in range(3)]
    assert all(line.startswith(f"{nobody}: Connection refused") for line in lines)


def test_once_without_a_server_is_1(nobody: str) -> None:
    for words in ([], ["--json"]):
        done = run("top", "--once", *words, "--metrics", nobody)
        assert (done.stdout, done.returncode) == ("", 1)
        assert done.stderr == f"unrolled: {nobody}: Connection refused\n"


def test_host_and_port_will_do_and_so_will_the_environment(server: RunningServer) -> None:
    address = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    for arguments, variables in (
        (("--metrics", address), {}),
        (("--metrics", f"http://{address}/"), {}),
        ((), {"UNROLLED_METRICS": address}),
    ):
        done = run("top", "--once", *INTERVAL, *arguments, env=environment(**variables))
        assert done.returncode == 0
        assert server.metrics_url in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ["--metrics", "ftp://host/metrics"],
        ["--metrics", "file:///etc/passwd"],
        ["--metrics", "http://"],
        ["--metrics", "host:port"],
        ["--interval", "0s"],
        ["stray"],
    ],
)
def test_wrong_usage_is_2(wrong: list[str]) -> None:
    done = run("top", "--once", *wrong)
    assert (done.stdout, done.returncode) == ("", 2)

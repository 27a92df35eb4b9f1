"""unrolled models."""

from __future__ import annotations

import json

from client.command import run
from client.fake_service import FakeService, model
from support.server import RunningServer
from unrolled.v1.model_pb2 import CELL_GRU, GetModelRequest, Model, Vocabulary

PROJECTED = Model(
    name="wide",
    version=12,
    cell=CELL_GRU,
    layers=[Model.Layer(hidden_size=512, projection_size=128), Model.Layer(hidden_size=256)],
    vocabulary=Vocabulary(kind=Vocabulary.KIND_WORD, size=33_278),
    status=Model.STATUS_READY,
)
FAILED = Model(
    name="broken", version=1, status=Model.STATUS_FAILED, status_detail="no\x1b[2J\ngraph"
)


def test_a_table(fake: FakeService) -> None:
    fake.models = [model(), PROJECTED, FAILED]
    done = run("--server", fake.target, "models")

    header, first, second, third, reason = done.stdout.splitlines()
    assert header.split() == [
        *("MODEL", "STATUS", "CELL", "LAYERS", "PARAMETERS", "VOCABULARY", "STATE")
    ]
    assert first.split() == [
        *("tiny/1", "ready", "lstm", "2", "x", "512", "3,412,345", "96", "characters"),
        *("8,192", "B"),
    ]
    assert second.split()[:6] == ["wide/12", "ready", "gru", "512>128", "+", "256"]
    assert "33,278 words" in second
    assert third.split()[:2] == ["broken/1", "failed"]
    assert reason == "broken/1 failed: no [2J graph"


def test_json_has_a_line_for_each(fake: FakeService) -> None:
    fake.models = [model(), PROJECTED]
    done = run("models", "--json", "--server", fake.target)

    names = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert names == ["tiny", "wide"]


def test_one_model_is_asked_for_by_name(fake: FakeService) -> None:
    fake.models = [PROJECTED]
    done = run("models", "wide/12", "--server", fake.target)

    assert [line.split()[0] for line in done.stdout.splitlines()] == ["MODEL", "wide/12"]
    assert fake.received == [GetModelRequest(name="wide/12")]


def test_a_model_is_shown_by_its_name(server: RunningServer) -> None:
    listed = run("models", "--json", "--server", server.address)
    named = run("models", "lstm", "--json", "--server", server.address)

    models = {model["name"]: model for model in map(json.loads, listed.stdout.splitlines())}
    assert set(models) == {"gru", "lstm", "rnn"}
    (model,) = [json.loads(line) for line in named.stdout.splitlines()]
    assert model == models["lstm"]
    assert len(model["vocabulary"]["tokens"]) == model["vocabulary"]["size"] > 0


def test_nothing_served_is_an_empty_table(fake: FakeService) -> None:
    fake.models = []
    done = run("--server", fake.target, "models")

    assert (len(done.stdout.splitlines()), done.returncode) == (1, 0)

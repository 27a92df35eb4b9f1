"""The dashboard: what its script writes, and data for every query from a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from support.calls import SECONDS, Stubs, connected, refused
from support.metrics import eventually
from support.models import Repository
from support.prometheus import Prometheus, running_prometheus
from support.server import running_server
from support.tls import local, trusting, written
from unrolled.v1.completion_pb2 import CompleteRequest, ScoreRequest
from unrolled.v1.session_pb2 import DeleteSessionRequest

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "unrolled.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
ALERTS = [
    pytest.param(rule["expr"], id=rule["alert"])
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
WINDOW = "30s"
MACHINE = {
    "UnrolledSlowCommits",
    "UnrolledSlowFirstToken",
    "UnrolledStoreDiskFilling",
    "UnrolledStoreDiskLow",
}


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(DEPLOY / "dashboard.py"))
    assert script["dashboard"]() == DASHBOARD, "run: python deploy/dashboard.py"


def test_it_asks_what_an_operator_asks() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Is it up?", "Is it fast?", "Is it full?", "Is it losing anything?"]


def test_panels_do_not_overlap_and_fit_side_by_side() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["legendFormat"] for target in panel["targets"])


def test_the_provisioned_data_source_is_the_one_that_compose_starts() -> None:
    (source,) = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    url = urllib.parse.urlsplit(source["url"])
    assert url.hostname in services
    assert str(url.port) in services[url.hostname]["ports"][0].split(":")[1:]


@dataclass(frozen=True)
class Scraped:
    """A Prometheus, and a time at which it knew enough."""

    prometheus: Prometheus
    at: float

    def query(self, expression: str) -> list[float]:
        return self.prometheus.query(expression, self.at)


def work(stubs: Stubs) -> None:
    """A little of everything that is drawn: turns, scores, sessions, repetitions, refusals."""
    complete = stubs.completions.Complete
    for model in ("lstm", "gru"):
        complete(CompleteRequest(model=model, prompt="a", max_tokens=30), timeout=SECONDS)
        stubs.completions.Score(ScoreRequest(model=model, text="Hello"), timeout=SECONDS)
    refused(complete, CompleteRequest(model="nobody"))
    session = stubs.create("lstm")
    turn = CompleteRequest(session=session, prompt="a", max_tokens=3, request_id="once")
    for _ in range(2):
        complete(turn, timeout=SECONDS)
    stubs.sessions.DeleteSession(DeleteSessionRequest(name=session), timeout=SECONDS)


@pytest.fixture(scope="module")
def models(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that cannot be loaded."""
    models = tmp_path_factory.mktemp("some") / "models"
    shutil.copytree(repository.path, models)
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "manifest.json").write_text("{}")
    return models


@contextmanager
def two_servers(models: Path, folder: Path) -> Iterator[dict[str, Stubs]]:
    """One without anything, one with a store and TLS; by HOST:PORT of their metrics."""
    ca = trustme.CA()
    tls = written(folder, "server", local(ca)).flags()
    # Memory for so few sessions that some leave it.
    store = ("--store", f"sqlite:{folder / 'sessions.db'}", "--max-sessions", "2")
    with (
        running_server(models) as plain,
        running_server(models, *store, *tls) as stored,
        connected(plain.address) as stubs,
        connected(stored.address, credentials=trusting(ca)) as stored_stubs,
    ):
        by_url = {plain.metrics_url: stubs, stored.metrics_url: stored_stubs}
        yield {urllib.parse.urlsplit(url).netloc: stubs for url, stubs in by_url.items()}


@pytest.fixture(scope="module")
def scraped(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A Prometheus, configured as deployed, that has scraped servers under load three times."""
    folder = tmp_path_factory.mktemp("prometheus")
    with two_servers(models, folder) as servers:
        for stubs in servers.values():
            work(stubs)
        with running_prometheus(folder, *servers) as prometheus, ThreadPoolExecutor() as pool:

            def scraped_again() -> bool:
                list(pool.map(work, 2 * list(servers.values())))
                return len(prometheus.query('sum_over_time(up{job="unrolled"}[5m]) > 2')) == 2

            eventually(scraped_again, "three scrapes under load")
            yield Scraped(prometheus, time.time())


@pytest.mark.parametrize("expression", QUERIES)
def test_every_query_of_the_dashboard_has_data(scraped: Scraped, expression: str) -> None:
    asked = expression.replace("$__rate_interval", WINDOW).replace("$instance", ".*")
    assert "$" not in asked
    values = scraped.query(asked)
    assert values
    assert not all(map(math.isnan, values))


@pytest.mark.parametrize("expression", ALERTS)
def test_every_alert_compares_data(scraped: Scraped, expression: str) -> None:
    # A comparison that tells both ways, instead of leaving out what does not hold.
    asked, comparisons = re.subn(r" ([<>]|==) (?=[\d.]+\b)", r" \1 bool ", expression)
    assert comparisons == 1
    assert scraped.query(asked)


def test_of_the_alerts_only_those_of_the_broken_model_are_on(scraped: Scraped) -> None:
    def are_on() -> set[str]:
        found = scraped.prometheus.get("alerts")["alerts"]
        # How disk and processors of the tests fare is not the servers' doing.
        return {alert["labels"]["alertname"] for alert in found} - MACHINE

    # A scrape that took too long counts until the next.
    eventually(lambda: are_on() == {"UnrolledModelFailed"}, "no other alert is on")

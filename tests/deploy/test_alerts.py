"""The alerts: promtool takes them, each fires when it should and is silent when all is well."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.programs import promtool

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alerts.test.yml")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]


def run_promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool(), *arguments], capture_output=True, text=True, timeout=60)


def run_cases(folder: Path, alerts: Path = ALERTS) -> subprocess.CompletedProcess[str]:
    """The made-up series against these alerts."""
    cases = folder / "cases.yml"
    cases.write_text(CASES.read_text().replace("[ALERTS]", f"[{alerts}]"))
    return run_promtool("test", "rules", cases)


def expectations() -> dict[str, set[tuple[str, bool]]]:
    """By alert: the cases it is looked at in, and whether it is to fire there."""
    found: dict[str, set[tuple[str, bool]]] = {name: set() for name in NAMES}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for looked in case["alert_rule_test"]:
            found[looked["alertname"]].add((case["name"], bool(looked["exp_alerts"])))
    return found


def test_promtool_takes_rules_and_configuration() -> None:
    for kind, file in (("rules", ALERTS), ("config", DEPLOY / "prometheus" / "prometheus.yml")):
        done = run_promtool("check", kind, file)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_fires_on_made_up_trouble_and_not_on_a_healthy_server(tmp_path: Path) -> None:
    done = run_cases(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_there_is_trouble_for_each_alert(name: str) -> None:
    looked = expectations()[name]
    assert ("healthy", False) in looked
    assert any(fires for case, fires in looked if case != "healthy")


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What promtool says of alerts that never fire."""
    folder = tmp_path_factory.mktemp("mute")
    mute = yaml.safe_load(ALERTS.read_text())
    for rule in mute["groups"][0]["rules"]:
        rule["expr"] = "vector(1) > 2"
    alerts = folder / "alerts.yml"
    alerts.write_text(yaml.safe_dump(mute))
    done = run_cases(folder, alerts)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_that_never_fires_is_noticed(complaints: str, name: str) -> None:
    assert f"alertname: {name}," in complaints


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_whoever_is_woken_is_told_why_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    (section,) = re.findall(rf"^## {rule['alert']}\n\n(.+)$", runbook, re.MULTILINE)
    assert section


def test_the_runbook_is_of_these_alerts_alone() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    assert re.findall(r"^## (.+)$", runbook, re.MULTILINE) == NAMES

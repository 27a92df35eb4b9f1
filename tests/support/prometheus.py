"""A real Prometheus process that scrapes a server."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.calls import SECONDS
from support.metrics import eventually
from support.programs import FETCHED, program

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


class Prometheus:
    """A Prometheus under way, by its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """The `data` of an answer."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content = json.load(answer)
        assert content["status"] == "success"
        data: dict[str, Any] = content["data"]
        return data

    def health(self, url: str) -> str:
        """How the one target is, which has to be scraped at `url`."""
        (target,) = self.get("targets")["activeTargets"]
        assert target["scrapeUrl"] == url
        health: str = target["health"]
        return health

    def query(self, expression: str, at: float | None = None) -> list[float]:
        """The values of an instant vector. at: seconds since 1970, for what was then."""
        time = {} if at is None else {"time": str(at)}
        result = self.get("query", query=expression, **time)["result"]
        return [float(sample["value"][1]) for sample in result]

    def wait_for(self, expression: str, value: float) -> None:
        """Return once the expression is this one value."""
        eventually(lambda: self.query(expression) == [value], f"{expression} == {value}")


@contextmanager
def running_prometheus(folder: Path, *targets: str, like: Path = DEPLOYED) -> Iterator[Prometheus]:
    """A Prometheus on a free port that scrapes each HOST:PORT every second; ended on exit.

    like: the configuration that it has in everything else.
    """
    content = yaml.safe_load(like.read_text())
    content["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    content["rule_files"] = [str(like.parent / name) for name in content["rule_files"]]
    (job,) = content["scrape_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    config, log = folder / "prometheus.yml", folder / "log"
    config.write_text(yaml.safe_dump(content))
    command = [
        program("prometheus", FETCHED),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("w") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            yield Prometheus(_address_once_ready(process, log))
        finally:
            process.kill()


def _address_once_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """HOST:PORT where it answers, which it logs at any moment before it is ready or after."""
    found: list[str] = []

    def is_ready() -> bool:
        found[:] = re.findall(r'"?Listening on"? address=(\S+)', log.read_text())
        return bool(found) and "ready to receive" in log.read_text()

    eventually(lambda: process.poll() is not None or is_ready(), "Prometheus is ready")
    assert process.poll() is None, log.read_text()
    (address,) = found
    return address

"""Writes grafana/unrolled.json: one dashboard, laid out by the questions that an operator asks.

    python deploy/dashboard.py

Rates are over Grafana's own window; $instance is a choice on top of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "unrolled.json"
WIDTH = 24
HERE = 'job="unrolled", instance=~"$instance"'
FAULTS = ', code=~"INTERNAL|UNKNOWN|DATA_LOSS"'
NO_STORE = "no store"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """A drawing. Queries are pairs of a PromQL expression and the name of its lines."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str
    kind: str = "timeseries"
    width: int = 6
    height: int = 7
    stacked: bool = False
    red_from: float | None = None
    red_below: float | None = None
    absent: str = ""
    """What is shown in place of "No data", where that is how it should be."""


@dataclass(frozen=True)
class Question:
    """A row of the dashboard."""

    text: str
    panels: tuple[Panel, ...]


def rate(counter: str, by: str, labels: str = "") -> str:
    """Events a second, summed by labels."""
    return f"sum by ({by}) (rate({counter}{{{HERE}{labels}}}[$__rate_interval]))"


def quantiles(histogram: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    """The median and the 99th percentile of a histogram."""
    buckets = rate(f"{histogram}_bucket", f"{by}, le")
    return tuple(
        (f"histogram_quantile({share}, {buckets})", f"{{{{{by}}}}} {name}")
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    )


def increase(counter: str, by: str) -> str:
    """Events between one point of the drawing and the next, summed by a label."""
    return f"sum by ({by}) (increase({counter}{{{HERE}}}[$__rate_interval]))"


def gauge(name: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) ({name}{{{HERE}{labels}}})"


def stat(title: str, unit: str, query: str, legend: str, about: str, **more: Any) -> Panel:
    return Panel(title, unit, ((query, legend),), about, "stat", height=3, **more)


QUESTIONS = (
    Question(
        "Is it up?",
        (
            stat(
                "Up",
                "none",
                f"up{{{HERE}}}",
                "{{instance}}",
                "1 where Prometheus gets metrics",
                red_below=1,
            ),
            stat(
                "Models ready",
                "none",
                f'sum by (instance) (unrolled_model_info{{{HERE}, status="ready"}})',
                "{{instance}}",
                "Models that take turns",
                red_below=1,
            ),
            stat(
                "Models by status",
                "none",
                gauge("unrolled_model_info", "status"),
                "{{status}}",
                "What is failed could not be loaded: `unrolled models` says why",
            ),
            stat(
                "Running for",
                "s",
                f"time() - process_start_time_seconds{{{HERE}}}",
                "{{instance}}",
                "Sessions in memory are no older than this",
            ),
            stat(
                "Release",
                "none",
                f"unrolled_build_info{{{HERE}}}",
                "{{version}}, onnxruntime {{onnxruntime}}",
                "What a session's bits depend on, with the CPU",
            ),
            stat(
                "Calls",
                "reqps",
                rate("unrolled_rpc_started_total", "instance"),
                "{{instance}}",
                "Calls begun a second",
            ),
            stat(
                "The certificate expires in",
                "s",
                f"unrolled_tls_certificate_expiry_timestamp_seconds{{{HERE}}} - time()",
                "{{instance}}",
                "Then no client talks to it any more; a renewed one is taken without a restart",
                red_below=7 * 86400,
                absent="no TLS",
            ),
            stat(
                "Files in use are those on disk",
                "none",
                f"unrolled_files_good{{{HERE}}}",
                "{{instance}} {{files}}",
                "0: those on disk are bad, the last good ones are in use; the log says why",
                red_below=1,
                absent="none",
            ),
        ),
    ),
    Question(
        "Is it fast?",
        (
            Panel(
                "Time to first token",
                "s",
                quantiles("unrolled_time_to_first_token_seconds"),
                "From a turn's begin: waiting for a row, feeding the prompt, one step",
            ),
            Panel(
                "Between tokens",
                "s",
                quantiles("unrolled_inter_token_latency_seconds"),
                "Time from one token of a turn to its next, as they are handed out",
            ),
            Panel(
                "Tokens a second",
                "none",
                (
                    (rate("unrolled_generated_tokens_total", "model"), "{{model}} drawn"),
                    (rate("unrolled_prompt_tokens_total", "model"), "{{model}} told"),
                    (rate("unrolled_scored_tokens_total", "model"), "{{model}} scored"),
                ),
                "Drawn ones are handed out; told and scored ones are read",
            ),
            Panel(
                "Where the time of a step goes",
                "percentunit",
                (
                    (
                        rate("unrolled_step_duration_seconds_sum", "model, part"),
                        "{{model}} {{part}}",
                    ),
                ),
                "Seconds a second in runs of the graph, in the work around them, in delivery",
                stacked=True,
            ),
            Panel(
                "Length of a run",
                "s",
                (
                    (
                        "histogram_quantile(0.99, "
                        + rate("unrolled_step_duration_seconds_bucket", "model, le", ', part="run"')
                        + ")",
                        "{{model}} p99",
                    ),
                ),
                "Up with the batch no larger: something else uses the cores",
            ),
            Panel(
                "Length of a call, p99",
                "s",
                quantiles("unrolled_rpc_duration_seconds", "method")[1:],
                "Turns take as long as they draw; other calls should take milliseconds",
            ),
            Panel(
                "Commits to the store",
                "s",
                quantiles("unrolled_commit_duration_seconds", "instance"),
                "From a turn's end until it is in the store, and its outcome sent",
                absent=NO_STORE,
            ),
            Panel(
                "Turns committed a second",
                "none",
                ((rate("unrolled_commit_duration_seconds_count", "instance"), "{{instance}}"),),
                "To the store; turns that end together share one flush of the disk",
                absent=NO_STORE,
            ),
            Panel(
                "Share of prompts that was known",
                "percentunit",
                (
                    (
                        f"{rate('unrolled_prefix_cache_hit_tokens_total', 'model')}"
                        f" / {rate('unrolled_prefix_cache_query_tokens_total', 'model')}",
                        "{{model}}",
                    ),
                ),
                "Tokens that the prefix cache saved running, of those told to empty states",
                width=12,
            ),
            Panel(
                "Prefix cache",
                "bytes",
                (
                    (gauge("unrolled_prefix_cache_bytes", "instance"), "{{instance}}"),
                    (
                        gauge("unrolled_prefix_cache_limit_bytes", "instance"),
                        "{{instance}} at most",
                    ),
                ),
                "States after the beginnings of prompts; full is as it should be",
                width=12,
            ),
        ),
    ),
    Question(
        "Is it full?",
        (
            Panel(
                "Rows",
                "none",
                tuple(
                    (gauge(f"unrolled_rows_{name}", "model"), f"{{{{model}}}} {name}")
                    for name in ("active", "waiting", "parked")
                ),
                "Active rows advance, waiting turns have none yet, parked ones are not read",
            ),
            Panel(
                "Rows in a run",
                "none",
                (
                    (
                        f"{rate('unrolled_batch_rows_sum', 'model')}"
                        f" / {rate('unrolled_batch_rows_count', 'model')}",
                        "{{model}}",
                    ),
                    (f"max(unrolled_rows_active_limit{{{HERE}}})", "at most"),
                ),
                "The batch as the graph sees it, on average",
            ),
            Panel(
                "Share of the sessions it may hold",
                "percentunit",
                (
                    (
                        gauge("unrolled_sessions", "instance", ', tier="memory"')
                        + f" / {gauge('unrolled_sessions_limit', 'instance')}",
                        "{{instance}}",
                    ),
                ),
                "In memory. At 100 % new ones are refused; with a store the oldest leave memory",
                red_from=0.8,
            ),
            Panel(
                "Sessions",
                "none",
                ((gauge("unrolled_sessions", "model, tier"), "{{model}} in {{tier}}"),),
                "Sessions alive, by where they are kept",
                stacked=True,
            ),
            Panel(
                "Memory",
                "bytes",
                (
                    (gauge("process_resident_memory_bytes", "instance"), "{{instance}}"),
                    (gauge("unrolled_session_state_bytes", "model"), "states of {{model}}"),
                    (gauge("unrolled_session_checkpoint_bytes", "instance"), "checkpoints"),
                ),
                "Of the process, and what sessions' states and checkpoints are of it",
            ),
            Panel(
                "Cores",
                "none",
                ((rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
                "CPU-seconds a second",
            ),
            Panel(
                "Sessions that left memory a second",
                "none",
                ((rate("unrolled_evictions_total", "reason"), "{{reason}}"),),
                "The store has them; each comes back with a read when it is asked for",
                absent=NO_STORE,
            ),
            Panel(
                "Disk",
                "bytes",
                (
                    (gauge("unrolled_store_free_bytes", "instance"), "{{instance}} free"),
                    (gauge("unrolled_store_size_bytes", "instance"), "{{instance}} store"),
                ),
                "What is left of the store's volume, and what the store takes",
                absent=NO_STORE,
            ),
        ),
    ),
    Question(
        "Is it losing anything?",
        (
            Panel(
                "Calls that did not end well",
                "reqps",
                ((rate("unrolled_rpc_handled_total", "code", ', code!="OK"'), "{{code}}"),),
                "INTERNAL and UNKNOWN are the server's fault, RESOURCE_EXHAUSTED its limits",
                stacked=True,
            ),
            Panel(
                "Share of calls that failed by its fault",
                "percentunit",
                (
                    (
                        f"({rate('unrolled_rpc_handled_total', 'instance', FAULTS)}"
                        f" or {gauge('unrolled_build_info', 'instance')} * 0)"
                        f" / {rate('unrolled_rpc_handled_total', 'instance')}",
                        "{{instance}}",
                    ),
                ),
                "INTERNAL, UNKNOWN and DATA_LOSS of all calls",
                red_from=0.01,
            ),
            Panel(
                "Runs that failed",
                "none",
                ((increase("unrolled_engine_failures_total", "model"), "{{model}}"),),
                "Each fails the turns in its batch; sessions stay where they were",
            ),
            Panel(
                "Sessions ended a second",
                "none",
                ((rate("unrolled_sessions_ended_total", "reason"), "{{reason}}"),),
                "Deleted by their owners, or idle for too long",
            ),
            Panel(
                "Failures of the store",
                "none",
                ((increase("unrolled_store_errors_total", "kind"), "{{kind}}"),),
                "full: no room on the disk; unavailable: anything else. No turn was lost unawares",
                absent=NO_STORE,
            ),
            Panel(
                "Damaged records",
                "none",
                ((increase("unrolled_store_corrupt_records_total", "instance"), "{{instance}}"),),
                "Sessions that were not read as they were written: DATA_LOSS to their callers",
                absent=NO_STORE,
            ),
            Panel(
                "Turns answered from the record, a second",
                "none",
                ((rate("unrolled_replays_total", "instance"), "{{instance}}"),),
                "Repeated with a request_id after their answer was lost: the turn ran once",
            ),
            Panel(
                "Starts",
                "none",
                ((f"changes(process_start_time_seconds{{{HERE}}}[1h])", "{{instance}}"),),
                "Within the last hour; with each, sessions end that no store has",
            ),
        ),
    ),
)


def dashboard(questions: Sequence[Question] = QUESTIONS) -> dict[str, Any]:
    """The whole, in Grafana's JSON."""
    return {
        "uid": "unrolled",
        "title": "unrolled",
        "tags": ["unrolled"],
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels(questions)),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Server",
            "type": "query",
            "datasource": SOURCE,
            "query": {
                "query": 'label_values(up{job="unrolled"}, instance)',
                "refId": "instance",
            },
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels(questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    """Rows under one another, their panels side by side as far as there is room."""
    number, y = 0, 0
    for question in questions:
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": question.text, "gridPos": place, "panels": []}
        x, y, line = 0, y + 1, 0
        for panel in question.panels:
            if x + panel.width > WIDTH:
                x, y, line = 0, y + line, 0
            number += 1
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place, **_drawing(panel)}
            x, line = x + panel.width, max(line, panel.height)
        y += line


def _drawing(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.absent:
        defaults["noValue"] = panel.absent
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.red_from is None else "line"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")

"""What two pages of metrics say: rates, shares and quantiles. Pure functions; no text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unrolled.top.scrape import Samples, Scrape, difference


@dataclass(frozen=True)
class Latency:
    """Quantiles in seconds; None where nothing was observed."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class ModelFigures:
    """One model. Rates and shares are of the time between two pages."""

    name: str
    status: str
    cell: str
    precision: str
    device: str
    active: int
    """Rows in the batch."""
    waiting: int
    parked: int
    sessions: dict[str, int]
    """By tier."""
    state_bytes: int
    drawn: float
    """Tokens a second, as are `told` and `scored`."""
    told: float
    scored: float
    rows_a_run: float | None
    steps: dict[str, float]
    """Share of the time by part of a step: run, host, delivery."""
    first_token: Latency
    inter_token: Latency


@dataclass(frozen=True)
class StoreFigures:
    """What keeps sessions beyond memory."""

    commits: float
    """Turns a second."""
    commit: Latency
    evicted: float
    """Sessions a second that left memory."""
    errors: dict[str, float]
    """Failures a second, by kind; only kinds that occurred."""
    damaged: int
    """Records put aside since the start."""
    size_bytes: int
    free_bytes: int
    """Left on its volume."""


@dataclass(frozen=True)
class Figures:
    """A server between two pages that are `seconds` apart."""

    seconds: float
    version: str
    uptime: float | None
    """Seconds; None where the process does not tell."""
    cores: float
    """CPU-seconds a second."""
    memory_bytes: int
    sessions: int
    sessions_in_memory: int
    sessions_limit: int
    """Of those in memory."""
    active_limit: int
    """Rows of one model at most."""
    calls: float
    """Ended ones a second."""
    failures: dict[str, float]
    """Those not OK a second, by code; only codes that occurred."""
    replays: float
    """Turns a second that were answered from the record."""
    store: StoreFigures | None
    models: tuple[ModelFigures, ...]

    def model(self, name: str) -> ModelFigures | None:
        """The one of this name, if it was served."""
        return next((model for model in self.models if model.name == name), None)


def figures(before: Scrape, after: Scrape, now: float | None = None) -> Figures:
    """What happened from one page to the next. now: seconds since 1970, for the uptime."""
    seconds = max(after.at - before.at, 1e-9)
    rise, stand = difference(before.samples, after.samples), after.samples
    start = stand.total("process_start_time_seconds")
    return Figures(
        seconds=seconds,
        version=next((k["version"] for k, _ in stand.series("unrolled_build_info")), ""),
        uptime=max(now - start, 0.0) if now is not None and start else None,
        cores=rise.total("process_cpu_seconds_total") / seconds,
        memory_bytes=int(stand.total("process_resident_memory_bytes")),
        sessions=int(stand.total("unrolled_sessions")),
        sessions_in_memory=int(stand.total("unrolled_sessions", tier="memory")),
        sessions_limit=int(stand.total("unrolled_sessions_limit")),
        active_limit=int(stand.total("unrolled_rows_active_limit")),
        calls=rise.total("unrolled_rpc_handled_total") / seconds,
        failures=_failures(rise, seconds),
        replays=rise.total("unrolled_replays_total") / seconds,
        store=_store(rise, stand, seconds),
        models=tuple(
            _model(facts, rise, stand, seconds)
            for facts, _ in sorted(
                stand.series("unrolled_model_info"), key=lambda facts: facts[0]["model"]
            )
        ),
    )


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """The value that `share` of the observations do not exceed; None without any.

    As Prometheus' histogram_quantile estimates it: evenly spread within a bucket, the first of
    which begins at 0; the largest finite bound for what lies above it. share: in (0, 1].
    """
    if not buckets or buckets[-1][1] == 0:
        return None
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                break
            return lower + (bound - lower) * ((rank - below) / (count - below))
        lower, below = bound, count
    return lower


def _failures(rise: Samples, seconds: float) -> dict[str, float]:
    ended = rise.by("code", "unrolled_rpc_handled_total")
    return {code: n / seconds for code, n in sorted(ended.items()) if code != "OK" and n > 0}


def _store(rise: Samples, stand: Samples, seconds: float) -> StoreFigures | None:
    """None where there is no store."""
    histogram = "unrolled_commit_duration_seconds"
    if f"{histogram}_count" not in stand.values:
        return None
    failed = rise.by("kind", "unrolled_store_errors_total")
    return StoreFigures(
        commits=rise.total(f"{histogram}_count") / seconds,
        commit=_latency(rise, histogram),
        evicted=rise.total("unrolled_evictions_total") / seconds,
        errors={kind: n / seconds for kind, n in sorted(failed.items()) if n > 0},
        damaged=int(stand.total("unrolled_store_corrupt_records_total")),
        size_bytes=int(stand.total("unrolled_store_size_bytes")),
        free_bytes=int(stand.total("unrolled_store_free_bytes")),
    )


def _model(facts: dict[str, str], rise: Samples, stand: Samples, seconds: float) -> ModelFigures:
    name = facts["model"]
    runs = rise.total("unrolled_batch_rows_count", model=name)
    rows = rise.total("unrolled_batch_rows_sum", model=name)
    steps = rise.by("part", "unrolled_step_duration_seconds_sum", model=name)
    tiers = stand.by("tier", "unrolled_sessions", model=name)
    return ModelFigures(
        name=name,
        status=facts.get("status", ""),
        cell=facts.get("cell", ""),
        precision=facts.get("precision", ""),
        device=facts.get("device", ""),
        active=int(stand.total("unrolled_rows_active", model=name)),
        waiting=int(stand.total("unrolled_rows_waiting", model=name)),
        parked=int(stand.total("unrolled_rows_parked", model=name)),
        sessions={tier: int(count) for tier, count in tiers.items()},
        state_bytes=int(stand.total("unrolled_session_state_bytes", model=name)),
        drawn=rise.total("unrolled_generated_tokens_total", model=name) / seconds,
        told=rise.total("unrolled_prompt_tokens_total", model=name) / seconds,
        scored=rise.total("unrolled_scored_tokens_total", model=name) / seconds,
        rows_a_run=rows / runs if runs else None,
        steps={part: spent / seconds for part, spent in steps.items()},
        first_token=_latency(rise, "unrolled_time_to_first_token_seconds", model=name),
        inter_token=_latency(rise, "unrolled_inter_token_latency_seconds", model=name),
    )


def _latency(rise: Samples, histogram: str, **labels: str) -> Latency:
    buckets = rise.buckets(histogram, **labels)
    return Latency(quantile(0.5, buckets), quantile(0.99, buckets))

"""Metrics of what the server's parts know of themselves, read when Prometheus asks.

No label holds the name of a session or of anything a caller chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from unrolled_server.models import Models
from unrolled_server.prefix_cache import PrefixCache
from unrolled_server.session_keeper import SessionKeeper
from unrolled_server.stats import EngineStats, Tally


class ServerCollector(Collector):
    """What the models, their engines, the sessions and the prefix cache say of themselves."""

    def __init__(self, models: Models, sessions: SessionKeeper, prefixes: PrefixCache) -> None:
        self._models = models
        self._sessions = sessions
        self._prefixes = prefixes
        self._memory = sessions.memory

    def collect(self) -> Iterator[Metric]:
        """Metrics as they stand now."""
        yield self._info()
        yield from self._of_sessions()
        yield from self._of_the_store()
        yield from self._of_prefixes()
        stats = [(model.label, model.engine.stats) for model in self._models.ready()]
        yield from _counters(stats)
        yield from _rows(stats)
        yield from _histograms(stats)

    def _info(self) -> Metric:
        labels = ["model", "cell", "precision", "status", "fingerprint", "device"]
        family = GaugeMetricFamily(
            "unrolled_model_info", "Models in the repository.", labels=labels
        )
        for facts in self._models.facts():
            family.add_metric([facts[label] for label in labels], 1)
        return family

    def _of_sessions(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "unrolled_sessions",
            "Sessions, in memory or in the store alone, whether or not their model is served.",
            labels=["model", "tier"],
        )
        size = GaugeMetricFamily(
            "unrolled_session_state_bytes", "Bytes of the states in memory.", labels=["model"]
        )
        for model in self._models.ready():
            held.add_metric([model.label, "memory"], self._memory.count(model))
            size.add_metric([model.label], self._memory.state_bytes(model))
        for label, count in self._in_the_store_alone().items():
            held.add_metric([label, "store"], count)
        ended = CounterMetricFamily("unrolled_sessions_ended", "Sessions ended.", labels=["reason"])
        for reason, number in self._memory.ended.items():
            ended.add_metric([reason], number)
        replays = CounterMetricFamily(
            "unrolled_replays", "Turns answered from the record.", self._memory.replays
        )
        limit = GaugeMetricFamily(
            "unrolled_sessions_limit", "Sessions in memory at most.", self._memory.limit
        )
        marks = GaugeMetricFamily(
            "unrolled_session_checkpoint_bytes",
            "Bytes of what sessions in memory can be taken back to.",
            self._memory.checkpoint_bytes,
        )
        yield from (held, size, marks, ended, replays, limit)

    def _in_the_store_alone(self) -> dict[str, int]:
        """Sessions by model, of models too that are not served; none without a store."""
        if self._sessions.stats is None:
            return {}
        counts = {model.label: -self._memory.count(model) for model in self._models.ready()}
        # A copy: the store's thread may count meanwhile.
        for label, stored in dict(self._sessions.stored()).items():
            counts[label] = counts.get(label, 0) + stored
        return {label: max(0, count) for label, count in counts.items()}

    def _of_the_store(self) -> Iterator[Metric]:
        stats = self._sessions.stats
        if stats is None:
            return
        evicted = CounterMetricFamily(
            "unrolled_evictions",
            "Sessions that left memory; the store has them.",
            labels=["reason"],
        )
        evicted.add_metric(["capacity"], self._sessions.spilled)
        errors = CounterMetricFamily(
            "unrolled_store_errors", "What the store failed to do.", labels=["kind"]
        )
        for kind, number in stats.errors.items():
            errors.add_metric([kind], number)
        damaged = CounterMetricFamily(
            "unrolled_store_corrupt_records",
            "Records that do not match their checksums.",
            stats.damaged,
        )
        yield from (evicted, errors, damaged)
        yield from self._of_its_volume()
        text = "From a turn's end to its commit in the store."
        yield _histogram("unrolled_commit_duration_seconds", text, [], [([], stats.commit)])

    def _of_its_volume(self) -> Iterator[Metric]:
        space = self._sessions.space()
        if space is None:
            return
        for name, text, value in (
            ("store_size", "Of the store, its log included.", space.used),
            ("store_free", "Left to the server on the volume of the store.", space.free),
            ("store_volume", "Of the volume of the store.", space.volume),
        ):
            yield GaugeMetricFamily(f"unrolled_{name}_bytes", text, value)

    def _of_prefixes(self) -> Iterator[Metric]:
        cache = self._prefixes
        for name, text, tokens in (
            ("query", "Tokens of prompts that were looked up in the prefix cache.", cache.queried),
            ("hit", "Tokens of prompts that the prefix cache saved running.", cache.hit),
        ):
            family = CounterMetricFamily(
                f"unrolled_prefix_cache_{name}_tokens", text, labels=["model"]
            )
            for model in self._models.ready():
                family.add_metric([model.label], tokens[model.label])
            yield family
        for name, text, value in (
            ("entries", "States in the prefix cache.", len(cache)),
            ("bytes", "Bytes of the prefix cache.", cache.bytes),
            ("limit_bytes", "Bytes of the prefix cache at most.", cache.limit),
        ):
            yield GaugeMetricFamily(f"unrolled_prefix_cache_{name}", text, value)
        yield CounterMetricFamily(
            "unrolled_prefix_cache_evictions",
            "States that left the prefix cache for others.",
            cache.evicted,
        )


Stats = list[tuple[str, EngineStats]]


def _counters(stats: Stats) -> Iterator[Metric]:
    for name, text, attribute in (
        (
            "prompt_tokens",
            "Tokens told by prompts and feeds, those included that the prefix cache saved running.",
            "prompt_tokens",
        ),
        ("generated_tokens", "Tokens drawn and handed out.", "generated_tokens"),
        ("scored_tokens", "Tokens told by scores.", "scored_tokens"),
        ("engine_failures", "Runs that failed.", "failures"),
    ):
        family = CounterMetricFamily(f"unrolled_{name}", text, labels=["model"])
        for model, values in stats:
            family.add_metric([model], getattr(values, attribute))
        yield family


def _rows(stats: Stats) -> Iterator[Metric]:
    for name, text, attribute in (
        ("rows_active", "Rows in the batch.", "active"),
        ("rows_waiting", "Turns that wait for a place in the batch.", "waiting"),
        ("rows_parked", "Turns that wait for their reader.", "parked"),
    ):
        family = GaugeMetricFamily(f"unrolled_{name}", text, labels=["model"])
        for model, values in stats:
            family.add_metric([model], getattr(values, attribute))
        yield family


def _histograms(stats: Stats) -> Iterator[Metric]:
    for name, text, attribute in (
        ("time_to_first_token_seconds", "From a turn's begin to its first token.", "first_token"),
        ("inter_token_latency_seconds", "Between tokens as they are handed out.", "inter_token"),
        ("batch_rows", "Rows of a run.", "batch"),
    ):
        tallies = [([model], getattr(values, attribute)) for model, values in stats]
        yield _histogram(f"unrolled_{name}", text, ["model"], tallies)
    steps = [([model, part], tally) for model, s in stats for part, tally in s.parts.items()]
    text = "Parts of an engine's step: the run, the host's work around it, the delivery."
    yield _histogram("unrolled_step_duration_seconds", text, ["model", "part"], steps)


def _histogram(
    name: str, text: str, labels: list[str], tallies: Iterable[tuple[list[str], Tally]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, tally in tallies:
        family.add_metric(values, tally.cumulative(), tally.sum)
    return family

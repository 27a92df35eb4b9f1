"""Figures as something that rich can draw. What does not fit a narrow terminal is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from unrolled.top.figures import Figures, Latency, ModelFigures, StoreFigures
from unrolled.top.watch import Picture

BARS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 12
GAP = 2
NONE = "-"

History = Sequence[Figures]


@dataclass(frozen=True)
class _Column:
    """A column of the table of models; those of a higher rank give way first."""

    header: str
    cell: Callable[[ModelFigures, History], Text]
    rank: int
    justify: JustifyMethod = "right"


def picture(seen: Picture, url: str, width: int) -> RenderableType:
    """The whole screen, in `width` columns."""
    parts: list[RenderableType] = []
    if seen.problem is not None:
        since = " (what follows is of before)" if seen.history else ""
        parts.append(Text(f"{seen.problem}; trying again{since}", "bold red", overflow="fold"))
    elif not seen.history:
        parts.append(Text(f"{url}: measuring", "dim"))
    if seen.history:
        newest = seen.history[-1]
        parts += [_heading(newest, url), _load(newest)]
        if newest.store is not None:
            parts.append(_store(newest.store))
        if newest.failures:
            parts.append(_failures(newest))
        parts += [Text(), _models(seen.history, width)]
    return Group(*parts)


def sparkline(values: Iterable[float | None], cells: int) -> str:
    """The last `cells` values as bars up from 0, the largest one full; None is a gap."""
    shown = list(values)[-cells:]
    top = max((value for value in shown if value is not None), default=0.0)

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        return BARS[round(value / top * (len(BARS) - 1))] if top > 0 else BARS[0]

    return "".join(map(bar, shown)).rjust(cells)


def duration(seconds: float | None) -> str:
    """Three digits and a unit that fits: 83.1 µs, 2.40 ms, 1.25 s; from minutes on, two units."""
    if seconds is None:
        return NONE
    if seconds < 60:
        for unit, size in (("s", 1.0), ("ms", 1e-3)):
            if seconds >= size:
                return f"{_digits(seconds / size)} {unit}"
        return f"{_digits(seconds / 1e-6)} µs"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes, in units of 1024: 512 B, 1.50 KiB, 3.21 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} B" if power == 0 else f"{_digits(count)} {units[power]}"


def rate(value: float) -> str:
    """Events a second: 0, 0.25, 12.5, 3,412."""
    return f"{value:,.0f}" if value == 0 or value >= 100 else _digits(value)


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _heading(now: Figures, url: str) -> Text:
    facts = [f"unrolled {now.version}".rstrip(), url]
    if now.uptime is not None:
        facts.append(f"up {duration(now.uptime)}")
    facts += [f"{now.cores:.2f} cores", size(now.memory_bytes)]
    return _line(Text(fact, "bold" if fact is facts[0] else "") for fact in facts)


def _load(now: Figures) -> Text:
    active = max((model.active for model in now.models), default=0)
    waiting = sum(model.waiting for model in now.models)
    drawn = sum(model.drawn for model in now.models)
    told = sum(model.told + model.scored for model in now.models)
    return _line(
        (
            Text(f"drawn {rate(drawn)}/s"),
            Text(f"told {rate(told)}/s"),
            Text(f"calls {rate(now.calls)}/s"),
            _full("rows", active, now.active_limit),
            Text(f"waiting {waiting:,}", "yellow" if waiting else ""),
            _full("sessions", now.sessions, now.sessions_limit)
            if now.store is None
            else Text(f"sessions {now.sessions:,}, in memory {now.sessions_in_memory:,}"),
            Text(f"replays {rate(now.replays)}/s"),
        )
    )


def _store(store: StoreFigures) -> Text:
    parts = [
        Text("store", "bold"),
        Text(f"commits {rate(store.commits)}/s"),
        Text("commit p50 / p99 ").append_text(_quantiles(store.commit)),
        Text(f"left memory {rate(store.evicted)}/s"),
        Text(f"{size(store.size_bytes)}, {size(store.free_bytes)} free"),
    ]
    parts += [Text(f"{kind} {rate(n)}/s", "bold red") for kind, n in store.errors.items()]
    if store.damaged:
        parts.append(Text(f"damaged records {store.damaged:,}", "bold red"))
    return _line(parts)


def _full(name: str, count: int, limit: int) -> Text:
    """How much of a limit is used, in the colour of the alert."""
    if not limit:
        return Text(f"{name} {count:,}")
    share = count / limit
    style = "bold red" if share >= 0.95 else "yellow" if share >= 0.8 else ""
    return Text(f"{name} {count:,} of {limit:,} ({share:.0%})", style)


def _failures(now: Figures) -> Text:
    codes = (f"{code} {rate(value)}/s" for code, value in now.failures.items())
    return _line((Text("not OK:", "yellow"), *map(Text, codes)))


def _line(parts: Iterable[Text]) -> Text:
    line = Text("  ").join(parts)
    line.overflow = "fold"
    return line


def _models(history: History, width: int) -> RenderableType:
    models = history[-1].models
    if not models:
        return Text("no model is served", "yellow")
    cells = {
        column.header: [column.cell(model, history) for model in models] for column in _COLUMNS
    }
    columns = _fitting(
        [
            (column, max(len(column.header), *(cell.cell_len for cell in cells[column.header])))
            for column in _COLUMNS
        ],
        width,
    )
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True, overflow="ellipsis")
    for row in zip(*(cells[column.header] for column in columns), strict=True):
        table.add_row(*row)
    return table


def _fitting(columns: Sequence[tuple[_Column, int]], width: int) -> list[_Column]:
    """Those that fit side by side, in their order; the first in rank stays in any case."""
    kept: set[str] = set()
    used = 0
    for column, needed in sorted(columns, key=lambda pair: pair[0].rank):
        if kept and used + GAP + needed > width:
            break
        kept.add(column.header)
        used += needed + (GAP if used else 0)
    return [column for column, _ in columns if column.header in kept]


def _name(model: ModelFigures, history: History) -> Text:
    ready = model.status == "ready"
    return Text(model.name if ready else f"{model.name} {model.status}", "" if ready else "red")


def _rows(model: ModelFigures, history: History) -> Text:
    parked = f" {model.parked} parked" if model.parked else ""
    return Text(f"{model.active}+{model.waiting}{parked}", "yellow" if model.waiting else "")


def _batch(model: ModelFigures, history: History) -> Text:
    return Text(NONE if model.rows_a_run is None else _digits(model.rows_a_run))


def _drawn(model: ModelFigures, history: History) -> Text:
    return Text(rate(model.drawn))


def _drawn_spark(model: ModelFigures, history: History) -> Text:
    return _spark(model, history, lambda then: then.drawn)


def _told(model: ModelFigures, history: History) -> Text:
    return Text(rate(model.told + model.scored))


def _first(model: ModelFigures, history: History) -> Text:
    return _quantiles(model.first_token)


def _first_spark(model: ModelFigures, history: History) -> Text:
    return _spark(model, history, lambda then: then.first_token.p99)


def _between(model: ModelFigures, history: History) -> Text:
    return _quantiles(model.inter_token)


def _between_spark(model: ModelFigures, history: History) -> Text:
    return _spark(model, history, lambda then: then.inter_token.p99)


def _steps(model: ModelFigures, history: History) -> Text:
    return Text(" ".join(f"{part} {share:.0%}" for part, share in model.steps.items()) or NONE)


def _sessions(model: ModelFigures, history: History) -> Text:
    tiers = [f"{count:,} {tier}" for tier, count in model.sessions.items() if count]
    return Text(", ".join(tiers) or "0")


def _state(model: ModelFigures, history: History) -> Text:
    return Text(size(model.state_bytes))


def _quantiles(latency: Latency) -> Text:
    if latency.p50 is None:
        return Text(NONE, "dim")
    return Text(f"{duration(latency.p50)} / {duration(latency.p99)}")


def _spark(
    model: ModelFigures, history: History, value: Callable[[ModelFigures], float | None]
) -> Text:
    then = [figures.model(model.name) for figures in history]
    known = [None if figures is None else value(figures) for figures in then]
    return Text(sparkline(known, SPARK_CELLS), "cyan")


_COLUMNS = (
    _Column("MODEL", _name, 0, justify="left"),
    _Column("ROWS", _rows, 2),
    _Column("PER RUN", _batch, 9),
    _Column("DRAWN/S", _drawn, 1),
    _Column("", _drawn_spark, 5, justify="left"),
    _Column("TOLD/S", _told, 7),
    _Column("FIRST p50 / p99", _first, 3),
    _Column(" ", _first_spark, 10, justify="left"),
    _Column("NEXT p50 / p99", _between, 4),
    _Column("  ", _between_spark, 11, justify="left"),
    _Column("STEPS", _steps, 8, justify="left"),
    _Column("SESSIONS", _sessions, 6),
    _Column("STATES", _state, 12),
)

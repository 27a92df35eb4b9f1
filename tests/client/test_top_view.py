"""What `unrolled top` draws, on consoles of many widths."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from client.metrics_page import Server
from rich.console import Console
from unrolled.top.figures import Figures, figures
from unrolled.top.scrape import Scrape, parse
from unrolled.top.view import duration, picture, rate, size, sparkline
from unrolled.top.watch import Picture

URL = "http://127.0.0.1:9464/metrics"


def draw(seen: Picture, width: int) -> list[str]:
    """The lines as they come out on a terminal of this width."""
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(picture(seen, URL, width))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.fixture(scope="module")
def now() -> Figures:
    """A busy second of two models, one of which failed to load."""
    server = Server(model="shakespeare-lstm/1")
    server.add_model("broken/3", "failed")
    name = server.model
    before = server.page()
    server.drawn.labels(name).inc(4321)
    server.told.labels(name).inc(200)
    server.scored.labels(name).inc(34)
    server.active.labels(name).set(61)
    server.waiting.labels(name).set(5)
    server.active_limit.set(64)
    server.sessions.labels(name, "memory").set(830)
    server.sessions_limit.set(1000)
    server.state_bytes.labels(name).set(3 * 2**20)
    server.handled.labels("a/B", "RESOURCE_EXHAUSTED").inc(2)
    server.steps.labels(name, "run").observe(0.75)
    for _ in range(4):
        server.first_token.labels(name).observe(0.015)
        server.inter_token.labels(name).observe(0.0015)
    after = server.page()
    pages = Scrape(0.0, parse(before)), Scrape(1.0, parse(after))
    return figures(*pages, now=1_700_003_700.0)


def test_everything_on_a_wide_terminal(now: Figures) -> None:
    lines = draw(Picture((now,), None), 200)
    text = "\n".join(lines)
    for fact in (
        *("unrolled 7.8.9", URL, "up 1 h 1 min", "drawn 4,321/s", "told 234/s"),
        *("rows 61 of 64 (95%)", "waiting 5", "sessions 830 of 1,000 (83%)"),
        *("not OK:", "RESOURCE_EXHAUSTED 2.00/s"),
        *("run 75%", "830 memory", "3.00 MiB", "15.0 ms / 19.9 ms", "1.50 ms / 1.99 ms"),
    ):
        assert fact in text
    header, broken, busy = lines[-3:]
    assert header.split()[0] == "MODEL"
    assert broken.startswith("broken/3 failed")
    assert busy.startswith("shakespeare-lstm/1")
    assert "61+5" in busy
    # The columns are under their headers.
    assert busy.index("4,321") + len("4,321") == header.index("DRAWN/S") + len("DRAWN/S")


def test_a_store_has_a_line_of_its_own() -> None:
    server = Server()
    server.add_store()
    server.sessions_limit.set(100)
    server.sessions.labels(server.model, "memory").set(100)
    server.sessions.labels(server.model, "store").set(4_900)
    server.store_size.set(5 * 2**20)
    server.store_free.set(72 * 2**30)
    before = server.page()
    for _ in range(30):
        server.commit.observe(0.0025)
    server.evicted.labels("capacity").inc(12)
    server.replays.inc(3)
    calm = figures(Scrape(0.0, parse(before)), Scrape(1.0, parse(server.page())))
    text = "\n".join(draw(Picture((calm,), None), 200))
    for fact in (
        *("sessions 5,000, in memory 100", "replays 3.00/s", "store  commits 30.0/s"),
        *("commit p50 / p99 3.50 ms / 4.97 ms", "left memory 12.0/s", "5.00 MiB, 72.0 GiB free"),
    ):
        assert fact in text
    assert "damaged" not in text
    before = server.page()
    server.store_errors.labels("full").inc(4)
    server.damaged.inc()
    worse = figures(Scrape(0.0, parse(before)), Scrape(2.0, parse(server.page())))
    text = "\n".join(draw(Picture((worse,), None), 200))
    assert "full 2.00/s" in text
    assert "damaged records 1" in text


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 100, 120, 160])
def test_nothing_is_wider_than_the_terminal(now: Figures, width: int) -> None:
    lines = draw(Picture((now,), "a problem of many words " * 5), width)
    assert all(len(line) <= width for line in lines)


def test_a_narrow_terminal_keeps_what_matters_most(now: Figures) -> None:
    columns = [draw(Picture((now,), None), width)[-3].split() for width in (200, 100, 70, 30)]
    assert [len(header) for header in columns] == sorted(map(len, columns), reverse=True)
    assert columns[-1] == ["MODEL", "DRAWN/S"]
    assert {"FIRST", "ROWS"} <= set(columns[-2])
    assert "NEXT" in columns[-3]


def test_before_the_second_page() -> None:
    assert draw(Picture((), None), 80) == [f"{URL}: measuring"]


def test_an_outage_keeps_the_figures_and_says_that_they_are_old(now: Figures) -> None:
    lines = draw(Picture((now,), "nobody there"), 200)
    assert lines[0] == "nobody there; trying again (what follows is of before)"
    assert lines[1:] == draw(Picture((now,), None), 200)
    assert draw(Picture((), "nobody there"), 200) == ["nobody there; trying again"]


def test_no_models() -> None:
    page = Scrape(0.0, parse("unrolled_sessions_limit 5\n"))
    lines = draw(Picture((figures(page, page),), None), 80)
    assert lines[-1] == "no model is served"


def test_a_sparkline_in_the_table_grows_with_the_history(now: Figures) -> None:
    name = "shakespeare-lstm/1"
    model = now.model(name)
    assert model is not None
    then = replace(now, models=(replace(model, drawn=model.drawn / 2),))
    without = replace(now, models=())
    lines = draw(Picture((then, without, now), None), 200)
    assert "▅ █" in lines[-1]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], "        "),
        ([0, 0], "      ▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([100, *[0] * 7, 7], "▁▁▁▁▁▁▁█"),
        ([5, None, 5], "     █ █"),
        ([None], "        "),
        ([1e-6], "       █"),
    ],
)
def test_sparklines(values: list[float | None], drawn: str) -> None:
    assert sparkline(values, 8) == drawn


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (None, "-"),
        (0, "0.00 µs"),
        (83.1e-6, "83.1 µs"),
        (0.0024, "2.40 ms"),
        (0.25, "250 ms"),
        (1.25, "1.25 s"),
        (59.9, "59.9 s"),
        (61, "1 min 1 s"),
        (3 * 3600 + 12 * 60, "3 h 12 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_durations(seconds: float | None, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (2**30 * 12, "12.0 GiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes(count: int, written: str) -> None:
    assert size(count) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (0.25, "0.25"), (12.5, "12.5"), (3412.4, "3,412")]
)
def test_rates(value: float, written: str) -> None:
    assert rate(value) == written

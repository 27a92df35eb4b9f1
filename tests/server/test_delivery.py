"""When turns are said to have drawn their tokens, where text and tokens leave apart."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from unrolled_server.delivery import Outbox
from unrolled_server.listed_vocabularies import GroupVocabulary
from unrolled_server.row import Row
from unrolled_server.stats import EngineStats
from unrolled_server.turn import Task, Turn
from unrolled_server.types import Past, Sampling

VOCABULARY = GroupVocabulary([b"a", b"hello", b" wor", b"ld", b"!"], None, [], None)


async def test_text_that_leaves_before_its_token_is_not_the_first_token() -> None:
    start = Past(None, 0, 5)
    stops = ("lo!",)
    task = Task(start, np.zeros(0, np.int32), 10, Sampling(1), stops, None, False, True)
    turn = Turn(task, created=0.5)
    row, stats = Row(turn, VOCABULARY), EngineStats()
    outbox = Outbox(stats, asyncio.get_running_loop(), time.perf_counter)

    left = []
    for now, token in ((1.0, 1), (2.0, 2), (4.0, 3)):
        row.take([token], None)
        delta = row.flush(now)
        assert delta is not None
        outbox.put_delta(turn, delta, now)
        left.append((delta.text, delta.token_ids))

    # The end of "hello" may begin the stop string, and its token with it.
    assert left == [("hel", []), ("lo wor", [1, 2]), ("ld", [3])]
    assert turn.first_token == 2.0
    for tally, seconds in ((stats.first_token, 1.5), (stats.inter_token, 2.0)):
        assert tally.cumulative()[-1] == ("+Inf", 1)
        assert tally.sum == seconds
    assert stats.generated_tokens == 3

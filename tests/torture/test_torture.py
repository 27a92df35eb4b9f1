"""A server that is killed at each step of a commit, and from outside, under 64 streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import Repository

from torture.rounds import STREAMS, Torture, kills
from torture.stores import STORES


@pytest.mark.parametrize("kind", STORES)
def test_no_kill_loses_a_turn_or_doubles_one(
    repository: Repository, tmp_path: Path, kind: str
) -> None:
    """Once each. The streams check what they hear; here, that they had something to check."""
    with STORES[kind](tmp_path) as store:
        torture = Torture(repository, store)
        # None so long that all streams wait: each asks in vain once.
        outages = list(torture.outages(seconds=0))
        count = len(store.places) + 1
        *killed, last = torture.rounds(kills(store.places, count, seed=1))
    assert [len(outage.refusals) for outage in outages] == [STREAMS] * len(store.absences)
    assert [one.kill.place for one in killed if one.kill][: len(store.places)] == [*store.places]
    assert sum(one.replayed for one in (*killed, last)) > 0
    assert last.acknowledged >= STREAMS
    torture.compare_with_torch()

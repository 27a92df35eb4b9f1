"""Every figure there is, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence

from bench import (
    arithmetic,
    durable,
    latency,
    long_prompts,
    long_sessions,
    metrics_cost,
    million_sessions,
    over_bare,
    over_others,
    restart,
    session_memory,
    shared_prompts,
)
from bench.figure import Figure, Group

GROUPS: tuple[Group, ...] = (
    *over_bare.groups(),
    *over_others.groups(),
    *latency.groups(),
    *long_prompts.groups(),
    *long_sessions.groups(),
    *metrics_cost.groups(),
    *shared_prompts.groups(),
    *arithmetic.groups(),
    *durable.groups(),
    *restart.groups(),
    *session_memory.groups(),
    *million_sessions.groups(),
)


def select(words: Sequence[str], groups: Sequence[Group] = GROUPS) -> list[Figure]:
    """The figures whose names begin with one of `words`; without words, all that are not too long.

    Raises ValueError for a word that selects none.
    """
    if not words:
        return [figure for of in groups if not of.only_if_named for figure in of.figures]
    figures = [figure for group in groups for figure in group.figures]
    for word in words:
        if not any(figure.name.startswith(word) for figure in figures):
            raise ValueError(f"no figure begins with {word!r}")
    return [figure for figure in figures if figure.name.startswith(tuple(words))]

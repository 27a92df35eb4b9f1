"""The text of one sequence of tokens that several turns draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from unrolled_server.text import text_stream
from unrolled_server.vocabulary import Vocabulary


def text_in_turns(vocabulary: Vocabulary, ids: Sequence[int], edges: Sequence[int]) -> str:
    """The text of turns that draw `ids` up to these places, token by token in every other one."""
    text, partial, previous = "", b"", None
    bounds = [0, *sorted(min(edge, len(ids)) for edge in edges), len(ids)]
    for turn, (start, end) in enumerate(pairwise(bounds)):
        stream = text_stream(vocabulary, (), partial, previous)
        size = 1 if turn % 2 else max(1, end - start)
        for place in range(start, end, size):
            stream.push(list(ids[place : min(end, place + size)]))
            text += stream.take()[0]
        text += stream.finish(keeps_partial=end < len(ids))[0]
        partial, previous = stream.partial, stream.previous
    return text

"""How likely a text is, for people to read."""

from __future__ import annotations

import math

from unrolled import ScoreResponse


def score_report(text: str, score: ScoreResponse) -> str:
    """The total, and what it is for a character, a byte and a token. `score` has every token.

    Of a total log-probability of L nats over n tokens, which stand for c characters (Unicode code
    points) and b bytes of UTF-8:

        bits per character = -L / (c ln 2)
        bits per byte      = -L / (b ln 2)
        perplexity         = exp(-L / n), per token

    A first token that nothing precedes has no probability, and is counted neither in n nor, with
    its part of the text, in c and b. Both are left out where that part is not the token's bytes,
    as where it is unknown.
    """
    scored = [token for token in score.tokens if token.HasField("logprob")]
    nats = 0.0 - score.total_logprob
    first = "" if len(scored) == len(score.tokens) else ", the first without a probability"
    lines = [
        ("tokens", f"{len(score.tokens):,}{first}"),
        ("log-probability", f"{score.total_logprob:.3f} nats"),
        *_bits(nats, _scored_bytes(text, score)),
    ]
    if scored:
        lines.append(("perplexity", f"{_exp(nats / len(scored)):.3f} per token"))
    return "\n".join(f"{name:<20}{value}" for name, value in lines)


def _bits(nats: float, scored: bytes) -> list[tuple[str, str]]:
    # A first token may have ended within a character, which then is not counted.
    characters = len(scored.decode(errors="ignore"))
    if not characters:
        return []
    return [
        ("bits per character", f"{nats / math.log(2) / characters:.3f}"),
        ("bits per byte", f"{nats / math.log(2) / len(scored):.3f}"),
    ]


def _scored_bytes(text: str, score: ScoreResponse) -> bytes:
    """The text without its first token, if that has no probability; empty where nobody knows."""
    told = text.encode()
    first = b"".join(token.token for token in score.tokens if not token.HasField("logprob"))
    if not told.startswith(first):
        # Many vocabularies of pieces put a space before a text.
        first = first.removeprefix(b" ")
    return told.removeprefix(first) if told.startswith(first) else b""


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf

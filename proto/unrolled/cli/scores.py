"""How likely a text is, for people to read."""

from __future__ import annotations

import math

from unrolled import ScoreResponse
from unrolled.cli.tables import logprob_table


def score_report(text: str, score: ScoreResponse) -> str:
    """The total, its shares and every token's part, all in nats.

    A first token that nothing precedes has no probability, and is not counted anywhere.
    """
    without = b"".join(t.token for t in score.tokens if not t.HasField("logprob"))
    characters = len(text) - len(without.decode(errors="replace"))
    tokens = sum(t.HasField("logprob") for t in score.tokens)
    lines = [f"log-probability  {score.total_logprob:.3f}"]
    if tokens and characters > 0:
        lines.append(f"per character    {score.total_logprob / characters:.3f}")
        lines.append(f"perplexity       {_perplexity(score.total_logprob / tokens):.3f} per token")
    return "\n".join([*lines, logprob_table(score.tokens)])


def _perplexity(mean_logprob: float) -> float:
    try:
        return math.exp(-mean_logprob)
    except OverflowError:
        return math.inf

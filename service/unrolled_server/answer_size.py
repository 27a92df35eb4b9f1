"""How large answers get that are sent in one message."""

from __future__ import annotations

from unrolled_server.errors import InvalidField
from unrolled_server.types import TurnRequest
from unrolled_server.vocabulary import Vocabulary

ANSWER_BYTES = 15 << 20
"""Log-probabilities in one message: what is left of 16 MiB is for the text and its tokens."""


def check_answer_size(
    request: TurnRequest, told: int, max_tokens: int, vocabulary: Vocabulary
) -> None:
    """Refuse an answer that might not fit in one message, if it has to. Raises InvalidField."""
    if request.logprobs is None or not request.in_one_message:
        return
    tokens = told if request.scores else max_tokens
    size = tokens * _logprob_bytes(min(request.logprobs, vocabulary.size), vocabulary)
    if size > ANSWER_BYTES:
        remedy = "score less at once" if request.scores else "use StreamComplete"
        problem = f"{tokens} tokens' may not fit in one message; {remedy}, or ask for fewer"
        raise InvalidField("logprobs", problem)


def _logprob_bytes(alternatives: int, vocabulary: Vocabulary) -> int:
    """Bytes of one TokenLogprob at most, its place in a message included."""
    # Tags take one byte; token_id is a varint, token has a length before it, logprob takes four.
    token = vocabulary.longest_token
    entry = 1 + _varint_bytes(vocabulary.size) + 1 + _varint_bytes(token) + token + 1 + 4
    inside = entry + alternatives * (1 + _varint_bytes(entry) + entry)
    return 1 + _varint_bytes(inside) + inside


def _varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))

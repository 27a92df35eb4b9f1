"""Long texts to tokens, beside the event loop: one of 1 MiB may take seconds."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from unrolled_server.types import Tokens
from unrolled_server.vocabulary import Vocabulary

LONG = 4096
"""Characters from which on a text is long: fewer take 5 ms at most, and most kinds far less."""
AT_ONCE = 2
"""Long texts that are encoded at once: they may need a core each, and Python's lock by turns."""


class Encoder:
    """Encodes texts in threads of its own, so that nothing else waits for one to be free."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "encoder")

    async def encode(self, vocabulary: Vocabulary, text: str, previous: int | None) -> Tokens:
        """What `vocabulary.encode` returns. Raises UnknownSymbol.

        Cancelled, it does not begin, or nobody hears of what it comes to.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, vocabulary.encode, text, previous)

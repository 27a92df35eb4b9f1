"""States after the beginnings of prompts: what many prompts begin with is run once.

A recurrent model's state after n tokens stands for all of them, and helps only prompts that agree
on all of them. So every prompt is remembered at the same lengths, whoever sends it: each BLOCK
tokens at first, then each 1/32 of what came before. Prompts that part anywhere behind the first
BLOCK find a state there at most 1/32 of the way back, and one of a million tokens leaves 253
states, not 4,000, so that it cannot drive out everybody else's.

All is remembered at first sight; least recently used goes first. (Marconi: Pan et al., MLSys
2025, waits until a prefix is seen a second time: a shared prompt would cost twice.)
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b

from unrolled_server.models import ServedModel
from unrolled_server.tenants import tenant
from unrolled_server.turn import Recall
from unrolled_server.types import Floats, Prefix, Tokens

BLOCK = 256
"""Tokens of the shortest prefix: running as many takes a thousand times as long as keeping one."""
FINENESS = 32
"""A prompt agrees with what is remembered of another up to 1/32 of what they share, or BLOCK."""
SHARE = 8
"""One prompt leaves at most the eighth part of all bytes behind."""
ENTRY_BYTES = 320
"""What an entry takes beside its state: key, array, place in the dictionary."""


class PrefixCache:
    """Up to `limit` bytes of states, of all models together. Used in the event loop's thread.

    Entries are found by hashes of everything that a state depends on, and of the tenant: how fast
    a turn begins tells nobody what others have sent.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        """Held now, ENTRY_BYTES for each entry included."""
        self.evicted = 0
        """Entries that made room for others."""
        self.queried: Counter[str] = Counter()
        """Tokens of the prompts that were looked up, by model."""
        self.hit: Counter[str] = Counter()
        """Those of them that need not be run, by model."""
        self._states: OrderedDict[bytes, Floats] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def recall(self, model: ServedModel, told: Tokens) -> Recall:
        """What is known of a prompt that is told to an empty state, and what to remember of it."""
        if not self.limit:
            return Recall()
        self.queried[model.label] += len(told)
        ends = lengths(len(told))
        if not ends:
            return Recall()
        keys = _keys(model, told, ends)
        # The longest first: shorter ones may have gone.
        found = next((i for i in reversed(range(len(ends))) if keys[i] in self._states), -1)
        known = None
        if found >= 0:
            self._states.move_to_end(keys[found])
            known = Prefix(ends[found], self._states[keys[found]])
            self.hit[model.label] += known.tokens
        new = dict(self._within_share(model, list(zip(ends, keys, strict=True))[found + 1 :]))
        return Recall(known, tuple(new), partial(self._remember, new))

    def _within_share(
        self, model: ServedModel, entries: Sequence[tuple[int, bytes]]
    ) -> Sequence[tuple[int, bytes]]:
        """As many of a prompt's entries as it may leave, evenly, the longest prefix among them."""
        most = self.limit // SHARE // (model.state_bytes + ENTRY_BYTES)
        if not most:
            return ()
        apart = -(-len(entries) // most) or 1
        return entries[::-1][::apart][::-1]

    def _remember(self, keys: Mapping[int, bytes], prefix: Prefix) -> None:
        key = keys[prefix.tokens]
        if key in self._states:
            # Another turn was told the same at the same time.
            self._states.move_to_end(key)
            return
        self._states[key] = prefix.state
        self.bytes += _size(prefix.state)
        while self.bytes > self.limit:
            _, oldest = self._states.popitem(last=False)
            self.bytes -= _size(oldest)
            self.evicted += 1


def lengths(tokens: int) -> list[int]:
    """Lengths at which a prompt of so many tokens is remembered, all shorter than the prompt.

    Multiples of BLOCK up to BLOCK * FINENESS; between powers of two above that, FINENESS each.
    """
    found, length = [], BLOCK
    while length < tokens:
        found.append(length)
        length += max(BLOCK, (1 << length.bit_length() - 1) // FINENESS)
    return found


def _keys(model: ServedModel, told: Tokens, ends: Sequence[int]) -> list[bytes]:
    """A key for each prefix of `told` that ends at one of `ends`, ascending."""
    # Devices agree on states but for rounding, and on the CPU nothing is to be rounded otherwise.
    owner = json.dumps([tenant.get(), model.fingerprint, model.device])
    digest = blake2b(owner.encode(), digest_size=32)
    keys, start = [], 0
    for end in ends:
        digest.update(told[start:end].tobytes())
        keys.append(digest.digest())
        start = end
    return keys


def _size(state: Floats) -> int:
    return state.nbytes + ENTRY_BYTES

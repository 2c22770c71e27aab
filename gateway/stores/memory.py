"""Answers kept in this process: least recently used out first, bounded by bytes.

They are kept written down: that takes less memory, is measured by its length, is a copy nobody else
can reach, and gives the garbage collector nothing to walk, however many answers there are.
"""

from __future__ import annotations

import time

import msgspec
from cachetools import Cache, TLRUCache

from gateway.clock import Clock
from gateway.stores.base import Entry

OVERHEAD = 600
"""Bytes an entry costs beside its answer: its key, and cachetools' three indexes (measured)."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode

_Kept = tuple[bytes, float]
"""An entry written down, and its lifetime in seconds."""


class _Cache(TLRUCache[bytes, _Kept]):
    """cachetools' cache with a lifetime for each item, counting what it pushes out for room."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        super().__init__(
            max_bytes,
            ttu=lambda _key, kept, now: now + kept[1],
            timer=clock,
            getsizeof=lambda kept: len(kept[0]) + OVERHEAD,
        )
        self.evicted = 0

    holds = Cache.__contains__
    """Whether there is such an entry, alive or not: without TLRUCache's look at the clock."""

    def popitem(self) -> tuple[bytes, _Kept]:
        self.evicted += 1
        return super().popitem()


class MemoryStore:
    """A `Store` in memory.

    Args:
        max_bytes: bound on the sum of all entries' sizes, `OVERHEAD` each included; default 64 MiB.
        clock: monotonic seconds, the same that stamps `Entry.stored_at`.
    """

    def __init__(self, max_bytes: int = 67_108_864, *, clock: Clock = time.monotonic) -> None:
        self._cache = _Cache(max_bytes, clock)
        self._hits = self._misses = self._puts = self._dropped = 0

    async def get(self, key: bytes) -> Entry | None:
        cache = self._cache
        if cache.holds(key):  # asked first: a miss would raise three errors within cachetools
            try:
                kept = cache[key]
            except KeyError:  # its lifetime is over
                pass
            else:
                self._hits += 1
                return _decode(kept[0])
        self._misses += 1
        return None

    async def put(self, key: bytes, entry: Entry, lifetime_s: float) -> None:
        self._puts += 1
        # cachetools leaves the old value in place where it refuses the new one: too large
        # (ValueError), or already past its lifetime (silently, in its older versions).
        try:
            if lifetime_s > 0.0:
                # Copied, for the encoder's own bytes hold on to room it took for growing.
                self._cache[key] = (bytes(memoryview(_encode(entry))), lifetime_s)
                return
        except (ValueError, TypeError, OverflowError, RecursionError):
            pass  # or a wrapped client put something into its answer that cannot be written down
        self._dropped += 1
        self._cache.pop(key, None)

    async def delete(self, key: bytes) -> None:
        self._cache.pop(key, None)

    async def clear(self) -> None:
        self._cache.clear()

    def stats(self) -> dict[str, int]:
        """As in `Store`, and `entries`, `bytes`, `max_bytes` and `evicted` as of now."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "puts": self._puts,
            "dropped": self._dropped,
            "evicted": self._cache.evicted,
            "entries": len(self._cache),
            "bytes": int(self._cache.currsize),
            "max_bytes": int(self._cache.maxsize),
        }

    async def aclose(self) -> None:
        self._cache.clear()

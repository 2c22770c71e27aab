"""What a response cache asks of the place that keeps its answers."""

from __future__ import annotations

import sys
from typing import Any, Protocol, runtime_checkable

import msgspec

from gateway.generation import Generation


class Entry(msgspec.Struct, frozen=True):
    """One stored answer.

    Attributes:
        generation: the answer itself, shared by all readers: never change it.
        stored_at: when it was stored, seconds on the reader's own clock; age is now - stored_at.
        mode: the mode that answered, which need not be the one asked for.
        identity: of the target that answered (`Provider.identity`).
        size: bytes it counts for, see `size_of`.
    """

    generation: Generation
    stored_at: float
    mode: str
    identity: str
    size: int


@runtime_checkable
class Store(Protocol):
    """Keeps entries for a while. It may forget any of them at any time, never return a wrong one.

    Freshness is the reader's business (behaviour.md, B19): a store only holds an entry to the end
    of its lifetime, stale window included, and returns it until then whatever its age.
    """

    async def get(self, key: bytes) -> Entry | None:
        """The entry under `key`, or None. Never raises."""
        ...

    async def put(self, key: bytes, entry: Entry, lifetime_s: float) -> None:
        """Keep `entry` for `lifetime_s` seconds from now instead of what was there. Never raises.

        An entry that cannot be kept (too large, no lifetime) still removes what was there.
        """
        ...

    async def delete(self, key: bytes) -> None:
        """Forget `key`, if it is there."""
        ...

    async def clear(self) -> None:
        """Forget everything this store has put."""
        ...

    def stats(self) -> dict[str, int]:
        """Counters since the start, at least `hits`, `misses`, `puts` and `dropped` puts."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. Idempotent."""
        ...


def size_of(generation: Generation) -> int:
    """Estimate the memory an answer takes, in bytes.

    Its texts and containers are counted, names of fields are not (they are shared); measured
    against the allocator it is right to about a fifth. Costs some 5 us for a plain answer.
    """
    total = _FIXED
    todo: list[Any] = [
        generation.id,
        generation.choices,
        generation.usage.details,
        generation.extra,
    ]
    size = sys.getsizeof
    while todo:
        item = todo.pop()
        total += size(item)
        if type(item) is dict:
            todo.extend(item.values())
        elif type(item) is list:
            todo.extend(item)
    return total


_FIXED = 512
"""The structs themselves: `Generation`, `Served`, `Usage` and their numbers and short names."""

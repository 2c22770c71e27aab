"""What a response cache asks of the place that keeps its answers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from gateway.generation import Generation


class Entry(msgspec.Struct, frozen=True):
    """One stored answer.

    Attributes:
        generation: the answer itself; whoever gets an entry from a store has it for himself.
        stored_at: when it was stored, seconds on the reader's own clock; age is now - stored_at.
        mode: the mode that answered, which need not be the one asked for.
        identity: of the target that answered (`Provider.identity`).
    """

    generation: Generation
    stored_at: float
    mode: str
    identity: str


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

        An entry that cannot be kept (too large, no lifetime, something in it that cannot be
        written down) still removes what was there. It is written down before anything is waited
        for: its owner may change it from then on.
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

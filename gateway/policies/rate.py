"""So many a minute: a token bucket, kept as one number that worker processes can share.

The number is the time at which the bucket will be full again, in ns on the monotonic clock (the
"theoretical arrival time" of GCRA, ITU-T I.371). Taking moves it later, giving back moves it
earlier, and time fills the bucket by itself. All it needs of a store is to add up to a limit.
"""

from __future__ import annotations

from typing import Final, Protocol

from gateway.clock import Clock

_MINUTE: Final = 60_000_000_000
_MS: Final = 1_000_000


class Ledger(Protocol):
    """Sums by name. `gateway.stores.shared.SharedStore` is one that processes share."""

    def add(self, name: str, amount: int, limit: int | None = None) -> int | None:
        """Add `amount` unless the sum would then exceed `limit`; the new sum, or None."""
        ...

    def total(self, name: str) -> int:
        """The sum, 0 at first."""
        ...


class MemoryLedger:
    """A ledger of this process alone, which forgets at exit."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}

    def add(self, name: str, amount: int, limit: int | None = None) -> int | None:
        """See `Ledger.add`."""
        total = self._totals.get(name, 0) + amount
        if limit is not None and amount > 0 and total > limit:
            return None
        self._totals[name] = total
        return total

    def total(self, name: str) -> int:
        """See `Ledger.total`."""
        return self._totals.get(name, 0)


class Rate:
    """A bucket that holds a minute's worth and refills in a minute.

    After a quiet minute all of it may be had at once; over any t seconds never more than
    `per_min * (1 + t / 60)`, whatever the number of workers.

    Args:
        ledger: where the bucket stands.
        name: what it is called there.
        clock: monotonic seconds, the same for all who share the ledger.

    Attributes:
        owed: what was used beyond what was taken, in ns of refilling; paid before anything else
            is handed out. Known to this worker only.
    """

    def __init__(self, ledger: Ledger, name: str, clock: Clock) -> None:
        self.owed = 0
        self._ledger = ledger
        self._name = name
        self._clock = clock

    def take(self, units: int, per_min: int) -> float:
        """Take `units`, at most `per_min`. Returns 0, or the seconds until they can be had."""
        now = self._now()
        self._tidy(now)
        cost = units * _MINUTE // per_min
        if not self.owed and self._ledger.add(self._name, cost, now + _MINUTE) is not None:
            return 0.0
        short = self._ledger.total(self._name) + self.owed + cost - now - _MINUTE
        return (max(0, short) // _MS + 1) / 1000  # rounded up: who comes back then is served

    def settle(self, taken: int, used: int, per_min: int) -> None:
        """Of `taken` units `used` were needed: give the rest back, or owe what is missing."""
        over = used * _MINUTE // per_min - taken * _MINUTE // per_min
        if over > 0:
            self.owed += over
        elif over < 0:
            self._ledger.add(self._name, over)

    def left(self, per_min: int) -> int:
        """Units that could be taken now."""
        return max(0, (_MINUTE - self._missing()) * per_min // _MINUTE)

    def full_in_s(self) -> float:
        """Seconds until the bucket is full."""
        return self._missing() / 1e9

    def _missing(self) -> int:
        now = self._now()
        full_at = min(self._ledger.total(self._name), now + _MINUTE)
        return max(0, full_at + self.owed - now)

    def _tidy(self, now: int) -> None:
        """Pay what is owed as far as the bucket has it, then spill what is more than full."""
        full_at = self._ledger.total(self._name)
        if full_at > now + _MINUTE:
            # Emptier than empty: written before a reboot set the clock back, or counted twice
            # while the shared file was away. Nobody is kept out for longer than a minute by that.
            self._ledger.add(self._name, now + _MINUTE - full_at)
        elif self.owed:
            paid = min(self.owed, now + _MINUTE - full_at)
            if self._ledger.add(self._name, paid, now + _MINUTE) is not None:
                self.owed -= paid
                full_at += paid
        if full_at < now:
            # Up to a limit, so that two workers that do it at once do not do it twice.
            self._ledger.add(self._name, now - full_at, now)

    def _now(self) -> int:
        return int(self._clock() * 1e9)

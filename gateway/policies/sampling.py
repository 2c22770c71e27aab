"""How many calls there were lately, and how many of them failed."""

from __future__ import annotations

from collections import deque


class Sampling:
    """Calls and failures over the last `duration_s`, in 30 buckets that drop out whole.

    Args:
        duration_s: seconds looked back, > 0.
    """

    _BUCKETS = 30

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self._width = duration_s / self._BUCKETS
        self._buckets: deque[list[int]] = deque()

    def add(self, now: float, failed: bool) -> None:
        """Count one call at `now`."""
        slot = int(now / self._width)
        buckets = self._buckets
        if not buckets or buckets[-1][0] != slot:
            self._drop(slot)
            buckets.append([slot, 0, 0])
        buckets[-1][1] += 1
        buckets[-1][2] += failed

    def totals(self, now: float) -> tuple[int, int]:
        """Return (calls, failures) of the last `duration_s` before `now`."""
        self._drop(int(now / self._width))
        return sum(b[1] for b in self._buckets), sum(b[2] for b in self._buckets)

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()

    def _drop(self, slot: int) -> None:
        while self._buckets and self._buckets[0][0] <= slot - self._BUCKETS:
            self._buckets.popleft()

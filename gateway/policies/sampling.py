"""How many calls there were lately, and how many of them failed."""

from __future__ import annotations


class Sampling:
    """Calls and failures over the last `duration_s`, in 30 buckets that drop out whole.

    Args:
        duration_s: seconds looked back, > 0.

    Attributes:
        buckets: [number, calls, failures] of each, oldest first; plain data for others to keep.
    """

    _BUCKETS = 30

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self._width = duration_s / self._BUCKETS
        self.buckets: list[list[int]] = []

    def add(self, now: float, failed: bool) -> None:
        """Count one call at `now`."""
        slot, buckets = int(now / self._width), self.buckets
        if buckets and buckets[-1][0] == slot:
            latest = buckets[-1]
        else:
            self._drop(slot)
            latest = [slot, 0, 0]
            buckets.append(latest)
        latest[1] += 1
        if failed:
            latest[2] += 1

    def merge(self, other: Sampling) -> None:
        """Count what another has counted too; both look back equally far."""
        ours = {bucket[0]: bucket for bucket in self.buckets}
        for slot, calls, failures in other.buckets:
            mine = ours.setdefault(slot, [slot, 0, 0])
            mine[1] += calls
            mine[2] += failures
        self.buckets[:] = [ours[slot] for slot in sorted(ours)]

    def totals(self, now: float) -> tuple[int, int]:
        """Return (calls, failures) of the last `duration_s` before `now`."""
        self._drop(int(now / self._width))
        return sum(b[1] for b in self.buckets), sum(b[2] for b in self.buckets)

    def clear(self) -> None:
        """Forget everything."""
        self.buckets.clear()

    def _drop(self, slot: int) -> None:
        while self.buckets and self.buckets[0][0] <= slot - self._BUCKETS:
            del self.buckets[0]

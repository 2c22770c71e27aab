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

    def add(self, now: float, failed: bool) -> bool:
        """Count one call at `now`. Returns whether that begins another bucket."""
        slot = int(now / self._width)
        buckets = self.buckets
        if buckets and buckets[-1][0] == slot:
            buckets[-1][1] += 1
            buckets[-1][2] += failed
            return False
        self._drop(slot)
        buckets.append([slot, 1, int(failed)])
        return len(buckets) > 1

    def merge(self, other: Sampling) -> None:
        """Count what another has counted too; both look back equally far."""
        ours = {bucket[0]: bucket for bucket in self.buckets}
        for slot, calls, failures in other.buckets:
            mine = ours.setdefault(slot, [slot, 0, 0])
            mine[1] += calls
            mine[2] += failures
        self.buckets[:] = [ours[slot] for slot in sorted(ours)]

    def failed(self) -> bool:
        """Whether any of the calls has."""
        return any(bucket[2] for bucket in self.buckets)

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

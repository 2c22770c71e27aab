"""Time as the house tells it: a monotonic clock, injected everywhere.

Nothing in the gateway reads the wall clock to decide anything, so NTP steps, time zones and
suspended machines change nothing (behaviour.md, B12).
"""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic seconds, origin arbitrary: `time.monotonic` unless a test or simulation says else."""


class ManualClock:
    """A clock that moves when told to.

    Args:
        start: the first reading, in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (>= 0)."""
        if seconds < 0:
            raise ValueError("a monotonic clock cannot go back")
        self._now += seconds

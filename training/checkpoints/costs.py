"""What saving costs a run: three figures that are not one another."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

_RECENT = 101


class SaveCosts:
    """Blocking, persisting, and slowing training down meanwhile.

    Args:
        clock: monotonic seconds.

    Attributes:
        blocking_s: how long the last save kept the caller waiting.
        persist_s: how long the last commit took, in the background or not.
        skipped: saves left out because two were still under way.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.blocking_s = 0.0
        self.persist_s = 0.0
        self.skipped = 0
        self._clock = clock
        self._before = 0.0
        self._quiet: deque[float] = deque(maxlen=_RECENT)
        self._writing: deque[float] = deque(maxlen=_RECENT)

    def step(self, *, writing: bool) -> None:
        """A training step ended; `writing`: while a checkpoint was being written."""
        now = self._clock()
        if self._before:
            (self._writing if writing else self._quiet).append(now - self._before)
        self._before = now

    def pause(self) -> None:
        """The step under way is not an ordinary one: it is left out."""
        self._before = 0.0

    @property
    def interference(self) -> float | None:
        """How much longer a step takes while a checkpoint is written: 0.1 is a tenth.

        The median of the last 101 such steps over that of the others; None without both.
        """
        if not self._quiet or not self._writing:
            return None
        quiet = statistics.median(self._quiet)
        return statistics.median(self._writing) / quiet - 1.0 if quiet else None

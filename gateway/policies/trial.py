"""Did the change make things worse? A verdict on what follows it, against what went before.

A configuration reload is on trial: if the share of failed requests rises clearly, the gateway
returns to the configuration that worked (`gateway.primitives.rollback`).
"""

from __future__ import annotations

import time
from enum import Enum

from gateway.clock import Clock


class Verdict(Enum):
    """What a trial says so far."""

    UNDECIDED = "undecided"
    KEEP = "keep"
    REVERT = "revert"


class Trial:
    """Compares outcomes after a change with those before it; a verdict, once reached, stands.

    The share before counts over at least `min_calls`, so a handful of failures before excuses
    little. After the change:

    - REVERT at once if the first `first_calls` all failed, while the share before was below 20 %;
    - REVERT from `min_calls` on, whenever the share exceeds the share before by over `margin`;
    - at the end (`window_s` has passed, or `max_calls` were heard) the same comparison is made
      with whatever there is, if at least `first_calls`: REVERT if it is worse by over `margin`,
      else KEEP. So silence keeps the change.

    Outcomes that say nothing (cancelled, the caller's own fault) are not recorded.

    Args:
        before: (failures, calls) of a comparable stretch before the change; (0, 0) if unknown.
        min_calls: fewest calls that can revert by share.
        margin: how much the share may rise, as a share: 0.2 is twenty percentage points.
        window_s: how long the change is on trial, seconds.
        max_calls: calls after which the trial ends early.
        first_calls: see above.
        clock: monotonic seconds.

    Raises:
        ValueError: an argument outside its range.
    """

    __slots__ = (
        "_clock",
        "_ends_at",
        "_first_calls",
        "_limit",
        "_max_calls",
        "_min_calls",
        "_share_before",
        "_verdict",
        "calls",
        "failures",
    )

    def __init__(
        self,
        before: tuple[int, int],
        *,
        min_calls: int = 20,
        margin: float = 0.2,
        window_s: float = 120.0,
        max_calls: int = 200,
        first_calls: int = 5,
        clock: Clock = time.monotonic,
    ) -> None:
        failures, calls = before
        if not 0 <= failures <= calls:
            raise ValueError(f"before is (failures, calls), got {before}")
        if not 1 <= first_calls <= min_calls <= max_calls:
            raise ValueError(
                "a trial needs 1 <= first_calls <= min_calls <= max_calls, "
                f"got {first_calls}, {min_calls}, {max_calls}"
            )
        if not (0.0 <= margin <= 1.0 and window_s > 0.0):
            raise ValueError(f"margin is a share and window_s > 0, got {margin} and {window_s}")
        self.failures = 0
        self.calls = 0
        self._share_before = failures / max(calls, min_calls)
        self._limit = self._share_before + margin
        self._min_calls, self._max_calls, self._first_calls = min_calls, max_calls, first_calls
        self._clock = clock
        self._ends_at = clock() + window_s
        self._verdict = Verdict.UNDECIDED

    def record(self, ok: bool) -> Verdict:
        """Hear one outcome; after the verdict it changes nothing."""
        if self.judge() is Verdict.UNDECIDED:
            self.calls += 1
            self.failures += not ok
        return self.judge()

    def judge(self) -> Verdict:
        """The verdict as of now: the passing of `window_s` needs no traffic to be seen."""
        if self._verdict is Verdict.UNDECIDED:
            self._verdict = self._decide()
        return self._verdict

    def _decide(self) -> Verdict:
        ended = self.calls >= self._max_calls or self._clock() >= self._ends_at
        worse = self.failures > self._limit * self.calls
        if worse and self.calls >= (self._first_calls if ended else self._min_calls):
            return Verdict.REVERT
        if self.failures == self.calls == self._first_calls and self._share_before < 0.2:
            return Verdict.REVERT
        return Verdict.KEEP if ended else Verdict.UNDECIDED

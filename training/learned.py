"""How much a run has learned, and how much of it is left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from training.config import AnomalyConfig
from training.tracks import Level

# Progress is judged by the median of the last few rewards against a slow mean of these medians.
_MEDIAN_OF, _SLOW = 5, 20
# The standard deviation of a normal value by its mean distance from the median of the last five.
_TO_SIGMA = 1.5
# An outlier this many times further away than usual is no noise.
_ODD = 6.0
# A loss of less than this share of the reward itself must stand out this many times more, from all
# of the window: between -20 and -21 a slow wander looks like learning and unlearning.
_MATERIAL, _SURE = 0.25, 3.0
# Who still has three quarters of what was learned has not lost it.
_SLACK = 0.25


class Progress:
    """How much was learned, and how much of it is left; scale and sign do not matter.

    Attributes:
        now: the median of the last five rewards: one odd value does not move it.
    """

    __slots__ = ("_base", "_count", "_high", "_noise", "_recent", "_slow", "now")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._base = self._high = math.nan
        self._count = 0
        self._slow = self._noise = self.now = 0.0

    def lost(self, reward: float, track: Level, options: AnomalyConfig) -> float | None:
        """Take in a reward; the level that was reached, if too much of it is gone, None if not.

        Args:
            track: of the rewards before.
        """
        recent = self._recent
        recent.append(reward)
        if len(recent) < _MEDIAN_OF:
            return None
        now = self.now = sorted(recent)[_MEDIAN_OF // 2]
        self._count = count = self._count + 1
        share = 1.0 / count if count < _SLOW else 1.0 / _SLOW
        slow, noise = self._slow, self._noise
        away = abs(reward - now)
        if count >= _SLOW and away > _ODD * noise:  # an outlier, unless the level goes with it
            away = min(away, max(_ODD * noise, abs(now - slow)))
        self._noise = noise + (away - noise) * share
        slow = self._slow = slow + (now - slow) * share
        if count < _SLOW:
            return None
        high = self._high
        if slow > high:
            self._high = high = slow
        elif math.isnan(high):
            self._base = self._high = slow
            return None
        learned = high - self._base
        if now > high - options.progress_lost * learned or learned <= 0.0:
            return None
        noise = max(_TO_SIGMA * self._noise, track.jitter)
        if high - now < _MATERIAL * abs(high):
            noise = _SURE * max(noise, track.deviation)
        return high if learned > options.guard * noise else None

    def holds(self, then: float) -> bool:
        """Whether what was known at an earlier `now` is still there, but for a quarter of all."""
        learned = self._high - self._base
        return not self.now < min(then, self._high) - _SLACK * learned  # NaN: nothing is known yet

    def forget(self) -> None:
        """The run went back; what was learned until then stays known."""
        self._recent.clear()
        self.now = self._slow

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; NaN is None."""
        marks = [None if math.isnan(mark) else mark for mark in (self._base, self._high)]
        return {
            "recent": list(self._recent),
            "marks": marks,
            "means": [self._slow, self._noise, self.now],
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._base, self._high = (
            math.nan if mark is None else float(mark) for mark in state["marks"]
        )
        self._slow, self._noise, self.now = map(float, state["means"])
        self._recent = deque(map(float, state["recent"]), _MEDIAN_OF)
        self._count = int(state["count"])

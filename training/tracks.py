"""The recent past of one metric: what it was last, and what is normal for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from gateway.primitives.normalization import MAD_TO_SIGMA, Window
from training.config import AnomalyConfig

# The order of a window is looked up anew after this many values: it costs more than all the rest.
_REFRESH = 10
# A level that stays for this many steps is no outlier; it is where the run is now.
_ACCEPT = 20
# With few values known, their spread is multiplied by this, and more the fewer there are.
_FEW, _FEWER = 3.0, 30.0
LARGEST = 1e150


class Track:
    """One metric's reference and window.

    Args:
        size: how many values say what is normal.

    Attributes:
        seen: how many values there were, flagged or not.
        previous: the last value that was not flagged.
        median, deviation: of the window, the deviation from the MAD; up to ten values old, unless
            `refresh` was just called.
    """

    __slots__ = (
        "_acted",
        "_high",
        "_low",
        "_passed",
        "_refused",
        "_stale",
        "_window",
        "deviation",
        "median",
        "previous",
        "seen",
        "size",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self.previous: float | None = None
        self.median = self.deviation = self._low = self._high = 0.0
        self._window = Window(size)
        self._stale = 0
        self._acted = False
        self._refused: list[float] = []
        self._passed: deque[float] = deque(maxlen=8)

    @property
    def high(self) -> float:
        """The largest value of the window; up to ten values old."""
        return self._high

    def admit(self, value: float) -> None:
        """Take in a value that is not flagged."""
        self.previous = value
        self.seen += 1
        if self._refused:  # it came back by itself: such values are harmless here
            if not self._acted:
                self._passed.extend(self._refused)
            self._refused.clear()
            self._acted = False
        if -LARGEST < value < LARGEST:  # beyond, it says nothing of what is normal
            self._window.push(value)
            self._stale += 1
            if self._stale >= _REFRESH:
                self.refresh()

    def refuse(self, value: float, normal: float, *, acts: bool = False) -> None:
        """Keep a flagged value out of what is normal, unless it keeps coming.

        Args:
            normal: values this near the median are normal: then it was the previous one that stood
                out, and the median takes its place.
            acts: whether the run may go back because of it; if not, it is remembered as harmless.
        """
        self.seen += 1
        self._acted = self._acted or acts
        if normal > 0.0 and abs(value - self.median) <= normal:
            self.previous = self.median
        self._refused.append(value)
        if len(self._refused) >= _ACCEPT:
            kept, self._refused, self._acted = self._refused, [], False
            self._window, self.seen = Window(self.size), 0
            for accepted in kept:
                self.admit(accepted)
            self.refresh()

    def refresh(self) -> None:
        """Bring the median and the deviation up to date."""
        if self._stale:
            window, self._stale = self._window, 0
            self.median = window.median()
            self.deviation = MAD_TO_SIGMA * window.mad()
            self._low, self._high = window.percentile(0.0), window.percentile(100.0)

    def reach(self, options: AnomalyConfig, sure: float, ranges: float) -> float:
        """How far from the median a value must be to be beyond doubt."""
        apart = self._high - self._low
        early = self._window.count < options.guard_after
        odd = [*self._passed, *self._refused] if early else self._passed
        if odd:
            apart = max(self._high, *odd) - min(self._low, *odd)
        if early:
            return max(_FEW, ranges, _FEWER / self.seen) * apart
        return max(sure * options.guard * self.deviation, ranges * apart)

    def forget(self) -> None:
        """The run went back: what is normal is the best guess of what comes next."""
        self._refused.clear()
        self._acted = False
        if self._window.count:
            self.refresh()
            self.previous = self.median

    def resized(self, size: int) -> Track:
        """The same past in a window of another size."""
        track = Track(size)
        for value in self._window.values[-size:]:
            track.admit(value)
        track.refresh()
        track.seen, track.previous = self.seen, self.previous
        return track

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        return {
            "previous": self.previous,
            "window": self._window.state_dict(),
            "known": [self.median, self.deviation, self._low, self._high],
            "seen": self.seen,
            "stale": self._stale,
            "refused": list(self._refused),
            "acted": self._acted,
            "passed": list(self._passed),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._window.load_state_dict(state["window"])
        self.previous = None if state["previous"] is None else float(state["previous"])
        self.median, self.deviation, self._low, self._high = map(float, state["known"])
        self.seen, self._stale = int(state["seen"]), int(state["stale"])
        self._refused = [float(value) for value in state["refused"]]
        self._acted = bool(state["acted"])
        self._passed = deque(map(float, state["passed"]), 8)


def as_float(value: Any) -> float | None:
    """A metric as a number, 0-d tensors and arrays too; None for what is none."""
    if type(value) is float:
        return value
    try:
        item = value.item() if hasattr(value, "item") else value
        return None if isinstance(item, str) else float(item)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None

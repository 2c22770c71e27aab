"""The recent past of one metric: what it was last, and what is normal for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from gateway.primitives.normalization import MAD_TO_SIGMA, mad_of, median_of
from training.config import AnomalyConfig

# The order of a window is looked up anew after this many values: it costs more than all the rest.
_REFRESH = 10
# A level that stays for this many steps is no outlier; it is where the run is now.
_ACCEPT = 20
# With few values known, their spread is multiplied by this, and more the fewer there are.
_FEW, _FEWER = 3.0, 30.0
# Where a level is now: the median of this many.
_SHORT = 15
LARGEST = 1e150


class Track:
    """One metric's reference and window.

    Args:
        size: how many values say what is normal.

    Attributes:
        seen: how many values there were, flagged or not.
        previous: the last value that was not flagged.
        median, deviation, low, high, upper: of the window, the deviation from the MAD, `upper` with
            nine tenths below it; up to ten values old, unless `refresh` was just called.
    """

    __slots__ = (
        "_acted",
        "_passed",
        "_refused",
        "_stale",
        "_values",
        "deviation",
        "high",
        "low",
        "median",
        "previous",
        "seen",
        "size",
        "upper",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self.previous: float | None = None
        self.median = self.deviation = self.low = self.high = self.upper = 0.0
        self._values: deque[float] = deque(maxlen=size)
        self._stale = 0
        self._acted = False
        self._refused: list[float] = []
        self._passed: deque[float] = deque(maxlen=8)

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
            self._values.append(value)
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
            self._values.clear()
            self.seen = 0
            for accepted in kept:
                self.admit(accepted)
            self.refresh()

    def refresh(self) -> None:
        """Bring what is known of the window up to date."""
        if self._stale:
            self._stale = 0
            ordered = sorted(self._values)
            self.low, self.high = ordered[0], ordered[-1]
            self.upper = ordered[9 * (len(ordered) - 1) // 10]
            self.median = median_of(ordered)
            self.deviation = MAD_TO_SIGMA * mad_of(ordered)

    def reach(self, options: AnomalyConfig, sure: float, ranges: float) -> float:
        """How far from the median a value must be to be beyond doubt."""
        apart = self.high - self.low
        early = len(self._values) < options.guard_after
        odd = [*self._passed, *self._refused] if early else self._passed
        if odd:
            apart = max(self.high, *odd) - min(self.low, *odd)
        if early:
            return max(_FEW, ranges, _FEWER / self.seen) * apart
        return max(sure * options.guard * self.deviation, ranges * apart)

    def forget(self) -> None:
        """The run went back: what is normal is the best guess of what comes next."""
        self._refused.clear()
        self._acted = False
        if self._values:
            self.refresh()
            self.previous = self.median

    def resized(self, size: int) -> Self:
        """The same past in a window of another size."""
        track = type(self)(size)
        for value in list(self._values)[-size:]:
            track.admit(value)
        track.refresh()
        track.seen, track.previous = self.seen, self.previous
        return track

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        return {
            "size": self.size,
            "previous": self.previous,
            "values": list(self._values),
            "known": [self.median, self.deviation, self.low, self.high, self.upper],
            "seen": self.seen,
            "stale": self._stale,
            "refused": list(self._refused),
            "acted": self._acted,
            "passed": list(self._passed),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._values = deque(map(float, state["values"]), self.size)
        self.previous = None if state["previous"] is None else float(state["previous"])
        known = map(float, state["known"])
        self.median, self.deviation, self.low, self.high, self.upper = known
        self.seen, self._stale = int(state["seen"]), int(state["stale"])
        self._refused = [float(value) for value in state["refused"]]
        self._acted = bool(state["acted"])
        self._passed = deque(map(float, state["passed"]), 8)


class Level(Track):
    """A metric that learning moves: its spread says how far it has come, not how noisy it is.

    Attributes:
        short: the median of the last 15 values: where it is now; up to ten values old.
        jitter: the deviation of the values from where it was just before each of them. That of
            independent values is their own; that of a straight line is next to nothing.
    """

    __slots__ = ("_apart", "jitter", "short")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.short = self.jitter = 0.0
        self._apart: deque[float] = deque(maxlen=size)

    def admit(self, value: float) -> None:
        """Take in a value that is not flagged."""
        if len(self._values) >= _SHORT and -LARGEST < value < LARGEST:
            self._apart.append(value - self.short)
        Track.admit(self, value)  # super() is a call more, at each step

    def refresh(self) -> None:
        """Bring what is known of the window up to date."""
        if not self._stale:
            return
        super().refresh()
        self.short = median_of(sorted(list(self._values)[-_SHORT:]))
        self.jitter = self.deviation
        if len(self._apart) >= _SHORT:
            self.jitter = MAD_TO_SIGMA * mad_of(sorted(self._apart))

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        level = {"level": [self.short, self.jitter], "apart": list(self._apart)}
        return {**super().state_dict(), **level}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        super().load_state_dict(state)
        self.short, self.jitter = map(float, state["level"])
        self._apart = deque(map(float, state["apart"]), self.size)


def as_float(value: Any) -> float | None:
    """A metric as a number, 0-d tensors and arrays too; None for what is none."""
    if type(value) is float:
        return value
    try:
        item = value.item() if hasattr(value, "item") else value
        return None if isinstance(item, str) else float(item)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None

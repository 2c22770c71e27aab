"""What is normal lately: a sliding window with exact statistics, and scores against it.

The gateway asks it which latency and rating are normal for a mode; training, which reward, loss
and KL are.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from itertools import islice
from typing import Any, Final

_LARGEST: Final = 1e150
"""Values must stay below this in magnitude, so that their squares, summed, stay finite."""

_LOST: Final = 2.0**-16
"""Recompute once the spread has shrunk to this share of its largest: 16 of 53 bits are gone."""

MAD_TO_SIGMA: Final = 1.4826
"""1 / Phi^-1(3/4): makes the MAD of normal data estimate its standard deviation."""


class Window:
    """The last `size` values with their mean, spread and order, kept as values come and go.

    With K a recent mean and d = x - K, two running sums S1 = sum d and S2 = sum d**2 give

        mean = K + S1 / n        variance = (S2 - S1**2 / n) / n

    Adding and removing alone drifts: one 1e12 that has come and gone leaves garbage, even a
    negative variance. So K, S1 and S2 are computed afresh, exactly (`math.fsum`), at every wrap
    (each `size` pushes), and at once when the spread has shrunk so far below its peak since then
    that the digits are lost. Guaranteed: the variance is never negative; its relative error is
    below size * 3e-11 at any time and below 1e-12 just after a wrap; equal values give exactly
    0. A push costs O(1) amortized. Differences below 1e-150, whose squares vanish, count as none.

    The first call of `median`, `mad` or `percentile` sorts; from then on the order is kept by
    bisection, and each call costs O(log n).

    Args:
        size: how many values count, >= 1.
    """

    __slots__ = ("_k", "_m2", "_peak", "_s1", "_s2", "_since", "_sorted", "_values", "size")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a window holds at least one value, got size={size}")
        self.size = size
        self._values: deque[float] = deque(maxlen=size)
        self._sorted: list[float] | None = None
        self._k = self._s1 = self._s2 = 0.0
        self._m2 = 0.0  # n * variance
        self._peak = 0.0  # the largest S2 since the last exact recomputation
        self._since = 0  # pushes since then

    def push(self, x: float) -> None:
        """Take in `x`; the oldest value leaves once there are `size`.

        Raises:
            ValueError: `x` is NaN, infinite or 1e150 and more in magnitude; nothing has changed.
        """
        if not -_LARGEST < x < _LARGEST:
            raise ValueError(f"a window takes finite numbers below {_LARGEST:g}, got {x!r}")
        values = self._values
        d = x - self._k
        s1, s2 = self._s1 + d, self._s2 + d * d
        full = len(values) == self.size
        if full:
            old = values[0]
            d = old - self._k
            s1 -= d
            s2 -= d * d
        if self._sorted is not None:
            if full:
                del self._sorted[bisect_left(self._sorted, old)]
            insort(self._sorted, x)
        values.append(x)
        self._s1, self._s2 = s1, s2
        self._m2 = s2 - s1 * s1 / len(values)
        self._peak = max(self._peak, s2)
        self._since += 1
        if self._since >= self.size or self._m2 < self._peak * _LOST:
            self._recompute()

    def _recompute(self) -> None:
        values = self._values
        n = len(values)
        self._k = k = math.fsum(values) / n
        shifted = [x - k for x in values]
        self._s1 = math.fsum(shifted)
        self._s2 = self._peak = math.fsum([d * d for d in shifted])
        self._m2 = max(0.0, self._s2 - self._s1 * self._s1 / n)
        self._since = 0

    @property
    def count(self) -> int:
        """How many values there are, at most `size`."""
        return len(self._values)

    @property
    def values(self) -> list[float]:
        """A copy of the values, oldest first."""
        return list(self._values)

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0.0 while empty."""
        return self._k + self._s1 / len(self._values) if self._values else 0.0

    @property
    def variance(self) -> float:
        """The population variance (divides by n); 0.0 while empty."""
        return self._m2 / len(self._values) if self._values else 0.0

    @property
    def std(self) -> float:
        """The population standard deviation (divides by n)."""
        return math.sqrt(self.variance)

    @property
    def sample_std(self) -> float:
        """The sample standard deviation (divides by n - 1); 0.0 below two values."""
        n = len(self._values)
        return math.sqrt(self._m2 / (n - 1)) if n > 1 else 0.0

    def percentile(self, p: float) -> float:
        """The value below which `p` per cent lie, between ranks linearly; 0.0 while empty.

        Raises:
            ValueError: `p` outside 0..100.
        """
        if not 0.0 <= p <= 100.0:
            raise ValueError(f"a percentile lies within 0..100, got {p}")
        return percentile_of(self._order(), p)

    def median(self) -> float:
        """The middle value, or the mean of the two middle ones; 0.0 while empty."""
        return median_of(self._order())

    def mad(self) -> float:
        """The median absolute deviation from the median; 0.0 while empty."""
        return mad_of(self._order())

    def _order(self) -> list[float]:
        if self._sorted is None:
            self._sorted = sorted(self._values)
        return self._sorted

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types: a window loaded from it continues bit for bit."""
        return {
            "size": self.size,
            "values": self.values,
            "sums": [self._k, self._s1, self._s2, self._m2, self._peak],
            "since": self._since,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Become the window that `state` was taken from; of another size, keep its newest values.

        Raises:
            KeyError, TypeError, ValueError: not such a state; nothing has changed.
        """
        fresh = Window(self.size)
        for x in islice(state["values"], max(0, len(state["values"]) - self.size), None):
            fresh.push(float(x))
        if state["size"] == self.size:
            k, s1, s2, m2, peak = map(float, state["sums"])
            if not (all(map(math.isfinite, (k, s1, s2, m2, peak))) and m2 >= 0.0):
                raise ValueError("the sums of a window's state are finite numbers")
            fresh._k, fresh._s1, fresh._s2, fresh._m2, fresh._peak = k, s1, s2, m2, peak
            fresh._since = int(state["since"])
        for name in Window.__slots__:
            setattr(self, name, getattr(fresh, name))


def percentile_of(ordered: list[float], p: float) -> float:
    """The value below which `p` per cent of sorted values lie, between ranks; 0.0 of none."""
    if not ordered:
        return 0.0
    rank = (len(ordered) - 1) * p / 100.0
    low = int(rank)
    if rank == low:
        return ordered[low]
    a, b = ordered[low], ordered[low + 1]
    return min(a + (b - a) * (rank - low), b)  # rounding must not pass b


def median_of(ordered: list[float]) -> float:
    """The middle of sorted values, or the mean of the two in the middle; 0.0 of none."""
    n = len(ordered)
    if n % 2:
        return ordered[n // 2]
    return (ordered[n // 2 - 1] + ordered[n // 2]) / 2.0 if n else 0.0


def mad_of(ordered: list[float]) -> float:
    """The median absolute deviation of sorted values from their median, in O(log n); 0.0 of none.

    Seen from the median, the values below and those above are two sorted runs of deviations. The
    nearer half of all is the nearest i of those below and the nearest j above: bisect for i.
    """
    if not ordered:
        return 0.0
    n, centre = len(ordered), median_of(ordered)
    half = (n + 1) // 2
    middle = bisect_left(ordered, centre)
    low, high = max(0, half - (n - middle)), min(middle, half)
    while low < high:
        i = (low + high) // 2
        if centre - ordered[middle - 1 - i] < ordered[middle + half - 1 - i] - centre:
            low = i + 1  # the next one below is nearer than the last one taken above
        else:
            high = i
    first, last = middle - low, middle + half - low  # the nearer half is ordered[first:last]
    inside = max(centre - ordered[first], ordered[last - 1] - centre)
    if n % 2:
        return inside
    before = centre - ordered[first - 1] if first else math.inf
    after = ordered[last] - centre if last < n else math.inf
    return (inside + min(before, after)) / 2.0


class Normalizer:
    """How unusual a value is, against a sliding window of its predecessors.

    Args:
        window: the window, or its size.
        std_floor: smallest spread to divide by, in the values' own unit, > 0.
        min_count: fewest values before anything is called an outlier.
    """

    __slots__ = ("min_count", "std_floor", "window")

    def __init__(
        self, window: Window | int, *, std_floor: float = 1e-8, min_count: int = 20
    ) -> None:
        if not std_floor > 0.0:
            raise ValueError(f"std_floor must be above 0, got {std_floor}")
        self.window = Window(window) if isinstance(window, int) else window
        self.std_floor = std_floor
        self.min_count = min_count

    def normalize(self, x: float, *, update: bool = True) -> float:
        """The z-score `(x - mean) / max(std, std_floor)`, population std.

        With `update` the window takes `x` in first, so the first value scores 0.0 and none scores
        beyond sqrt(n - 1); without, `x` is judged by what came before and leaves no trace.

        Raises:
            ValueError: `x` is not finite (see `Window.push`); nothing has changed.
        """
        window = self.window
        if update:
            window.push(x)
        elif not -_LARGEST < x < _LARGEST:
            raise ValueError(f"only finite numbers below {_LARGEST:g} have a score, got {x!r}")
        if not window.count:
            return 0.0
        return (x - window.mean) / max(window.std, self.std_floor)

    def spread(self) -> float:
        """A standard deviation that outliers hardly move: `max(1.4826 * MAD, std_floor)`."""
        return max(MAD_TO_SIGMA * self.window.mad(), self.std_floor)

    def is_outlier(self, x: float, k: float) -> bool:
        """Whether `|x - median| > k * spread()`; False below `min_count` values, True for NaN."""
        if self.window.count < self.min_count:
            return False
        return not abs(x - self.window.median()) <= k * self.spread()

    def get_stats(self) -> dict[str, float]:
        """`mean`, `std` (population) and `count` of the window."""
        return {"mean": self.window.mean, "std": self.window.std, "count": self.window.count}

    def state_dict(self) -> dict[str, Any]:
        """The window's state, in JSON types."""
        return self.window.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state`, see `Window.load_state_dict`."""
        self.window.load_state_dict(state)

"""Which time to the first token is normal for a mode, and which is slow."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from gateway.primitives.normalization import MAD_TO_SIGMA, mad_of, median_of, percentile_of

_RECENT: Final = 20
"""How many of the latest answers health looks at."""

_REFRESH: Final = 10
"""The limit moves slowly: it is worked out anew at every tenth value (sorting 200 costs 10 us)."""

_LONGEST_S: Final = 1e12
"""A time beyond this is none, and nothing to reckon with."""

_LEAST_SPREAD: Final = 0.1
"""Share of the median: times that hardly differ do not make a tenth more look slow."""


class _Latencies:
    """One mode's first-token times: the latest, and which of the very latest were slow."""

    __slots__ = ("heard", "limit_s", "recent", "times")

    def __init__(self, window: int) -> None:
        self.times: deque[float] = deque(maxlen=window)
        self.recent: deque[bool] = deque(maxlen=_RECENT)
        self.limit_s = math.inf
        self.heard = 0


class LatencyDetector:
    """Hears times to the first token, in seconds, and knows slow ones by median and MAD.

    A time is slow beyond `median + k * max(1.4826 * MAD, median / 10)` of the last `window` times
    of its mode. Neither a few hangs nor a heavy tail moves that limit much; a lasting change of
    level becomes the new normal once it fills half the window. Times that were slow are heard too.

    Args:
        window: how many times are remembered for each mode.
        k: how many robust standard deviations above the median are still normal.
        min_count: below this many times nothing is slow.
    """

    def __init__(self, window: int = 200, *, k: float = 5.0, min_count: int = 20) -> None:
        self._window = window
        self._k = k
        self._min_count = min_count
        self._modes: dict[str, _Latencies] = {}

    def hear(self, mode: str, value: float) -> None:
        """Take in a time to the first token in seconds, judged by what was normal before it.

        Raises:
            ValueError: a time that is negative or not finite; nothing has changed.
        """
        if not 0.0 <= value < _LONGEST_S:
            raise ValueError(f"a latency is a finite number of seconds >= 0, got {value!r}")
        known = self._modes.get(mode)
        if known is None:
            known = self._modes[mode] = _Latencies(self._window)
        known.recent.append(value > known.limit_s)
        known.times.append(value)
        known.heard += 1
        if known.heard >= self._min_count and (known.heard - self._min_count) % _REFRESH == 0:
            known.limit_s = self._limit(sorted(known.times))

    def _limit(self, ordered: list[float]) -> float:
        median = median_of(ordered)
        return median + self._k * max(MAD_TO_SIGMA * mad_of(ordered), _LEAST_SPREAD * median)

    def slow_s(self, mode: str) -> float:
        """Seconds beyond which a first token of `mode` is slow; inf while too few are known."""
        known = self._modes.get(mode)
        return known.limit_s if known else math.inf

    def is_slow(self, mode: str, seconds: float) -> bool:
        """Whether a first token after `seconds`, or none yet, is slow for `mode`."""
        return seconds > self.slow_s(mode)

    def normal(self, mode: str) -> dict[str, float]:
        """`count`, `median_s` and `p95_s` of the times remembered."""
        known = self._modes.get(mode)
        ordered = sorted(known.times) if known else []
        return {
            "count": len(ordered),
            "median_s": median_of(ordered),
            "p95_s": percentile_of(ordered, 95.0),
        }

    def health(self, mode: str) -> float:
        """The share of the last 20 answers that were not slow; 1.0 while nothing is known."""
        known = self._modes.get(mode)
        return 1.0 - sum(known.recent) / len(known.recent) if known else 1.0

"""How a value moves from one number to another as progress `t` goes from 0 to 1.

One `Schedule` serves a recovery ramp, a TTL glide and a fault that creeps in, and, in training,
the entropy coefficient, the learning rate and the clip range. `growth` and `backoff` are the same
idea counted in attempts instead of progress.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

Curve = Callable[[float, float, float], float]


def _linear(start: float, end: float, x: float) -> float:
    return start + (end - start) * x


def _cosine(start: float, end: float, x: float) -> float:
    share = (1.0 + math.cos(math.pi * x)) / 2.0
    return start * share + end * (1.0 - share)  # halfway this is exactly the mean


def _exponential(start: float, end: float, x: float) -> float:
    return float(start ** (1.0 - x) * end**x)  # the ratio itself could overflow


_CURVES: Final[dict[str, Curve]] = {
    "linear": _linear,
    "cosine": _cosine,
    "exponential": _exponential,
}
_NAMES: Final = ("constant", *_CURVES)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A value for every `t` in 0..1: points `(t, value)` and the curve that joins neighbours.

    Immutable, comparable, picklable; call it with `t`. Between two neighbours, with x the share of
    the way from the first (value s) to the second (value e):

        linear        s + (e - s) * x
        cosine        e + (s - e) * (1 + cos(pi * x)) / 2
        exponential   s * (e / s) ** x

    `t` is clamped to 0..1; before the first point the first value holds, after the last the last.
    The value at each point is exact, and no value leaves the range of its two neighbours. Two
    points at the same `t` make a step, where the later one holds.

    Build one with `constant`, `linear`, `cosine`, `exponential`, `piecewise` or `named`.

    Raises:
        ValueError: no points, a `t` outside 0..1 or out of order, a value that is not finite, an
            unknown curve, an exponential value that is not positive; on a call, a `t` of NaN.
    """

    points: tuple[tuple[float, float], ...]
    curve: str = "linear"

    def __post_init__(self) -> None:
        if self.curve not in _CURVES:
            raise ValueError(f"unknown curve {self.curve!r}; there are {', '.join(_CURVES)}")
        if not self.points:
            raise ValueError("a schedule needs at least one point (t, value)")
        times = [t for t, _ in self.points]
        if not all(0.0 <= t <= 1.0 for t in times) or times != sorted(times):
            raise ValueError(f"t must rise from 0 to 1, got {times}")
        values = [value for _, value in self.points]
        # The spread is checked too: the curves compute it, and it can overflow on its own.
        if not math.isfinite(max(values) - min(values)) or not all(map(math.isfinite, values)):
            raise ValueError(f"values must be finite, got {values}")
        if self.curve == "exponential" and min(values) <= 0.0:
            raise ValueError(f"an exponential schedule needs values above 0, got {values}")

    def __call__(self, t: float) -> float:
        """Return the value at progress `t`."""
        if t != t:  # noqa: PLR0124 - NaN is the one number unequal to itself
            raise ValueError("t must be a number, got NaN")
        points = self.points
        after = bisect_right(points, (t, math.inf))
        if after == 0:
            return points[0][1]
        before, start = points[after - 1]
        if after == len(points) or t == before:
            return start
        at, end = points[after]
        value = _CURVES[self.curve](start, end, (t - before) / (at - before))
        low, high = (start, end) if start <= end else (end, start)
        return min(max(value, low), high)  # rounding must not step outside

    def reversed(self) -> Schedule:
        """The same way walked backwards: `s.reversed()(t) == s(1 - t)`, steps apart."""
        return Schedule(tuple((1.0 - t, value) for t, value in self.points[::-1]), self.curve)

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same `value` throughout."""
        return cls(((0.0, float(value)),))

    @classmethod
    def linear(cls, start: float, end: float) -> Schedule:
        """A straight line from `start` to `end`."""
        return cls(((0.0, float(start)), (1.0, float(end))))

    @classmethod
    def cosine(cls, start: float, end: float) -> Schedule:
        """Half a cosine from `start` to `end`: slow, fast, slow (SGDR, arXiv:1608.03983, eq. 5)."""
        return cls(((0.0, float(start)), (1.0, float(end))), "cosine")

    @classmethod
    def exponential(cls, start: float, end: float) -> Schedule:
        """The same ratio in equal steps; `start` and `end` above 0."""
        return cls(((0.0, float(start)), (1.0, float(end))), "exponential")

    @classmethod
    def piecewise(cls, points: Iterable[tuple[float, float]], curve: str = "linear") -> Schedule:
        """Through `points` `(t, value)`, `t` rising within 0..1, joined by `curve`."""
        return cls(tuple((float(t), float(value)) for t, value in points), curve)

    @classmethod
    def named(cls, name: str, start: float, end: float) -> Schedule:
        """The schedule a configuration names; `constant` keeps `start`.

        Raises:
            ValueError: no such name; the message lists those there are.
        """
        if name not in _NAMES:
            raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(_NAMES)}")
        if name == "constant":
            return cls.constant(start)
        return cls(((0.0, float(start)), (1.0, float(end))), name)


def growth(attempt: int, *, base: float, factor: float = 2.0, cap: float) -> float:
    """What waits or holds grow to: `min(cap, base * factor ** attempt)`, never an overflow.

    Args:
        attempt: 0 for the first, which gets `base`.
        base: > 0, in the caller's unit.
        factor: >= 1; 1 never grows.
        cap: >= `base`.

    Raises:
        ValueError: an argument outside its range.
    """
    if attempt < 0 or not 0.0 < base <= cap < math.inf or not 1.0 <= factor < math.inf:
        raise ValueError(
            "growth needs attempt >= 0, 0 < base <= cap and factor >= 1, "
            f"got attempt={attempt}, base={base}, cap={cap}, factor={factor}"
        )
    if factor > 1.0 and attempt >= (math.log(cap) - math.log(base)) / math.log(factor):
        return cap
    return min(cap, float(base * factor**attempt))


def backoff(
    attempt: int, *, base: float, factor: float = 2.0, cap: float, rng: random.Random
) -> float:
    """Seconds to wait before trying again: evenly drawn from 0 to `growth(attempt)`.

    This is "full jitter" (AWS Architecture Blog, *Exponential Backoff And Jitter*): callers that
    failed together do not come back together. `rng` is passed in so that a run can be repeated.
    """
    return rng.uniform(0.0, growth(attempt, base=base, factor=factor, cap=cap))

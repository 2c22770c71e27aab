"""How fast something grows, told robustly, with an interval for what chance may do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_Z = 1.96  # 95 %


class Slope(NamedTuple):
    """Growth per hour: the estimate, and the interval that holds it with 95 % confidence."""

    per_h: float
    low: float
    high: float


def floors(
    at_s: Sequence[float], values: Sequence[float], every_s: float
) -> tuple[list[float], list[float]]:
    """The least of each block of `every_s`: what is there when little is under way. A leak raises
    the floor, load only what stands on it. And neighbouring samples are no independent witnesses.
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for at, value in zip(at_s, values, strict=True):
        blocks.setdefault(int(at // every_s), []).append((at, value))
    return (
        [statistics.fmean(at for at, _ in block) for block in blocks.values()],
        [min(value for _, value in block) for block in blocks.values()],
    )


def theil_sen(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """The median of the slopes between all pairs, with Sen's interval.

    Outliers up to 29 % of the points do not move it (Sen 1968). The interval comes from the normal
    approximation to Kendall's S, with its correction for ties.

    Raises:
        ValueError: fewer than four points.
    """
    count = len(at_s)
    if count < 4:
        raise ValueError("a slope needs four points")
    slopes = sorted(
        (values[j] - values[i]) / (at_s[j] - at_s[i]) * 3600.0
        for i in range(count)
        for j in range(i + 1, count)
    )
    ties = [values.count(value) for value in set(values)]
    variance = (_spread(count) - sum(map(_spread, ties))) / 18.0
    reach = _Z * math.sqrt(variance)
    low = max(0, round((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, round((len(slopes) + reach) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])


def _spread(count: int) -> float:
    return count * (count - 1) * (2 * count + 5)

"""Histograms with logarithmic buckets: percentiles of any spread in bounded memory, and they add.

Bucket b holds the times from 2**(b/16) to 2**((b+1)/16) units of 0.1 ms. Its geometric middle is at
most a factor 2**(1/32) from any of them, so a percentile is wrong by 2.2 % at most, whatever it is.
Counts are whole numbers: adding histograms in any order and grouping gives the same one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

Counts = dict[int, int]
"""How many values each bucket has; empty buckets are not there."""

ERROR: Final = 2 ** (1 / 32) - 1
"""Largest relative error of a percentile, for values from 0.1 ms to a day."""

_PER_OCTAVE: Final = 16
_UNIT_S: Final = 1e-4
_LARGEST_S: Final = 86_400.0
_STARTS: Final = tuple(
    _UNIT_S * math.exp2(index / _PER_OCTAVE)
    for index in range(1, math.floor(math.log2(_LARGEST_S / _UNIT_S) * _PER_OCTAVE) + 1)
)

# Where the buckets after the first begin is known, and to search there costs a third of a logarithm
# in Python: counting is on the path of every request.
bucket: Final[Callable[[float], int]] = partial(bisect_right, _STARTS)
"""The bucket of a time; what lies outside 0.1 ms to a day counts as the nearest of them."""


def middle_s(index: int) -> float:
    """The time a bucket stands for."""
    return _UNIT_S * math.exp2((index + 0.5) / _PER_OCTAVE)


def percentiles(counts: Mapping[int, int], shares: Sequence[float]) -> list[float | None]:
    """The times that these shares of the values do not exceed (nearest rank); None of nothing.

    Args:
        counts: the histogram.
        shares: from 0 to 1, ascending.
    """
    total = sum(counts.values())
    if not total:
        return [None] * len(shares)
    ranks = [max(1, math.ceil(share * total - 1e-9)) for share in shares]
    found: list[float | None] = []
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(middle_s(index))
    return found


def add(into: Counts, counts: Mapping[int, int]) -> None:
    """Add one histogram to another."""
    for index, count in counts.items():
        into[index] = into.get(index, 0) + count


def total(histograms: Iterable[Mapping[int, int]]) -> Counts:
    """Several histograms as one."""
    together: Counts = {}
    for counts in histograms:
        add(together, counts)
    return together

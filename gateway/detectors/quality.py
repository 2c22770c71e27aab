"""How good people find the answers of a mode, from their ratings."""

from __future__ import annotations

from typing import Final

from gateway.primitives.normalization import Window

_WORST: Final = 1.0
_BEST: Final = 5.0


class QualityDetector:
    """Hears ratings from 1 (bad) to 5 (good).

    Health is the mean of the last `window` ratings of a mode and `prior` imagined best ones,
    scaled to 0..1: `(sum + 5 * prior) / (count + prior)` with 1 -> 0 and 5 -> 1. So one bad rating
    says little and fifty say much.

    Args:
        window: how many ratings are remembered for each mode.
        prior: how many ratings of 5 a mode starts with, > 0.
    """

    def __init__(self, window: int = 300, *, prior: float = 10.0) -> None:
        if not prior > 0.0:
            raise ValueError(f"prior must be above 0, got {prior}")
        self._window = window
        self._prior = prior
        self._modes: dict[str, Window] = {}

    def hear(self, mode: str, value: float) -> None:
        """Take in one rating.

        Raises:
            ValueError: a rating outside 1..5; nothing has changed.
        """
        if not _WORST <= value <= _BEST:
            raise ValueError(f"a rating is a number from 1 to 5, got {value!r}")
        ratings = self._modes.get(mode)
        if ratings is None:
            ratings = self._modes[mode] = Window(self._window)
        ratings.push(value)

    def normal(self, mode: str) -> dict[str, float]:
        """`count`, `mean` and `std` (population) of the ratings remembered."""
        ratings = self._modes.get(mode)
        if ratings is None:
            return {"count": 0, "mean": 0.0, "std": 0.0}
        return {"count": ratings.count, "mean": ratings.mean, "std": ratings.std}

    def health(self, mode: str) -> float:
        """From 0 (all 1) to 1 (all 5, or none heard)."""
        ratings = self._modes.get(mode)
        if ratings is None:
            return 1.0
        lost = max(0.0, _BEST - ratings.mean) / (_BEST - _WORST) * ratings.count
        return 1.0 - lost / (ratings.count + self._prior)

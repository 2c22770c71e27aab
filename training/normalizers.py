"""Rewards in a scale one can learn from. Only `window_z` moves the mean, and it is for watching."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.primitives.normalization import Normalizer, Window

_CLIP = 10.0
_LEAST = 1e-8
_LARGEST = 1e150  # beyond, squares are not finite


class RewardNormalizer(Protocol):
    """One reward in, one reward out."""

    def __call__(self, reward: float, *, done: bool = False) -> float:
        """The normalized reward; a reward that is not finite gives 0."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        ...


class WindowZ:
    """(r - mean) / std of the last `window` rewards: the owner's. Shifting the mean changes which
    policy is best wherever episodes can end early, so watch it and do not learn from it.
    """

    def __init__(self, window: int = 1000) -> None:
        self._normalizer = Normalizer(window)

    def __call__(self, reward: float, *, done: bool = False) -> float:
        """The z-score."""
        return self._normalizer.normalize(reward) if abs(reward) < _LARGEST else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The window's state."""
        return self._normalizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._normalizer.load_state_dict(dict(state))


class WindowScale:
    """r / std of the last `window` rewards, within ±10: the sign and the zero stay."""

    def __init__(self, window: int = 1000) -> None:
        self._window = Window(window)

    def __call__(self, reward: float, *, done: bool = False) -> float:
        """The scaled reward."""
        if not abs(reward) < _LARGEST:
            return 0.0
        self._window.push(reward)
        std = self._window.std
        return _clip(reward / max(std, _LEAST) if std else reward)

    def state_dict(self) -> dict[str, Any]:
        """The window's state."""
        return self._window.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._window.load_state_dict(dict(state))


class ReturnScale:
    """r / std of discounted returns, within ±10: what Stable-Baselines3 and Gymnasium learn from.

    G <- gamma * G + r runs through an episode and starts again with the next; the deviation is that
    of all G so far (37 details of PPO, nos. 8 and 9).
    """

    def __init__(self, gamma: float = 0.99) -> None:
        self._gamma = gamma
        self._return = 0.0
        self._count, self._mean, self._m2 = 0, 0.0, 0.0

    def __call__(self, reward: float, *, done: bool = False) -> float:
        """The scaled reward."""
        if not abs(reward) < _LARGEST:
            self._return *= 0.0 if done else self._gamma
            return 0.0
        self._return = self._gamma * self._return + reward
        self._count += 1
        delta = self._return - self._mean
        self._mean += delta / self._count
        self._m2 += delta * (self._return - self._mean)
        std = math.sqrt(self._m2 / self._count)
        if done:
            self._return = 0.0
        return _clip(reward / math.sqrt(std * std + _LEAST))

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "return": self._return,
            "count": self._count,
            "mean": self._mean,
            "m2": self._m2,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._return, self._count = float(state["return"]), int(state["count"])
        self._mean, self._m2 = float(state["mean"]), float(state["m2"])


NORMALIZERS: dict[str, Callable[[], RewardNormalizer]] = {
    "window_z": WindowZ,
    "window_scale": WindowScale,
    "return_scale": ReturnScale,
}


def _clip(value: float) -> float:
    return max(-_CLIP, min(_CLIP, value))

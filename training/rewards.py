"""The rewards of a run as its operations report them: normalized, with what is normal lately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.primitives.normalization import Normalizer
from training.config import LearningScheduleConfig
from training.findings import Anomaly
from training.normalizers import NORMALIZERS, RewardNormalizer
from training.tracks import LARGEST, as_float

_NEVER_TAKEN = "outlier"


class Rewards:
    """Adds `normalized_reward`, `reward_mean` and `reward_std` to a step's metrics.

    Args:
        config: the window's size and which normalizer; both may change at any time.

    Attributes:
        normalizer: the sliding window; its `get_stats()` has `mean`, `std` and `count`.
    """

    def __init__(self, config: LearningScheduleConfig) -> None:
        self.normalizer = Normalizer(config.reward_norm_window)
        self._name = "window_z"
        self._scale: RewardNormalizer | None = None

    def take(
        self, numbers: dict[str, Any], found: list[Anomaly], config: LearningScheduleConfig
    ) -> None:
        """Take in a step's reward, unless it is one to act upon or beyond belief."""
        if self.normalizer.window.size != config.reward_norm_window:
            kept = self.normalizer.state_dict()  # the owner changed it: keep what there is
            self.normalizer = Normalizer(config.reward_norm_window)
            self.normalizer.load_state_dict(kept)
        if self._name != config.reward_normalizer:
            self._choose(config.reward_normalizer)
        normalizer, score = self.normalizer, 0.0
        window, reward = normalizer.window, as_float(numbers.get("reward"))
        if reward is not None and not -LARGEST < reward < LARGEST:
            reward = None  # none this time, or none that can be one
        odd = found and any(
            each.metric == "reward" and (each.acts or each.kind == _NEVER_TAKEN) for each in found
        )
        if reward is not None and not odd:
            window.push(reward)
        mean, std = window.mean, window.std
        if reward is not None and window.count:
            if self._scale is None:
                score = (reward - mean) / max(std, normalizer.std_floor)
            elif not odd:
                score = self._scale(reward)
        numbers["normalized_reward"] = score
        numbers["reward_mean"], numbers["reward_std"] = mean, std

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        scale = self._scale.state_dict() if self._scale is not None else None
        return {"window": self.normalizer.state_dict(), "name": self._name, "scale": scale}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.normalizer.load_state_dict(state["window"])
        self._choose(str(state["name"]))
        if self._scale is not None:
            self._scale.load_state_dict(state["scale"])

    def _choose(self, name: str) -> None:
        self._name = name
        # The owner's own is the window that is kept anyway.
        self._scale = NORMALIZERS[name]() if name != "window_z" else None

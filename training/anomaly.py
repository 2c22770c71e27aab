"""What is abnormal in a training run: pure arithmetic on the metrics of one step after another.

A spike is `cur - prev >= (ratio - 1) * max(|prev|, floor)`, a drop is
`prev - cur >= (1 - ratio) * max(|prev|, floor)`. For positive values and a floor of 0 these are the
guide's "twice the previous" and "half of the previous"; they stay right for negative values and
near zero. The floor is a few robust deviations of the recent past, so that noise is no anomaly: the
literal rule fires on 12 % of healthy PPO updates, and a run that rolls back that often never gets
through 500 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.primitives.normalization import MAD_TO_SIGMA, Window
from training.config import AnomalyConfig, CheckpointConfig

# To act, a change must stand out this many times more than to be reported: on healthy runs that is
# below one false rollback in ten thousand updates.
_SURE = 3.0
# Rewards are smoothed over this many updates before progress is judged.
_SMOOTH = 20
_KL_FACTOR = 1.5
_EV_FLOOR, _EV_PATIENCE = -1.0, 10
_ENTROPY_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something is wrong with this step.

    Attributes:
        kind: `non_finite`, `loss_spike`, `reward_drop`, `progress_lost`, `kl`, `entropy`,
            `grad_norm` or `explained_variance`.
        metric: its name in the caller's metrics.
        step: when.
        value: what it was.
        reference: what it was held against.
        acts: whether it is sure enough to roll back for.
    """

    kind: str
    metric: str
    step: int
    value: float
    reference: float
    acts: bool

    def __str__(self) -> str:
        told = {
            "non_finite": "is not finite",
            "loss_spike": f"jumped from {self.reference:.4g}",
            "reward_drop": f"fell from {self.reference:.4g}",
            "progress_lost": f"lost half of what was learned, from {self.reference:.4g}",
            "kl": f"stays above {self.reference:.4g}",
            "entropy": f"collapsed from {self.reference:.4g}",
            "grad_norm": f"stands out from {self.reference:.4g}",
            "explained_variance": f"stays below {self.reference:.4g}",
        }[self.kind]
        return f"step {self.step}: {self.metric} {self.value:.4g} {told}"


class AnomalyDetector:
    """Looks at every step's metrics.

    Args:
        anomaly, checkpoint: read anew at every step; they hold the thresholds.
    """

    def __init__(
        self,
        anomaly: Callable[[], AnomalyConfig],
        checkpoint: Callable[[], CheckpointConfig],
    ) -> None:
        self._anomaly = anomaly
        self._checkpoint = checkpoint
        self._previous: dict[str, float] = {}
        self._windows: dict[str, Window] = {}
        self._smooth = Window(_SMOOTH)
        self._base = self._high = math.nan
        self._counts: dict[str, int] = {}
        self._first_entropy = math.nan

    def observe(self, step: int, metrics: Mapping[str, Any]) -> list[Anomaly]:
        """Judge one step; the gravest anomaly comes first, those that act before those that warn.

        A flagged value does not become part of what is normal.
        """
        found: list[Anomaly] = []
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            number = _as_float(value)
            if number is None:
                continue
            if math.isfinite(number):
                numbers[name] = number
            else:  # NaN compares false with everything: it must be looked for first
                found.append(Anomaly("non_finite", name, step, number, math.nan, acts=True))
        if "loss" in numbers:
            found += self._jump("loss_spike", "loss", step, numbers["loss"])
        if "reward" in numbers:
            found += self._jump("reward_drop", "reward", step, numbers["reward"])
            if not found:
                found += self._progress(step, numbers["reward"])
        found += self._warnings(step, numbers)
        return sorted(found, key=lambda anomaly: not anomaly.acts)

    def forget(self) -> None:
        """The run went back to an earlier state: the last step says nothing of the next one."""
        self._previous = {
            name: window.median() for name, window in self._windows.items() if window.count
        }
        self._counts.clear()
        self._smooth = Window(_SMOOTH)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; NaN is None."""
        return {
            "previous": dict(self._previous),
            "windows": {name: window.state_dict() for name, window in self._windows.items()},
            "smooth": self._smooth.state_dict(),
            "marks": [
                None if math.isnan(mark) else mark
                for mark in (self._base, self._high, self._first_entropy)
            ],
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._previous = {name: float(value) for name, value in state["previous"].items()}
        self._windows = {}
        for name, kept in state["windows"].items():
            self._windows[name] = Window(int(kept["size"]))
            self._windows[name].load_state_dict(kept)
        self._smooth.load_state_dict(state["smooth"])
        self._base, self._high, self._first_entropy = (
            math.nan if mark is None else float(mark) for mark in state["marks"]
        )
        self._counts = {name: int(count) for name, count in state["counts"].items()}

    # -- inside ---------------------------------------------------------------------------------

    def _jump(self, kind: str, metric: str, step: int, value: float) -> list[Anomaly]:
        """The owner's rules, made safe for signs, zeros and noise."""
        options, limits = self._anomaly(), self._checkpoint()
        previous, window = self._previous.get(metric), self._window(metric)
        if previous is not None:
            if kind == "loss_spike":
                worse, share = value - previous, limits.loss_spike_threshold - 1.0
            else:
                worse, share = previous - value, 1.0 - limits.reward_drop_threshold
            # The literal rule first: a deviation costs more than all the rest of a calm step.
            if worse > 0.0 and worse >= share * abs(previous):
                if options.profile == "spec":
                    return [Anomaly(kind, metric, step, value, previous, acts=True)]
                deviation = self._deviation(window)
                if worse >= share * options.guard * deviation:
                    sure = self._stands_out(window, value, deviation)
                    return [Anomaly(kind, metric, step, value, previous, acts=sure)]
        self._previous[metric] = value
        _push(window, value)
        return []

    def _stands_out(self, window: Window, value: float, deviation: float) -> bool:
        """Whether a value is far from the whole recent past, not from its predecessor alone."""
        far = _SURE * self._anomaly().guard * deviation
        return abs(value - window.median()) > far

    def _progress(self, step: int, reward: float) -> list[Anomaly]:
        """At least half of what was learned is gone, for a while (`progress_lost`).

        Untouched by scale and sign: rewards may be negative throughout.
        """
        options = self._anomaly()
        _push(self._smooth, reward)
        if self._smooth.count < _SMOOTH:
            return []
        smooth = self._smooth.mean
        if math.isnan(self._base):
            self._base = self._high = smooth
        self._high = max(self._high, smooth)
        learned = self._high - self._base
        lost = learned > 0.0 and smooth <= self._high - options.progress_lost * learned
        lost = lost and learned > options.guard * self._deviation(self._window("reward"))
        if not self._patience("progress", holds=lost, patience=options.patience):
            return []
        return [Anomaly("progress_lost", "reward", step, smooth, self._high, acts=True)]

    def _warnings(self, step: int, numbers: Mapping[str, float]) -> list[Anomaly]:
        """What deserves a look, and no rollback."""
        found: list[Anomaly] = []
        options = self._anomaly()

        def warn(kind: str, metric: str, reference: float) -> None:
            found.append(Anomaly(kind, metric, step, numbers[metric], reference, acts=False))

        kl, target = numbers.get("approx_kl"), numbers.get("target_kl", math.inf)
        high = kl is not None and kl > _KL_FACTOR * target
        if self._patience("kl", holds=high, patience=options.patience):
            warn("kl", "approx_kl", _KL_FACTOR * target)
        entropy = numbers.get("entropy")
        if entropy is not None:
            if math.isnan(self._first_entropy):
                self._first_entropy = entropy
            low = self._first_entropy > 0.0 and entropy < _ENTROPY_SHARE * self._first_entropy
            if self._patience("entropy", holds=low, patience=_SMOOTH):
                warn("entropy", "entropy", self._first_entropy)
        grad = numbers.get("grad_norm")
        if grad is not None:
            window = self._window("grad_norm")
            deviation = self._deviation(window)
            if window.count >= options.guard_after and grad > window.median() + 6 * deviation > 0:
                warn("grad_norm", "grad_norm", window.median())
            else:
                _push(window, grad)
        variance = numbers.get("explained_variance")
        low = variance is not None and variance < _EV_FLOOR
        if self._patience("explained_variance", holds=low, patience=_EV_PATIENCE):
            warn("explained_variance", "explained_variance", _EV_FLOOR)
        return found

    def _patience(self, name: str, *, holds: bool, patience: int) -> bool:
        count = self._counts.get(name, 0) + 1 if holds else 0
        self._counts[name] = count
        return count >= patience

    def _window(self, metric: str) -> Window:
        size = self._anomaly().window
        window = self._windows.get(metric)
        if window is None or window.size != size:
            kept = window.values if window is not None else []
            window = self._windows[metric] = Window(size)
            for value in kept[-size:]:
                window.push(value)
        return window

    def _deviation(self, window: Window) -> float:
        """A robust standard deviation; 0 until enough values are known."""
        return MAD_TO_SIGMA * window.mad() if window.count >= self._anomaly().guard_after else 0.0


def _as_float(value: Any) -> float | None:
    """A metric as a number, 0-d tensors too; None for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _push(window: Window, value: float) -> None:
    """Values too large for the window say nothing of what is normal."""
    if abs(value) < 1e150:
        window.push(value)

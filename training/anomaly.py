"""What is abnormal in a training run: pure arithmetic on the metrics of one step after another.

A spike is `cur - prev >= (ratio - 1) * max(|prev|, floor)`, a drop is
`prev - cur >= (1 - ratio) * max(|prev|, floor)`. For positive values and a floor of 0 these are the
guide's "twice the previous" and "half of the previous"; they stay right for negative values and
near zero. The floor is a few robust deviations of the recent past, so that noise is no anomaly: the
literal rule fires on 12 % of healthy PPO updates, and a run that rolls back that often never gets
through 500 steps.

What is reported need not be acted upon. To act, a value must lie far outside of everything seen
lately; or the reward must stay down for a few updates; or half of what was learned must be gone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.config import AnomalyConfig, CheckpointConfig
from training.tracks import Track, as_float

# To act at once, a change must stand out this many times more than to be reported, and this many
# times further than everything seen lately is apart. Losses have heavier tails, and a spike that
# passes needs no rollback; if it does harm, the reward tells.
_SURE, _LOSS_RANGES, _REWARD_RANGES = 3.0, 10.0, 3.0
# A level is known after this many times `guard_after` values: neighbours resemble each other.
_LEVEL_AFTER = 3
# Progress is judged by the median of the last few rewards against a slow mean of these medians.
_MEDIAN_OF, _SLOW = 5, 20
# The standard deviation of a normal value by its mean distance from the median of the last five.
_TO_SIGMA = 1.5
_KL_FACTOR = 1.5
# Two updates in a row that moved the policy this far, and this many times further than any lately,
# did not learn: a learning rate out of hand shows here long before rewards tell.
_KL_LEAST, _KL_TIMES, _KL_PATIENCE = 0.05, 10.0, 2
_EV_FLOOR, _EV_PATIENCE = -1.0, 10
_ENTROPY_SHARE, _ENTROPY_PATIENCE = 0.1, 20
_GRAD_DEVIATIONS = 6.0
# Undefined now and then in healthy runs, by custom: the variance explained of returns that are all
# equal, a target that is not set.
_MAY_BE_UNDEFINED = frozenset({"explained_variance", "target_kl"})


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
        self._tracks: dict[str, Track] = {}
        self._progress = Progress()
        self._counts: dict[str, int] = {}
        self._first_entropy = math.nan

    def observe(self, step: int, metrics: Mapping[str, Any]) -> list[Anomaly]:
        """Judge one step; those that act come before those that warn.

        A flagged value does not become part of what is normal.
        """
        found: list[Anomaly] = []
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            number = value if type(value) is float else as_float(value)
            if number is None:
                continue
            if number - number == 0.0:
                numbers[name] = number
            else:  # NaN compares false with everything: it must be looked for first
                acts = name not in _MAY_BE_UNDEFINED
                found.append(Anomaly("non_finite", name, step, number, math.nan, acts))
        options = self._anomaly()
        loss, reward = numbers.get("loss"), numbers.get("reward")
        if loss is not None:
            ratio = self._checkpoint().loss_spike_threshold
            self._jump(found, options, "loss", step, loss, ratio)
        if reward is not None:
            ratio = self._checkpoint().reward_drop_threshold
            self._fall(found, options, step, reward, ratio)
        if len(numbers) > 2:
            self._warnings(found, options, step, numbers)
        if len(found) > 1:
            found.sort(key=lambda anomaly: not anomaly.acts)
        return found

    def forget(self) -> None:
        """The run went back to an earlier state: the last step says nothing of the next one."""
        for track in self._tracks.values():
            track.forget()
        self._counts.clear()
        self._progress.forget()

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; NaN is None."""
        first = self._first_entropy
        return {
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "progress": self._progress.state_dict(),
            "first_entropy": None if math.isnan(first) else first,
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        tracks = {}
        for name, kept in state["tracks"].items():
            tracks[name] = Track(int(kept["window"]["size"]))
            tracks[name].load_state_dict(kept)
        self._progress.load_state_dict(state["progress"])
        self._tracks = tracks
        first = state["first_entropy"]
        self._first_entropy = math.nan if first is None else float(first)
        self._counts = {name: int(count) for name, count in state["counts"].items()}

    # -- inside ---------------------------------------------------------------------------------

    def _jump(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        metric: str,
        step: int,
        value: float,
        ratio: float,
    ) -> bool:
        """The owner's rule for a loss, made safe for signs, zeros and noise: whether it acts.

        A reward is a loss with the sign reversed.
        """
        track = self._track(metric, options)
        previous = track.previous
        down = metric == "reward"
        if previous is not None:
            if down:
                worse, share = previous - value, 1.0 - ratio
                literal = value <= ratio * previous
            else:
                worse, share = value - previous, ratio - 1.0
                literal = value >= ratio * previous
            if previous <= 0.0:  # the owner's product says nothing here
                literal = worse >= -share * previous
            if literal and worse > 0.0:
                kind = "reward_drop" if down else "loss_spike"
                if options.profile == "spec":
                    found.append(Anomaly(kind, metric, step, value, previous, acts=True))
                    return True
                track.refresh()
                noise = track.deviation if track.seen >= options.guard_after else 0.0
                if worse >= share * options.guard * noise:
                    far = track.median - value if down else value - track.median
                    ranges = _REWARD_RANGES if down else _LOSS_RANGES
                    acts = far > track.reach(options, _SURE, ranges)
                    found.append(Anomaly(kind, metric, step, value, previous, acts))
                    early = track.seen < options.guard_after
                    track.refuse(value, options.guard * noise, acts=acts and not early)
                    return acts
        track.admit(value)
        return False

    def _fall(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        step: int,
        reward: float,
        ratio: float,
    ) -> None:
        """The rule for rewards: one that falls far, one that stays down, one that slides."""
        track = self._track("reward", options)
        acts = self._jump(found, options, "reward", step, reward, ratio)
        if acts or options.profile == "spec":
            return
        low = track.seen >= _LEVEL_AFTER * options.guard_after and reward < track.median
        if low:
            below = track.median - reward
            low = below >= options.guard * track.deviation
            low = low and below >= (1.0 - ratio) * abs(track.median)
        if self._patience("low", holds=low, patience=options.patience):
            found.append(Anomaly("reward_drop", "reward", step, reward, track.median, acts=True))
            return
        high = self._progress.lost(reward, track.deviation, options)
        if self._patience("progress", holds=high is not None, patience=options.patience):
            now = self._progress.now
            found.append(Anomaly("progress_lost", "reward", step, now, high or now, acts=True))

    def _warnings(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        step: int,
        numbers: Mapping[str, float],
    ) -> None:
        """What deserves a look; of these only a policy thrown far off is worth a rollback."""

        def warn(kind: str, metric: str, reference: float) -> None:
            found.append(Anomaly(kind, metric, step, numbers[metric], reference, acts=False))

        kl = numbers.get("approx_kl")
        if kl is not None:
            most = _KL_FACTOR * numbers.get("target_kl", math.inf)
            if self._patience("kl", holds=kl > most, patience=options.patience):
                warn("kl", "approx_kl", most)
            self._thrown_off(found, options, step, kl)
        entropy = numbers.get("entropy")
        if entropy is not None:
            first = self._first_entropy
            if math.isnan(first):
                first = self._first_entropy = entropy
            low = first > 0.0 and entropy < _ENTROPY_SHARE * first
            if self._patience("entropy", holds=low, patience=_ENTROPY_PATIENCE):
                warn("entropy", "entropy", first)
        grad = numbers.get("grad_norm")
        if grad is not None:
            track = self._track("grad_norm", options)
            most = track.median + _GRAD_DEVIATIONS * track.deviation
            if grad > most > 0.0 and track.seen >= options.guard_after:
                warn("grad_norm", "grad_norm", track.median)
                track.refuse(grad, 0.0)
            else:
                track.admit(grad)
        variance = numbers.get("explained_variance")
        if variance is not None:
            low = variance < _EV_FLOOR
            if self._patience("explained_variance", holds=low, patience=_EV_PATIENCE):
                warn("explained_variance", "explained_variance", _EV_FLOOR)

    def _thrown_off(
        self, found: list[Anomaly], options: AnomalyConfig, step: int, kl: float
    ) -> None:
        track = self._track("approx_kl", options)
        known = track.seen >= options.guard_after and options.profile != "spec"
        far = known and kl > max(_KL_LEAST, _KL_TIMES * track.high)
        if far:
            track.refuse(kl, 0.0)
        else:
            track.admit(kl)
        if self._patience("thrown_off", holds=far, patience=_KL_PATIENCE):
            found.append(Anomaly("kl", "approx_kl", step, kl, _KL_TIMES * track.high, acts=True))

    def _patience(self, name: str, *, holds: bool, patience: int) -> bool:
        if not holds:
            if name in self._counts:
                del self._counts[name]
            return False
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return count >= patience

    def _track(self, metric: str, options: AnomalyConfig) -> Track:
        track = self._tracks.get(metric)
        if track is None:
            track = self._tracks[metric] = Track(options.window)
        elif track.size != options.window:
            track = self._tracks[metric] = track.resized(options.window)
        return track


class Progress:
    """How much was learned, and how much of it is left; scale and sign do not matter.

    Attributes:
        now: the median of the last five rewards: one odd value does not move it.
    """

    __slots__ = ("_base", "_count", "_high", "_noise", "_recent", "_slow", "now")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._base = self._high = math.nan
        self._count = 0
        self._slow = self._noise = self.now = 0.0

    def lost(self, reward: float, deviation: float, options: AnomalyConfig) -> float | None:
        """The level that was reached, if too much of it is gone; None if not."""
        recent = self._recent
        recent.append(reward)
        if len(recent) < _MEDIAN_OF:
            return None
        now = self.now = sorted(recent)[_MEDIAN_OF // 2]
        self._count = count = self._count + 1
        share = 1.0 / min(count, _SLOW)
        slow, noise = self._slow, self._noise
        away = abs(reward - now)
        if count >= _SLOW:  # an outlier is no noise, unless the level goes with it
            away = min(away, max(_GRAD_DEVIATIONS * noise, abs(now - slow)))
        self._noise = noise + (away - noise) * share
        slow = self._slow = slow + (now - slow) * share
        if count < _SLOW:
            return None
        if math.isnan(self._base):
            self._base = self._high = slow
        self._high = max(self._high, slow)
        learned = self._high - self._base
        if now > self._high - options.progress_lost * learned or learned <= 0.0:
            return None
        noise = max(_TO_SIGMA * self._noise, deviation)
        return self._high if learned > options.guard * noise else None

    def forget(self) -> None:
        """The run went back; what was learned until then stays known."""
        self._recent.clear()
        self.now = self._slow

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types; NaN is None."""
        marks = [None if math.isnan(mark) else mark for mark in (self._base, self._high)]
        return {
            "recent": list(self._recent),
            "marks": marks,
            "means": [self._slow, self._noise, self.now],
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self._base, self._high = (
            math.nan if mark is None else float(mark) for mark in state["marks"]
        )
        self._slow, self._noise, self.now = map(float, state["means"])
        self._recent = deque(map(float, state["recent"]), _MEDIAN_OF)
        self._count = int(state["count"])

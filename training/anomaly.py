"""What is abnormal in a training run: pure arithmetic on the metrics of one step after another.

A spike is `cur - prev >= (ratio - 1) * max(|prev|, floor)`, a drop is
`prev - cur >= (1 - ratio) * max(|prev|, floor)`. For positive values and a floor of 0 these are the
guide's "twice the previous" and "half of the previous"; they stay right for negative values and
near zero. The floor is a few robust deviations of the recent past, so that noise is no anomaly: the
literal rule fires on 12 % of healthy PPO updates, and a run that rolls back that often never gets
through 500 steps.

What is reported need not be acted upon. A run that never moved is judged by these rules to the
digit. In any other, what acts must last for a few updates: one odd value does no harm that the next
rewards would not show, and going back for it costs more. What is not finite acts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from training.config import AnomalyConfig, CheckpointConfig
from training.findings import Anomaly, Patience
from training.learned import Progress
from training.signals import Signals
from training.tracks import Level, Track, as_float

__all__ = ["Anomaly", "AnomalyDetector"]

# To act, a change must stand out this many times more than to be reported, and this many times
# further than everything seen lately is apart. Losses have heavier tails.
_SURE, _LOSS_RANGES, _REWARD_RANGES = 3.0, 10.0, 3.0
# A level is known after this many times `guard_after` values: neighbours resemble each other.
_LEVEL_AFTER = 3
# A reward that rises by this many times all that was ever seen is not believed, unless it stays for
# this long: one of 1e12 stays in a mean of a hundred episodes for a hundred episodes, and then
# seems to fall.
_BELIEVED, _BELIEVED_AFTER = 1e3, 1_000
# After a rollback a mean of the last hundred episodes tells of the broken policy for this long.
_SETTLING = 100
# Undefined now and then in healthy runs, by custom: the variance explained of returns that are all
# equal, a target that is not set.
_MAY_BE_UNDEFINED = frozenset({"explained_variance", "target_kl"})
# What the rules read; any other entry may be a word or a picture.
_JUDGED = frozenset(
    {"loss", "reward", "approx_kl", "entropy", "grad_norm", "explained_variance", "target_kl"}
)
# What is waited for before it acts.
_ACTING = frozenset({"loss_beyond", "reward_beyond", "low", "progress", "thrown_off", "collapsed"})


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
        self._patience = Patience()
        self._signals = Signals(self._patience)
        self._loss: Track | None = None
        self._reward: Level | None = None
        self._progress = Progress()
        self._settling = 0
        self._illegible: set[str] = set()

    @property
    def calm(self) -> bool:
        """Whether nothing is under way that may come to act."""
        return _ACTING.isdisjoint(self._patience.counts)

    @property
    def level(self) -> float:
        """Where the rewards are, to ask `holds` for later."""
        return self._progress.now

    def holds(self, level: float) -> bool:
        """Whether what had been learned at an earlier `level` is still there."""
        return self._progress.holds(level)

    def observe(
        self, step: int, metrics: Mapping[str, Any], events: list[str] | None = None
    ) -> list[Anomaly]:
        """Judge one step; those that act come before those that warn.

        A flagged value does not become part of what is normal. What cannot be judged because it is
        no number is told of in `events`, once a name.
        """
        found: list[Anomaly] = []
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            number = value if type(value) is float else as_float(value)
            if number is None:
                if events is not None and name in _JUDGED and value is not None:
                    self._tell_once(name, value, events)
                continue
            if number - number == 0.0:
                numbers[name] = number
            else:  # NaN compares false with everything: it must be looked for first
                acts = name not in _MAY_BE_UNDEFINED
                found.append(Anomaly("non_finite", name, step, number, math.nan, acts))
        options = self._anomaly()
        reward, loss = numbers.get("reward"), numbers.get("loss")
        if reward is not None:
            self._of_reward(found, options, step, reward)
        if loss is not None:
            self._of_loss(found, options, step, loss, reward)
        if len(numbers) > (reward is not None) + (loss is not None):
            self._signals.look(found, options, step, numbers)
        if len(found) > 1:
            found.sort(key=lambda anomaly: not anomaly.acts)
        return found

    def _tell_once(self, name: str, value: Any, events: list[str]) -> None:
        if name not in self._illegible:
            self._illegible.add(name)
            kind = type(value).__name__
            events.append(f"{name} is not judged: a {kind} that is no single number")

    def forget(self) -> None:
        """The run went back to an earlier state: the last step says nothing of the next one."""
        for track in (self._loss, self._reward):
            if track is not None:
                track.forget()
        self._signals.forget()
        self._patience.counts.clear()
        self._progress.forget()
        self._settling = _SETTLING

    def state_dict(self) -> dict[str, Any]:
        """Everything, in JSON types."""
        tracks = {"loss": self._loss, "reward": self._reward}
        return {
            "tracks": {name: track.state_dict() for name, track in tracks.items() if track},
            "signals": self._signals.state_dict(),
            "progress": self._progress.state_dict(),
            "patience": self._patience.state_dict(),
            "settling": self._settling,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        loss, reward = state["tracks"].get("loss"), state["tracks"].get("reward")
        self._loss = self._reward = None
        if loss is not None:
            self._loss = Track(int(loss["size"]))
            self._loss.load_state_dict(loss)
        if reward is not None:
            self._reward = Level(int(reward["size"]))
            self._reward.load_state_dict(reward)
        self._signals.load_state_dict(state["signals"])
        self._progress.load_state_dict(state["progress"])
        self._patience.load_state_dict(state["patience"])
        self._settling = int(state["settling"])

    # -- inside ---------------------------------------------------------------------------------

    def _of_loss(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        step: int,
        loss: float,
        reward: float | None,
    ) -> None:
        """A spike that lasts acts, unless the rewards say that all is well."""
        track = self._loss
        if track is None:
            track = self._loss = Track(options.window)
        elif track.size != options.window:
            track = self._loss = track.resized(options.window)
        previous = track.previous
        if previous is None:
            track.admit(loss)
            return
        ratio, worse = self._checkpoint().loss_spike_threshold, loss - previous
        # The owner's product; below zero it says nothing, and the change is held against the size.
        spike = loss >= ratio * previous if previous > 0.0 else worse >= (1.0 - ratio) * previous
        if not (spike and worse > 0.0):
            track.admit(loss)
            self._patience.counts.pop("loss_beyond", None)
            return
        if options.profile == "spec":
            found.append(Anomaly("loss_spike", "loss", step, loss, previous, acts=True))
            return
        track.refresh()
        noise = options.guard * track.deviation if track.seen >= options.guard_after else 0.0
        if worse < (ratio - 1.0) * noise:
            track.admit(loss)
            self._patience.counts.pop("loss_beyond", None)
            return
        well = reward is not None and self._reward is not None and reward >= self._reward.short
        reach = track.reach(options, _SURE, _LOSS_RANGES)
        acts = self._sure("loss_beyond", loss - track.median, reach, options, well=well)
        self._flag(found, track, Anomaly("loss_spike", "loss", step, loss, previous, acts), options)

    def _of_reward(
        self, found: list[Anomaly], options: AnomalyConfig, step: int, reward: float
    ) -> None:
        """One that falls far, one that stays down, one that slides; a rise is none, however odd."""
        track = self._reward
        if track is None:
            track = self._reward = Level(options.window)
        elif track.size != options.window:
            track = self._reward = track.resized(options.window)
        previous = track.previous
        if previous is None:
            track.admit(reward)
            self._progress.lost(reward, track, options)
            return
        if reward > track.high and self._unbelievable(track, options, reward):
            found.append(Anomaly("outlier", "reward", step, reward, track.high, acts=False))
            return
        ratio, worse = self._checkpoint().reward_drop_threshold, previous - reward
        drop = reward <= ratio * previous if previous > 0.0 else worse >= (ratio - 1.0) * previous
        acts = False
        if not (drop and worse > 0.0):
            track.admit(reward)
            self._patience.counts.pop("reward_beyond", None)
        elif options.profile == "spec":
            found.append(Anomaly("reward_drop", "reward", step, reward, previous, acts=True))
        else:
            track.refresh()
            noise = options.guard * track.deviation if track.seen >= options.guard_after else 0.0
            if worse < (1.0 - ratio) * noise:
                track.admit(reward)
                self._patience.counts.pop("reward_beyond", None)
            else:
                reach = track.reach(options, _SURE, _REWARD_RANGES)
                far, well = track.median - reward, self._settling > 0
                acts = self._sure("reward_beyond", far, reach, options, well=well)
                what = Anomaly("reward_drop", "reward", step, reward, previous, acts)
                self._flag(found, track, what, options)
        if not acts and options.profile != "spec":
            self._fallen(found, options, step, reward, ratio)

    def _fallen(
        self,
        found: list[Anomaly],
        options: AnomalyConfig,
        step: int,
        reward: float,
        ratio: float,
    ) -> None:
        """Rewards that are far below where they were a moment ago, or have lost what was won."""
        track, holds = self._reward, self._patience.holds
        if track is None:
            return
        high = self._progress.lost(reward, track, options)
        low = False
        top = track.short if track.short > track.median else track.median
        if track.seen >= _LEVEL_AFTER * options.guard_after and (
            top - reward >= (1.0 - ratio) * abs(top)
        ):
            low = _far_below(reward, track.short, track.jitter, ratio, options) or _far_below(
                reward, track.median, track.deviation, ratio, options
            )
        if self._settling:
            self._settling = self._settling - 1 if low or high is not None else 0
            return
        if not low and high is None and not self._patience.counts:
            return
        if holds("low", low) >= options.patience:
            found.append(Anomaly("reward_drop", "reward", step, reward, track.short, acts=True))
        elif holds("progress", high is not None) >= options.patience and high is not None:
            now = self._progress.now
            found.append(Anomaly("progress_lost", "reward", step, now, high, acts=True))

    def _sure(
        self, name: str, far: float, reach: float, options: AnomalyConfig, *, well: bool = False
    ) -> bool:
        """Whether a flagged value acts: beyond doubt for long enough, or the first move ever."""
        lasting = self._patience.holds(name, far > reach) >= options.patience
        return far > reach and (reach == 0.0 or (lasting and not well))

    def _flag(
        self, found: list[Anomaly], track: Track, anomaly: Anomaly, options: AnomalyConfig
    ) -> None:
        found.append(anomaly)
        early = track.seen < options.guard_after
        noise = 0.0 if early else options.guard * track.deviation
        track.refuse(anomaly.value, noise, acts=anomaly.acts and not early)

    def _unbelievable(self, track: Level, options: AnomalyConfig, reward: float) -> bool:
        if track.seen < options.guard_after or options.profile == "spec":
            return False
        track.refresh()
        apart = max(track.high - track.low, abs(track.median))
        odd = reward - track.high > _BELIEVED * apart > 0.0
        return 0 < self._patience.holds("unbelievable", odd) <= _BELIEVED_AFTER


def _far_below(
    value: float, level: float, deviation: float, ratio: float, options: AnomalyConfig
) -> bool:
    """Whether it fell by the owner's share of a level, and by no mere noise."""
    return level - value >= max((1.0 - ratio) * abs(level), options.guard * deviation) > 0.0

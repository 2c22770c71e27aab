"""What the owner may set: one dataclass a subject, each default the number of the guide.

The objects are plain and mutable. `OperationsManager` reads them at every step, so a field changed,
or a whole object assigned, takes effect from the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from gateway.primitives.scheduling import Schedule


class ConfigValueError(ValueError):
    """A field is out of its range; the message names the field, the range and what was given."""


@dataclass
class _Checked:
    """Checks every field that is set, now and later."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {field.name for field in fields(self)}:
            known = ", ".join(field.name for field in fields(self))
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {known}")
        check = _CHECKS.get(name)
        if check is not None:
            check(f"{type(self).__name__}.{name}", value)
        object.__setattr__(self, name, value)


@dataclass
class LearningScheduleConfig(_Checked):
    """How the entropy coefficient decays and over what rewards are normalized.

    Attributes:
        entropy_coef_start: at step 0.
        entropy_coef_end: at `entropy_decay_steps` and after.
        entropy_decay_type: `cosine`, `linear`, `exponential` or `constant`.
        entropy_decay_steps: steps from start to end.
        reward_norm_window: how many recent rewards are normal.
        reward_normalizer: what makes `normalized_reward`: `window_z`, which is for watching;
            `window_scale` or `return_scale`, which leave the zero where it is. See
            `training.normalizers`.
    """

    entropy_coef_start: float = 0.01
    entropy_coef_end: float = 0.001
    entropy_decay_type: str = "cosine"
    entropy_decay_steps: int = 10_000
    reward_norm_window: int = 1_000
    reward_normalizer: str = "window_z"

    def entropy_coef(self, step: int) -> float:
        """The coefficient at a step."""
        curve = (self.entropy_decay_type, self.entropy_coef_start, self.entropy_coef_end)
        return _schedule(*curve)(step / self.entropy_decay_steps)


@lru_cache(maxsize=64)
def _schedule(name: str, start: float, end: float) -> Schedule:
    return Schedule.named(name, start, end)


@dataclass
class CheckpointConfig(_Checked):
    """When a checkpoint is taken, what counts as an anomaly, how many are kept.

    Attributes:
        save_interval_steps: a checkpoint at every multiple of this.
        max_checkpoints: how many are kept, pinned ones counted in.
        loss_spike_threshold: a loss at least this many times the previous one is a spike.
        reward_drop_threshold: a reward at most this share of the previous one is a drop.
        enable_auto_rollback: whether an anomaly leads back to the last healthy checkpoint.
        async_save: write in the background; `False` returns when the checkpoint is on disk.
        writer: `thread`, or `process` for states so big that a thread slows training down; read
            when the folder is first opened, as `async_save` is.
        when_busy: with two saves under way, `block` waits for one, `skip` leaves the third out.
        on_save_error: `warn` reports a failed save in the step's events, `raise` raises it.
    """

    save_interval_steps: int = 500
    max_checkpoints: int = 5
    loss_spike_threshold: float = 2.0
    reward_drop_threshold: float = 0.5
    enable_auto_rollback: bool = True
    async_save: bool = True
    writer: str = "thread"
    when_busy: str = "block"
    on_save_error: str = "warn"


@dataclass
class AnomalyConfig(_Checked):
    """What makes an anomaly one to act upon.

    Attributes:
        profile: `robust` acts on what is abnormal for this run; `spec` acts on the owner's literal
            rule, which fires on 12 % of healthy PPO updates.
        guard: spikes and drops smaller than this many robust deviations are noise.
        guard_after: the guard stands once this many values are known; before, it is 0.
        window: recent values that say what is normal.
        patience: updates in a row before a slow drop counts.
        progress_lost: share of the learned progress whose loss is a collapse.
        probation_steps: a checkpoint is healthy once this many further steps were well; fewer if
            it would be deleted before.
        cooldown_steps: after a rollback nothing is rolled back for this long.
        max_rollbacks: most rollbacks within `rollback_window_steps`; then the run halts.
        rollback_window_steps: see `max_rollbacks`.
        lr_backoff: the learning rate is multiplied by this from the second rollback on.
        lr_recovery_steps: healthy steps over which the learning rate glides back.
    """

    profile: str = "robust"
    guard: float = 6.0
    guard_after: int = 20
    window: int = 100
    patience: int = 3
    progress_lost: float = 0.5
    probation_steps: int = 10
    cooldown_steps: int = 100
    max_rollbacks: int = 3
    rollback_window_steps: int = 10_000
    lr_backoff: float = 0.5
    lr_recovery_steps: int = 1_000


@dataclass
class CircuitBreakerConfig(_Checked):
    """When the language model is given up for a while, and what that does to the cache.

    Attributes:
        failure_threshold: failures in a row that downshift.
        downshift_duration_s: how long, seconds.
        normal_ttl_s: lifetime of cached answers, seconds.
        downshift_ttl_s: their lifetime while downshifted, seconds.
    """

    failure_threshold: int = 3
    downshift_duration_s: float = 300.0
    normal_ttl_s: int = 3600
    downshift_ttl_s: int = 300


@dataclass
class RetuningConfig(_Checked):
    """When ratings suggest other hyperparameters, and which.

    Attributes:
        min_feedback: ratings before anything is suggested.
        max_feedback: ratings that are kept, the newest.
        low_rating: a mean below it suggests `entropy_coef`.
        high_rating: a mean of at least this suggests `clip_epsilon`.
        high_spread: a standard deviation above it suggests `learning_rate`.
        entropy_coef, learning_rate, clip_epsilon: what is suggested.
        max_share_per_user: most of the ratings one user may make up.
        confidence: how sure one must be before a suggestion should be applied.
        hysteresis: a suggestion once made stands until the rating is this far past its threshold.
        trial_tolerance: a trial is kept once its mean rating is surely no more than this below the
            one of before.
    """

    min_feedback: int = 100
    max_feedback: int = 300
    low_rating: float = 3.0
    high_rating: float = 4.0
    high_spread: float = 1.5
    entropy_coef: float = 0.02
    learning_rate: float = 1e-4
    clip_epsilon: float = 0.1
    max_share_per_user: float = 0.1
    confidence: float = 0.95
    hysteresis: float = 0.2
    trial_tolerance: float = 0.25


def _number(low: float, high: float = math.inf, *, whole: bool = False) -> Any:
    def check(name: str, value: Any) -> None:
        right = isinstance(value, int) if whole else isinstance(value, (int, float))
        if isinstance(value, bool) or not right or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ConfigValueError(f"{name} must be {kind} {bounds}, got {value!r}")

    return check


def _one_of(*known: str) -> Any:
    def check(name: str, value: Any) -> None:
        if value not in known:
            raise ConfigValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    return check


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigValueError(f"{name} must be True or False, got {value!r}")


_whole = _number(1, whole=True)
_share = _number(0.0, 1.0)
_positive = _number(0.0)
_rating = _number(1.0, 5.0)
_CHECKS: dict[str, Any] = {
    "entropy_coef_start": _positive,
    "entropy_coef_end": _positive,
    "entropy_decay_type": _one_of("cosine", "linear", "exponential", "constant"),
    "entropy_decay_steps": _whole,
    "reward_norm_window": _whole,
    "reward_normalizer": _one_of("window_z", "window_scale", "return_scale"),
    "save_interval_steps": _whole,
    "max_checkpoints": _number(2, whole=True),
    "loss_spike_threshold": _number(1.0),
    "reward_drop_threshold": _share,
    "enable_auto_rollback": _switch,
    "async_save": _switch,
    "writer": _one_of("thread", "process"),
    "when_busy": _one_of("block", "skip"),
    "on_save_error": _one_of("warn", "raise"),
    "profile": _one_of("robust", "spec"),
    "guard": _positive,
    "guard_after": _number(2, whole=True),
    "window": _number(2, whole=True),
    "patience": _whole,
    "progress_lost": _share,
    "probation_steps": _number(0, whole=True),
    "cooldown_steps": _number(0, whole=True),
    "max_rollbacks": _whole,
    "rollback_window_steps": _whole,
    "lr_backoff": _number(0.01, 1.0),
    "lr_recovery_steps": _whole,
    "failure_threshold": _whole,
    "downshift_duration_s": _positive,
    "normal_ttl_s": _positive,
    "downshift_ttl_s": _positive,
    "min_feedback": _whole,
    "max_feedback": _whole,
    "low_rating": _rating,
    "high_rating": _rating,
    "high_spread": _number(0.0, 2.0),
    "entropy_coef": _positive,
    "learning_rate": _positive,
    "clip_epsilon": _share,
    "max_share_per_user": _share,
    "confidence": _number(0.5, 0.999999),
    "hysteresis": _number(0.0, 1.0),
    "trial_tolerance": _number(0.0, 4.0),
}

"""Stable-Baselines3: `PPO(...).learn(..., callback=OperationsCallback(ops))`.

A step is an update. A rollout starts after the update before it and before the next forward pass:
the loss is known and a broken policy has not acted yet. The last update has no rollout after it,
but the end of the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.callbacks.host import Watch, imported
from training.operations import OperationsManager

_NAME = "stable-baselines3"
_BaseCallback: Any = imported("stable_baselines3.common.callbacks", _NAME).BaseCallback
_OnPolicy: Any = imported("stable_baselines3.common.on_policy_algorithm", _NAME).OnPolicyAlgorithm


class Scaled:
    """A schedule with factors: SB3 sets learning rate and clip range from schedules, each update.

    Args:
        schedule: of the remaining progress, 1 to 0.

    Attributes:
        factor: what users' ratings made of it.
        scale: what rollbacks made of it.
    """

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self.factor = self.scale = 1.0

    def __call__(self, progress_remaining: float) -> float:
        return float(self.schedule(progress_remaining)) * self.factor * self.scale

    def set(self, value: float, progress_remaining: float) -> None:
        """Have `value` now, and anneal from there; `scale` comes on top."""
        planned = float(self.schedule(progress_remaining))
        if planned > 0.0:
            self.factor = value / planned


class OperationsCallback(_BaseCallback):  # type: ignore[misc]
    """Watches PPO, A2C and their kin: one policy with one optimizer, learning from rollouts.

    Sets `ent_coef`, scales the learning rate, starts the episodes anew after a rollback, and lets
    `ops.apply` set learning rate and clip range.

    Args:
        ops: the run's manager; the caller closes it.
        resume: continue from the last healthy checkpoint in its folder, if there is one.
        verbose: as in SB3.

    Raises:
        TypeError: the algorithm learns from a replay buffer.
    """

    def __init__(self, ops: OperationsManager, *, resume: bool = False, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.watch = Watch(ops, resume=resume)
        self.updates = 0
        self._seen = 0
        self._halted = False

    # -- SB3's hooks ------------------------------------------------------------------------------

    def _init_callback(self) -> None:
        model = self.model
        if not isinstance(model, _OnPolicy):
            raise TypeError(f"{type(model).__name__} does not learn from rollouts, as PPO does")
        self._rate = model.lr_schedule = _scaled(model.lr_schedule)
        statistics = _Statistics(model.get_vec_normalize_env())
        self.watch.ops.attach(
            extra={"statistics": statistics}, hyperparameters=self._hyperparameters()
        )
        self.watch.attach(model.policy, model.policy.optimizer, count=_Count(model, self._rate))
        self.updates, self._rate.scale = (
            self.updates or self.watch.resumed_step,
            self.watch.lr_scale,
        )
        self._seen = model._n_updates
        model.ent_coef = self.watch.ops.schedule_config.entropy_coef(self.updates)

    def _on_rollout_start(self) -> None:
        if not self._look():
            return
        model = self.model  # what the broken policy did and saw is of no use
        model._last_obs = model.env.reset()
        model._last_episode_starts = np.ones((model.env.num_envs,), dtype=bool)
        model.ep_info_buffer.clear()

    def _on_step(self) -> bool:
        return not self._halted

    def _on_training_end(self) -> None:
        self._look()
        self.watch.ops.flush()

    # -- inside -----------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Judge the last update, once; whether the run was rolled back."""
        model = self.model
        if model._n_updates == self._seen:
            return False
        self._seen = model._n_updates
        self.updates += 1
        result = self.watch.look(self.updates, self._metrics())
        model.ent_coef = result["entropy_coef"]
        self._rate.scale = self.watch.lr_scale
        self._halted = result["halt"]
        return result["rollback_path"] is not None

    def _hyperparameters(self) -> dict[str, Any]:
        model, rate = self.model, self._rate

        def left() -> float:
            return float(model._current_progress_remaining)

        def set_rate(value: float) -> None:
            rate.set(value / self.watch.ops.lr_scale, left())

        setters: dict[str, Any] = {"learning_rate": (lambda: rate(left()), set_rate)}
        if hasattr(model, "clip_range"):
            clip = model.clip_range = _scaled(model.clip_range)
            setters["clip_epsilon"] = (lambda: clip(left()), lambda value: clip.set(value, left()))
        return setters

    def _metrics(self) -> dict[str, float]:
        told = self.logger.name_to_value  # cleared when it is dumped, which is before an update
        names = {
            "loss": "train/loss",
            "approx_kl": "train/approx_kl",
            "explained_variance": "train/explained_variance",
        }
        metrics = {ours: told[theirs] for ours, theirs in names.items() if theirs in told}
        if "train/entropy_loss" in told:
            metrics["entropy"] = -told["train/entropy_loss"]
        if "loss" not in metrics and "train/policy_loss" in told:  # A2C tells the parts
            parts = told["train/policy_loss"], told["train/value_loss"], told["train/entropy_loss"]
            metrics["loss"] = (
                parts[0] + self.model.vf_coef * parts[1] + self.model.ent_coef * parts[2]
            )
        episodes = self.model.ep_info_buffer
        if episodes:
            metrics["reward"] = sum(episode["r"] for episode in episodes) / len(episodes)
        return metrics


def _scaled(schedule: Any) -> Scaled:
    return schedule if isinstance(schedule, Scaled) else Scaled(schedule)


class _Count:
    """How far the run is."""

    def __init__(self, model: Any, rate: Scaled) -> None:
        self._model = model
        self._rate = rate

    def state_dict(self) -> dict[str, float]:
        model = self._model
        counts = {"timesteps": model.num_timesteps, "updates": model._n_updates}
        return {**counts, "rate_factor": self._rate.factor}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._model.num_timesteps = state["timesteps"]
        self._model._n_updates = state["updates"]
        self._rate.factor = state["rate_factor"]


class _Statistics:
    """What `VecNormalize` knows; a policy is worth nothing without it. Empty if there is none."""

    def __init__(self, env: Any) -> None:
        self._means: dict[str, Any] = {}
        if env is not None:
            seen = getattr(env, "obs_rms", {})
            self._means = dict(seen) if isinstance(seen, dict) else {"observations": seen}
            self._means["returns"] = env.ret_rms

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {"mean": rms.mean, "var": rms.var, "count": rms.count}
            for name, rms in self._means.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        for name, rms in self._means.items():
            if name in state:
                rms.mean, rms.var = np.array(state[name]["mean"]), np.array(state[name]["var"])
                rms.count = state[name]["count"]

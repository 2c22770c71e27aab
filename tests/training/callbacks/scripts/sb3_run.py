"""PPO and A2C of Stable-Baselines3 on CartPole."""

from __future__ import annotations

from typing import Any

import numpy as np
import stable_baselines3
import torch
from scenarios import Steps, broken_gradient, holds, inside, manager, same, tell, weights
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from training import Suggestions
from training.callbacks.sb3 import OperationsCallback

UPDATE = 128  # environment steps in one rollout


class Diary(BaseCallback):
    """Stands behind ours: what the host has in hand when the next rollout starts."""

    def __init__(self, ours: OperationsCallback) -> None:
        super().__init__()
        self.ours = ours
        self.results: dict[int, dict[str, Any]] = {}
        self.returns: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        step = self.ours.updates
        if step in self.results or not self.ours.watch.last:
            return
        self.results[step] = result = self.ours.watch.last
        if result["rollback_path"]:
            payload = inside(self.ours.watch.ops, result["rollback_path"])
            self.returns.append(
                {
                    "step": step,
                    "to": result["restored_step"],
                    "restored": result["restored"],
                    "weights_are_the_saved": same(self.model.policy, payload["model"]),
                    "episodes_start_anew": bool(np.all(self.model._last_episode_starts)),
                    "old_episodes_forgotten": len(self.model.ep_info_buffer) == 0,
                }
            )


class Host(PPO):
    """PPO that notes what it learns with, and can be struck."""

    wreck: tuple[int, ...] = ()

    def train(self) -> None:
        self.__dict__.setdefault("noted", [])
        if len(self.noted) + 1 in self.wreck:
            with torch.no_grad():
                for parameter in self.policy.parameters():
                    parameter.mul_(100.0)
        super().train()
        self.noted.append(
            {
                "ent_coef": self.ent_coef,
                "lr": self.policy.optimizer.param_groups[0]["lr"],
                "clip": self.clip_range(1.0),
            }
        )


def host(seed: int = 1, *, normalize: bool = False, wreck: tuple[int, ...] = ()) -> Host:
    env: Any = make_vec_env("CartPole-v1", n_envs=2, seed=seed)
    if normalize:
        env = VecNormalize(env)
    model = Host("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=seed, device="cpu")
    model.wreck = wreck
    return model


def calm() -> None:
    """Eight updates, then four more by a process that knows nothing of them."""
    ops = manager("calm")
    model, ours = host(normalize=True), OperationsCallback(ops)
    diary = Diary(ours)
    model.learn(8 * UPDATE, callback=[ours, diary])
    paths = {step: r["checkpoint_path"] for step, r in diary.results.items()}
    saved = {step: path for step, path in paths.items() if path}
    ops.close()
    tell(
        "calm",
        version=stable_baselines3.__version__,
        looked_at=list(diary.results),
        ent_coef=[noted["ent_coef"] for noted in model.noted],
        saved=list(saved),
        holds=holds(ops, saved[8]),
        anomalies=[str(r["anomaly"]) for r in diary.results.values() if r["anomaly"]],
    )
    ops.close()

    again = manager("calm")
    other, ours = host(seed=2, normalize=True), OperationsCallback(again, resume=True)

    class First(BaseCallback):
        def _on_training_start(self) -> None:
            policy, statistics = self.model.policy, self.model.get_vec_normalize_env().obs_rms
            tell(
                "resumed",
                same_weights=weights(policy).equal(weights(model.policy)),
                same_moments=same_moments(policy.optimizer, model.policy.optimizer),
                same_statistics=bool(
                    np.array_equal(statistics.mean, model.get_vec_normalize_env().obs_rms.mean)
                ),
                timesteps=self.model.num_timesteps,
            )

        def _on_step(self) -> bool:
            return True

    diary = Diary(ours)
    other.learn(12 * UPDATE, callback=[ours, First(), diary])
    tell("continued", looked_at=[s for s in diary.results if s > 8], timesteps=other.num_timesteps)
    again.close()


def same_moments(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    left, right = one.state_dict()["state"], other.state_dict()["state"]
    return bool(left) and all(left[i]["exp_avg"].equal(right[i]["exp_avg"]) for i in right)


def gradient() -> None:
    """One gradient in the fifth minibatch is NaN: with operations, and without."""
    ops = manager("gradient")
    model, ours = host(), OperationsCallback(ops)
    seen = broken_gradient(model.policy, at=5)
    steps = Steps(model.policy, model.policy.optimizer)
    model.learn(4 * UPDATE, callback=ours)
    ops.close()
    alone = host()
    broken_gradient(alone.policy, at=5)
    try:
        alone.learn(4 * UPDATE)
        without = "went on"
    except ValueError as error:
        without = type(error).__name__
    tell(
        "gradient",
        injected=seen["injected"],
        moved=steps.moved,
        finite=bool(torch.isfinite(weights(model.policy)).all()),
        updates=ours.updates,
        without=without,
    )


def collapse() -> None:
    """The weights are wrecked before the fifth and the eighth update."""
    ops = manager("collapse", cooldown_steps=0)
    model, ours = host(wreck=(5, 8)), OperationsCallback(ops)
    diary = Diary(ours)
    model.learn(10 * UPDATE, callback=[ours, diary])
    ops.close()
    tell(
        "collapse",
        returns=diary.returns,
        lr=[noted["lr"] for noted in model.noted],
        updates=ours.updates,
        finite=bool(torch.isfinite(weights(model.policy)).all()),
    )


def retune() -> None:
    """What users' ratings suggest is set between two updates."""
    found = {}
    for name, value in (("clip_epsilon", 0.1), ("learning_rate", 1e-4)):
        ops = manager(name)
        model, ours = host(), OperationsCallback(ops)
        model.learn(2 * UPDATE, callback=ours)
        ops.apply(Suggestions({name: value}), force=True)
        model.learn(UPDATE, callback=ours, reset_num_timesteps=False)
        ops.close()
        found[name] = [(noted["clip"], noted["lr"]) for noted in model.noted]
    tell("retune", **found)


def halt() -> None:
    """Wrecked twice, with one rollback allowed."""
    ops = manager("halt", cooldown_steps=0, max_rollbacks=1)
    model, ours = host(wreck=(4, 6)), OperationsCallback(ops)
    model.learn(20 * UPDATE, callback=ours)
    ops.close()
    tell(
        "halt",
        updates=ours.updates,
        timesteps=model.num_timesteps,
        events=ours.watch.last["events"],
    )


def kin() -> None:
    """A2C tells the parts of its loss; SAC has no rollouts."""
    ops = manager("kin")
    model, ours = A2C("MlpPolicy", "CartPole-v1", n_steps=16, device="cpu"), OperationsCallback(ops)
    model.learn(4 * 16, callback=ours)
    ops.close()
    try:
        SAC("MlpPolicy", "Pendulum-v1", device="cpu").learn(1, callback=OperationsCallback(ops))
        refused = ""
    except TypeError as error:
        refused = str(error)
    tell(
        "kin",
        updates=ours.updates,
        metrics=sorted(ours.watch.last["metrics"]),
        ent_coef=model.ent_coef,
        refused=refused,
    )


calm()
gradient()
collapse()
retune()
halt()
kin()

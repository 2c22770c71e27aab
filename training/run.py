"""One training run: its settings, and one update after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gateway.primitives.scheduling import Schedule
from training import environments
from training.checkpoints.state import reseed
from training.normalizers import ReturnScale
from training.ppo import PPOTrainer


@dataclass(frozen=True)
class Settings:
    """What a run is made of; the defaults are CleanRL's for classic control (`ppo.py`).

    Attributes:
        env: a Gymnasium id.
        total_steps: environment steps, all environments together.
        seed: of everything.
        n_envs, n_steps: a rollout is `n_steps` steps in each of `n_envs` environments.
        n_epochs, batch_size: how often and in what portions a rollout is learned from.
        anneal: the learning rate falls in a straight line to 0.
        scale_rewards: learn from rewards divided by the deviation of discounted returns.
        learning_rate, gamma, gae_lambda, clip_epsilon, entropy_coef, vf_coef, max_grad_norm,
            clip_value_loss, hidden: see `PPOTrainer`.
    """

    env: str = "CartPole-v1"
    total_steps: int = 500_000
    seed: int = 1
    n_envs: int = 4
    n_steps: int = 128
    n_epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2.5e-4
    anneal: bool = True
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    entropy_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    clip_value_loss: bool = True
    scale_rewards: bool = False
    hidden: int = 64

    @property
    def updates(self) -> int:
        """How many updates the run takes; an incomplete last rollout is left out."""
        return max(1, self.total_steps // (self.n_envs * self.n_steps))


# Stable-Baselines3's zoo, less its gSDE. Its value loss is a plain mean square, ours half of one.
PENDULUM = Settings(
    env="Pendulum-v1",
    total_steps=100_000,
    n_steps=1024,
    n_epochs=10,
    batch_size=64,
    learning_rate=1e-3,
    anneal=False,
    gamma=0.9,
    entropy_coef=0.0,
    vf_coef=1.0,
    clip_value_loss=False,
)
TUNED = {"Pendulum-v1": PENDULUM}


def settings_for(env: str, **chosen: Any) -> Settings:
    """The settings known to work for an environment, with what was chosen put in their place."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(TUNED.get(env, Settings()), env=env, **given)


class Run:
    """Environments, agent and schedule of one run.

    Attributes:
        settings, envs, trainer, collector: its parts.
        lr_scale: what rollbacks made of the learning rate; the schedule is multiplied by it.

    Raises:
        EnvironmentUnknown: see `environments.make`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = s = settings
        reseed(s.seed)
        self.envs = environments.make(s.env, s.n_envs)
        self.trainer = PPOTrainer(
            **environments.spaces(self.envs),
            learning_rate=s.learning_rate,
            gamma=s.gamma,
            gae_lambda=s.gae_lambda,
            clip_epsilon=s.clip_epsilon,
            entropy_coef=s.entropy_coef,
            vf_coef=s.vf_coef,
            max_grad_norm=s.max_grad_norm,
            clip_value_loss=s.clip_value_loss,
            hidden=s.hidden,
            seed=s.seed,
            normalizer=(lambda: ReturnScale(s.gamma)) if s.scale_rewards else None,
        )
        self.collector = self.trainer.collector(self.envs)
        self.lr_scale = 1.0
        self._learning_rate = Schedule.linear(s.learning_rate, 0.0 if s.anneal else s.learning_rate)

    def update(self, number: int) -> dict[str, float]:
        """Collect and learn once.

        Args:
            number: of the update, from 1; the learning rate follows it.

        Returns:
            What `PPOTrainer.train_step` says, `learning_rate`, and `reward`, the mean return of
            the last 100 episodes, once one has ended.
        """
        s = self.settings
        rate = self._learning_rate((number - 1) / s.updates) * self.lr_scale
        self.trainer.learning_rate = rate
        reward = self.trainer.collect_rollout(self.envs, s.n_steps)
        stats = self.trainer.train_step(s.n_epochs, s.batch_size)
        # Episodes under way are no measure: their sums grow or fall with their length.
        told = {"reward": reward} if self.collector.returns else {}
        return {**stats, **told, "learning_rate": rate}

    def close(self) -> None:
        """Let go of the environments."""
        self.envs.close()

"""Proximal policy optimization (arXiv:1707.06347), on one page.

The thirteen core details of *The 37 Implementation Details of PPO* (Huang et al. 2022) are here:
vectorized environments, orthogonal initialization, Adam's epsilon of 1e-5, an annealed learning
rate, GAE, mini-batches, normalized advantages, the clipped surrogate, value clipping, entropy, one
gradient norm for all, debug figures, and a network each for policy and value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.environments import spaces
from training.normalizers import RewardNormalizer
from training.policy import ActorCritic
from training.rollout import Collector, Rollout

_STATS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "loss",
    "approx_kl",
    "clip_fraction",
    "grad_norm",
)
_KL = _STATS.index("approx_kl")


class PPOTrainer:
    """A PPO agent: collect, then train.

    Args:
        state_dim: length of a flat observation.
        action_dim: how many actions there are, or how long an action is.
        continuous: actions are vectors instead of choices.
        learning_rate, gamma, gae_lambda, clip_epsilon, entropy_coef, vf_coef, max_grad_norm: as in
            the paper and in Stable-Baselines3.
        clip_value_loss: keep the value function near its old self, too.
        target_kl: stop an update early past 1.5 times this; None never does.
        hidden: width of the network's layers.
        seed: of the network's weights and of the first episodes; None leaves torch's generator be.
        normalizer: makes what scales the rewards that are learned from; see `Collector`.

    Attributes:
        network, optimizer, entropy_coef, clip_epsilon: to be read and set between updates.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        continuous: bool = False,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_epsilon: float = 0.2,
        entropy_coef: float = 0.01,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        clip_value_loss: bool = True,
        target_kl: float | None = None,
        hidden: int = 64,
        seed: int | None = None,
        normalizer: Callable[[], RewardNormalizer] | None = None,
    ) -> None:
        if state_dim < 1 or action_dim < 1:
            raise ValueError(f"both must be at least 1: {state_dim=}, {action_dim=}")
        if seed is not None:
            torch.manual_seed(seed)
        self.state_dim, self.action_dim, self.continuous = state_dim, action_dim, continuous
        self.network = ActorCritic(state_dim, action_dim, continuous=continuous, hidden=hidden)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), learning_rate, eps=1e-5, fused=True
        )
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.clip_epsilon, self.entropy_coef, self.vf_coef = clip_epsilon, entropy_coef, vf_coef
        self.max_grad_norm, self.target_kl = max_grad_norm, target_kl
        self.clip_value_loss = clip_value_loss
        self._seed, self._normalizer = seed, normalizer
        self._collector: Collector | None = None
        self._rollout: Rollout | None = None

    @property
    def learning_rate(self) -> float:
        """The optimizer's; set it to anneal."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def collector(self, env: Any) -> Collector:
        """What steps `env`; one and the same as long as the environment is.

        Raises:
            ValueError: its observations or actions are not those this trainer was built for.
        """
        known = self._collector
        if known is None or env is not getattr(known.env, "_env", known.env):
            self._check_fits(env)
            self._collector = known = Collector(env, seed=self._seed, normalizer=self._normalizer)
        return known

    def collect_rollout(self, env: Any, n_steps: int = 2048) -> float:
        """Take `n_steps` steps in each environment.

        Args:
            env: a Gymnasium environment, or a vector of them (`autoreset_mode=SAME_STEP`).

        Returns:
            The mean return of the last 100 episodes.
        """
        collector = self.collector(env)
        if collector.observation_dim != self.state_dim:  # for those that declare no spaces
            raise ValueError(
                f"built with state_dim={self.state_dim}, but the environment shows "
                f"{collector.observation_dim} numbers"
            )
        self._rollout = collector.collect(self.network, n_steps, self.gamma)
        return collector.mean_return()

    def train_step(self, n_epochs: int = 10, batch_size: int = 64) -> dict[str, float]:
        """Learn from the last rollout; it is used up afterwards.

        Returns:
            `policy_loss`, `value_loss`, `entropy`, `loss`, `approx_kl`, `clip_fraction`,
            `grad_norm`, each the mean over the mini-batches that were learned from (one whose
            gradients a hook of the optimizer took away was not), and `explained_variance`.

        Raises:
            RuntimeError: nothing was collected.
            ValueError: `n_epochs` or `batch_size` is less than 1.
        """
        if n_epochs < 1 or batch_size < 1:
            raise ValueError(f"both must be at least 1: {n_epochs=}, {batch_size=}")
        if self._rollout is None:
            raise RuntimeError("nothing to learn from; call collect_rollout first")
        rollout, self._rollout = self._rollout, None
        advantages = rollout.advantages(self.gamma, self.gae_lambda)
        returns = advantages + rollout.values
        columns = (rollout.observations, rollout.actions, rollout.log_probs, rollout.values)
        flat = [column.flatten(0, 1) for column in (*columns, advantages, returns)]
        stats: list[Tensor] = []
        learned = self.network.actor[0].weight  # without a gradient nothing was learned
        for _ in range(n_epochs):
            for index in torch.randperm(len(flat[0])).split(batch_size):
                told = self._minibatch(*(column[index] for column in flat))
                if learned.grad is not None:
                    stats.append(told)
            if self.target_kl is not None and told[_KL].item() > 1.5 * self.target_kl:
                break
        mean = torch.stack(stats or [told]).mean(0).tolist()
        explained = _explained(rollout.values, returns)
        return {**dict(zip(_STATS, mean, strict=True)), "explained_variance": explained}

    def _minibatch(
        self,
        observations: Tensor,
        actions: Tensor,
        old_log_probs: Tensor,
        old_values: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> Tensor:
        policy = self.network.distribution(observations)
        log_ratio = policy.log_prob(actions) - old_log_probs
        ratio, eps = log_ratio.exp(), self.clip_epsilon
        if len(advantages) > 1:  # the deviation of one is not a number
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        surrogate = torch.min(advantages * ratio, advantages * ratio.clamp(1 - eps, 1 + eps))
        policy_loss = -surrogate.mean()

        values = self.network.value(observations)
        errors = (values - returns) ** 2
        if self.clip_value_loss:
            clipped = old_values + (values - old_values).clamp(-eps, eps)
            errors = torch.max(errors, (clipped - returns) ** 2)
        value_loss = 0.5 * errors.mean()

        entropy = policy.entropy().mean()
        loss = policy_loss - self.entropy_coef * entropy + self.vf_coef * value_loss
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            # Never negative, and less noisy than the mean log ratio (Schulman 2020, k3).
            approx_kl = ((ratio - 1) - log_ratio).mean()
            clipped_share = ((ratio - 1).abs() > eps).float().mean()
            return torch.stack(
                [policy_loss, value_loss, entropy, loss, approx_kl, clipped_share, norm]
            )

    def _check_fits(self, env: Any) -> None:
        wanted = spaces(env)
        for name in ("continuous", "action_dim", "state_dim"):
            own, found = getattr(self, name), wanted.get(name, getattr(self, name))
            if own != found:
                raise ValueError(f"built with {name}={own}, but the environment has {found}")

    def discard_rollout(self) -> None:
        """Forget what was collected, episodes under way included: after a rollback."""
        self._rollout = None
        if self._collector is not None:
            self._collector.discard()

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Return to a checkpoint: the network, and the optimizer where the checkpoint has it.

        Raises:
            CheckpointError: it is missing, corrupt or of another network; nothing has changed.
        """
        from training.checkpoints.restore import load  # noqa: PLC0415

        load(path, model=self.network, optimizer=self.optimizer)
        self.discard_rollout()

    def state_dict(self) -> dict[str, Any]:
        """What is neither in the network nor in the optimizer."""
        return {"entropy_coef": self.entropy_coef, "clip_epsilon": self.clip_epsilon}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.entropy_coef, self.clip_epsilon = state["entropy_coef"], state["clip_epsilon"]


def _explained(values: Tensor, returns: Tensor) -> float:
    """1 is a value function that foresees every return, 0 one that knows their mean only."""
    variance = returns.var(correction=0).item()
    left = (returns - values).var(correction=0).item()
    return 1.0 - left / variance if variance > 0 else 0.0

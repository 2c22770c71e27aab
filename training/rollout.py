"""Experience: what the policy did in its environments, and what it was worth."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.policy import ActorCritic

_EPISODES = 100


@dataclass(slots=True)
class Rollout:
    """T steps in N environments. Shapes are (T, N) and (T, N, ...).

    Attributes:
        observations, actions, log_probs, values: as the policy saw, did and thought.
        rewards: with the value of what was cut off by a time limit added in.
        dones: whether the episode ended with that step.
        last_values: of the observations after the last step, shape (N,).
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    dones: Tensor
    last_values: Tensor

    def advantages(self, gamma: float, gae_lambda: float) -> Tensor:
        """Generalized advantage estimation (arXiv:1506.02438, eq. 16), shape (T, N)."""
        advantages = torch.zeros_like(self.rewards)
        following, next_values = torch.zeros_like(self.last_values), self.last_values
        for t in reversed(range(len(self.rewards))):
            alive = 1.0 - self.dones[t]
            delta = self.rewards[t] + gamma * next_values * alive - self.values[t]
            following = delta + gamma * gae_lambda * alive * following
            advantages[t] = following
            next_values = self.values[t]
        return advantages


class Collector:
    """Steps environments and remembers where each one stands between rollouts.

    Args:
        env: a Gymnasium vector environment with `autoreset_mode=SAME_STEP`, or one environment.

    Attributes:
        returns: of the last 100 episodes that ended.
        steps: environment steps so far, all environments together.
    """

    def __init__(self, env: Any, *, seed: int | None = None) -> None:
        self.env = env if hasattr(env, "num_envs") else _Single(env)
        _check_autoreset(self.env)
        self.returns: deque[float] = deque(maxlen=_EPISODES)
        self.steps = 0
        self.ended = 0
        self._observations, _ = self.env.reset(seed=seed)
        self._running = np.zeros(self.env.num_envs)

    def restart(self) -> None:
        """Begin new episodes everywhere: after a rollback the present ones mean nothing."""
        self._observations, _ = self.env.reset()
        self._running[:] = 0.0

    @torch.no_grad()
    def collect(self, network: ActorCritic, n_steps: int, gamma: float) -> Rollout:
        """Take `n_steps` steps in each environment."""
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        rewards = np.zeros((n_steps, self.env.num_envs), np.float32)
        dones = np.zeros_like(rewards)
        for t in range(n_steps):
            observations = _tensor(self._observations)
            policy = network.distribution(observations)
            actions = policy.sample()
            values = network.value(observations)
            rows.append((observations, actions, policy.log_prob(actions), values))
            after, reward, terminated, truncated, info = self.env.step(self._action(actions))
            self._count(reward, terminated | truncated)
            rewards[t] = reward
            rewards[t] += self._beyond(network, truncated & ~terminated, info, gamma)
            dones[t] = terminated | truncated
            self._observations = after
        last_values = network.value(_tensor(self._observations))
        seen, done_then, log_probs, values_then = map(torch.stack, zip(*rows, strict=True))
        return Rollout(
            seen,
            done_then,
            log_probs,
            values_then,
            torch.from_numpy(rewards),
            torch.from_numpy(dones),
            last_values,
        )

    def mean_return(self) -> float:
        """Of the last 100 episodes; of those under way while none has ended."""
        return float(np.mean(self.returns if self.returns else self._running))

    def _action(self, actions: Tensor) -> Any:
        space: Any = getattr(self.env, "single_action_space", None)
        chosen = actions.numpy()
        if hasattr(space, "low"):  # a Gaussian knows no bounds, the environment does
            return np.clip(chosen, space.low, space.high)
        return chosen

    def _count(self, reward: Any, done: Any) -> None:
        self._running += reward
        self.steps += len(self._running)
        for index in np.flatnonzero(done):
            self.returns.append(float(self._running[index]))
            self.ended += 1
            self._running[index] = 0.0

    def _beyond(self, network: ActorCritic, cut: Any, info: Any, gamma: float) -> Any:
        """What would have come after a time limit: the episode did not end there (Pardo 2018)."""
        worth = np.zeros(self.env.num_envs, np.float32)
        last = info.get("final_obs")
        if last is not None:
            for index in np.flatnonzero(cut):
                worth[index] = gamma * float(network.value(_tensor(last[index])[None]))
        return worth


class _Single:
    """One environment as a vector of one that begins anew in the step that ends an episode."""

    def __init__(self, env: Any) -> None:
        self.num_envs = 1
        self.single_action_space = getattr(env, "action_space", None)
        self._env = env

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        found = self._env.reset(seed=seed) if seed is not None else self._env.reset()
        observation = found[0] if isinstance(found, tuple) else found
        return np.asarray(observation, np.float32)[None], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        action = actions[0]
        found = self._env.step(action.item() if np.ndim(action) == 0 else action)
        if len(found) == 4:  # the older way to say it: done, whatever ended it
            observation, reward, done, _ = found
            cut = False
        else:
            observation, reward, done, cut, _ = found
        info: dict[str, Any] = {}
        if done or cut:
            info["final_obs"] = np.asarray(observation, np.float32)[None]
            return self.reset()[0], _one(reward), _one(done, bool), _one(cut, bool), info
        batch = np.asarray(observation, np.float32)[None]
        return batch, _one(reward), _one(done, bool), _one(cut, bool), info


def _one(value: Any, kind: Any = np.float32) -> Any:
    return np.asarray([value], kind)


def _tensor(observations: Any) -> Tensor:
    batch = torch.as_tensor(np.asarray(observations, np.float32))
    return batch.flatten(1) if batch.ndim > 2 else batch


def _check_autoreset(env: Any) -> None:
    """With Gymnasium's other mode each episode begins with a step that means nothing."""
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    if mode is not None and getattr(mode, "name", str(mode)) != "SAME_STEP":
        raise ValueError(
            "build the vector environment with autoreset_mode=gymnasium.vector."
            "AutoresetMode.SAME_STEP; this one resets a step later"
        )

"""Experience: what the policy did in its environments, and what it was worth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import environments
from training.normalizers import RewardNormalizer
from training.policy import ActorCritic

_EPISODES, _ENOUGH = 100, 20


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
        # In numpy: a hundred little steps of a few numbers each cost torch ten times as much.
        rewards, values = self.rewards.numpy(), self.values.numpy()
        alive = 1.0 - self.dones.numpy()
        advantages = np.zeros_like(rewards)
        following, next_values = np.zeros_like(rewards[0]), self.last_values.numpy()
        for t in reversed(range(len(rewards))):
            delta = rewards[t] + gamma * next_values * alive[t] - values[t]
            following = delta + gamma * gae_lambda * alive[t] * following
            advantages[t] = following
            next_values = values[t]
        return torch.from_numpy(advantages)


class Collector:
    """Steps environments and remembers where each one stands between rollouts.

    Args:
        env: a Gymnasium vector environment with `autoreset_mode=SAME_STEP`, or one environment.
        seed: of the first episodes.
        normalizer: makes what scales the rewards that are learned from, one for each environment;
            returns are counted unscaled.

    Attributes:
        returns: of the last 100 episodes that ended.
        steps, ended: environment steps and episodes so far, all environments together.
    """

    def __init__(
        self,
        env: Any,
        *,
        seed: int | None = None,
        normalizer: Callable[[], RewardNormalizer] | None = None,
    ) -> None:
        self.env = env if hasattr(env, "num_envs") else _Single(env)
        _check_autoreset(self.env)
        self.returns: deque[float] = deque(maxlen=_EPISODES)
        self.steps = 0
        self.ended = 0
        self._observations, _ = self.env.reset(seed=seed)
        self._running = np.zeros(self.env.num_envs)
        self._foreign = np.zeros(self.env.num_envs, bool)  # begun by a policy that was given up
        self._before: float | None = None
        self._scales = [normalizer() for _ in self._running] if normalizer else []

    def restart(self) -> None:
        """Begin new episodes everywhere."""
        self._observations, _ = self.env.reset()
        self._running[:] = 0.0
        self._foreign[:] = False

    def discard(self) -> None:
        """After a rollback: what the broken policy did counts no longer, ended or not.

        Episodes under way go on, uncounted. All begun anew at once would march in step from then
        on, and each rollout would show one and the same stretch of an episode: that alone undoes
        much of what was learned.
        """
        if not np.isfinite(_flat(self._observations).numpy()).all():
            self.restart()
        self._before = self.mean_return()
        self.returns.clear()
        self._running[:] = 0.0
        self._foreign[:] = True

    @property
    def observation_dim(self) -> int:
        """How many numbers an environment shows."""
        return _flat(self._observations).shape[1]

    @property
    def exact(self) -> bool:
        """Whether `state_dict` holds all there is to know of the environments."""
        return environments.state_of(self.env)["exact"] is True

    def state_dict(self) -> dict[str, Any]:
        """Where each environment stands, in JSON types."""
        return {
            "env": environments.state_of(self.env),
            "observations": environments.encoded(np.asarray(self._observations)),
            "running": self._running.tolist(),
            "foreign": self._foreign.tolist(),
            "before": self._before,
            "returns": list(self.returns),
            "steps": self.steps,
            "ended": self.ended,
            "scales": [scale.state_dict() for scale in self._scales],
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken; with new episodes if it is not `exact`.

        Raises:
            ValueError: it is of other environments.
        """
        if len(state["running"]) != len(self._running):
            raise ValueError(
                f"it is of {len(state['running'])} environments, here are {len(self._running)}"
            )
        self.returns = deque(state["returns"], maxlen=_EPISODES)
        self.steps, self.ended = int(state["steps"]), int(state["ended"])
        for scale, kept in zip(self._scales, state["scales"], strict=True):
            scale.load_state_dict(kept)
        environments.put_state(self.env, state["env"])
        if state["env"]["exact"]:
            self._observations = environments.decoded(state["observations"])
            self._running = np.array(state["running"])
            self._foreign = np.array(state["foreign"], bool)
            self._before = state["before"]
        else:
            self.restart()

    @torch.no_grad()
    def collect(self, network: ActorCritic, n_steps: int, gamma: float) -> Rollout:
        """Take `n_steps` steps in each environment.

        Raises:
            ValueError: `n_steps` is less than 1; or an environment, the policy or the value
                function gives numbers that are not finite.
        """
        if n_steps < 1:
            raise ValueError(f"a rollout has at least one step, got {n_steps=}")
        seen: list[Tensor] = []
        done_then: list[Tensor] = []
        cut_short: list[tuple[int, int, Any]] = []
        rewards = np.zeros((n_steps, self.env.num_envs), np.float32)
        dones = np.zeros_like(rewards)
        for t in range(n_steps):
            seen.append(_flat(self._observations))
            done_then.append(network.act(seen[t]))
            after, reward, terminated, truncated, info = self.env.step(self._action(done_then[t]))
            done = terminated | truncated
            rewards[t], dones[t] = self._scaled(reward, done), done
            self._count(reward, done)
            if "final_obs" in info:
                cut = np.flatnonzero(truncated & ~terminated)
                cut_short += [(t, int(index), info["final_obs"][index]) for index in cut]
            self._observations = after
        # What the network thought of it is asked once for all steps: it is the same network.
        observations, actions = torch.stack(seen), torch.stack(done_then)
        log_probs = network.distribution(observations).log_prob(actions)
        values = network.value(torch.cat([observations, _flat(self._observations)[None]]))
        if not bool(torch.isfinite(log_probs.sum() + values.sum())):
            sound = torch.isfinite(observations).flatten(2).all(2)
            if torch.isfinite((log_probs + values[:-1])[sound]).all() and not sound.all():
                step, index = (~sound).nonzero()[0].tolist()
                raise ValueError(
                    f"environment {index} gave an observation that is not finite, at step {step} "
                    "of this rollout: no checkpoint mends that, the environment must"
                )
            raise ValueError("the network's output is not finite: go back to a checkpoint")
        if cut_short:  # the episode did not end there: add what would have come (Pardo 2018)
            at, where, last = zip(*cut_short, strict=True)
            worth = network.value(_flat(np.stack(last))).numpy()
            rewards[list(at), list(where)] += gamma * worth
        return Rollout(
            observations,
            actions,
            log_probs,
            values[:-1],
            torch.from_numpy(rewards),
            torch.from_numpy(dones),
            values[-1],
        )

    @torch.no_grad()
    def watch(self, network: ActorCritic, n_steps: int) -> list[float]:
        """Returns of the episodes that end within `n_steps` steps of the network at its best."""
        found: list[float] = []
        for _ in range(n_steps):
            actions = self._action(network.act(_flat(self._observations), best=True))
            self._observations, reward, terminated, truncated, _ = self.env.step(actions)
            done = terminated | truncated
            found += self._count(reward, done)
        return found

    def mean_return(self) -> float:
        """Of the last 100 episodes; of those under way while none has ended.

        After `discard`, that of before until enough have ended: the first to end are short.
        """
        if self._before is not None and len(self.returns) < _ENOUGH:
            return self._before
        return float(np.mean(self.returns if self.returns else self._running))

    def _action(self, actions: Tensor) -> Any:
        space: Any = getattr(self.env, "single_action_space", None)
        chosen = actions.numpy()
        if hasattr(space, "low"):  # a Gaussian knows no bounds, the environment does
            chosen = chosen.reshape(len(chosen), *space.shape)
            return np.clip(chosen, space.low, space.high)
        return chosen + getattr(space, "start", 0)

    def _scaled(self, reward: Any, done: Any) -> Any:
        if not self._scales:
            return reward
        each = zip(self._scales, reward, done, strict=True)
        return [scale(float(one), done=bool(end)) for scale, one, end in each]

    def _count(self, reward: Any, done: Any) -> list[float]:
        """Returns of the episodes that ended."""
        self._running += reward
        self.steps += len(self._running)
        found = []
        for index in np.flatnonzero(done):
            if not self._foreign[index]:
                found.append(float(self._running[index]))
            self.ended += 1
            self._running[index], self._foreign[index] = 0.0, False
        self.returns.extend(found)
        return found


class _Single:
    """One environment as a vector of one that begins anew in the step that ends an episode."""

    def __init__(self, env: Any) -> None:
        self.num_envs = 1
        self.single_action_space = getattr(env, "action_space", None)
        self._env = env
        self.envs = [env]

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        found = self._env.reset(seed=seed) if seed is not None else self._env.reset()
        observation = found[0] if isinstance(found, tuple) else found
        return np.asarray(observation, np.float32)[None], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        action = actions[0]
        found = self._env.step(action.item() if np.ndim(action) == 0 else action)
        if len(found) == 4:  # the older way to say it: done, whatever ended it
            observation, reward, done, told = found
            cut = bool(told.get("TimeLimit.truncated", False))
            done = done and not cut
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


def _flat(observations: Any) -> Tensor:
    """A batch of observations, each one a row of numbers."""
    batch = torch.from_numpy(np.array(observations, np.float32))
    return batch if batch.ndim == 2 else batch.reshape(len(batch), -1)


def _check_autoreset(env: Any) -> None:
    """With Gymnasium's other mode each episode begins with a step that means nothing."""
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    if mode is not None and getattr(mode, "name", str(mode)) != "SAME_STEP":
        raise ValueError(
            "build the vector environment with autoreset_mode=gymnasium.vector."
            "AutoresetMode.SAME_STEP; this one resets a step later"
        )

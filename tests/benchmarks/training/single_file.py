"""PPO as people write it in one file: lists of tensors, one loop, nothing beside it.

Written from the algorithm (arXiv:1707.06347) and the details every such file shares (Huang et al.
2022); the lines that end in `# +` are what operations take. `steps.py` runs it with and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

from training import OperationsManager  # +


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    def __init__(self, observed: int, choices: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            layer(observed, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0)
        )
        self.actor = nn.Sequential(
            layer(observed, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, choices, 0.01)
        )

    def forward(
        self, seen: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        policy = Categorical(logits=self.actor(seen))
        if action is None:
            action = policy.sample()
        value = self.critic(seen).flatten()
        return action, policy.log_prob(action), policy.entropy(), value


def updates(folder: Path, config: Any, count: int, seed: int = 1) -> Iterator[int]:
    """Train on CartPole for `count` updates; yields after each.

    Args:
        folder, config: of the operations, if there are any.
    """
    n_envs, n_steps, epochs, batch, gamma, lam, clip = 4, 128, 4, 128, 0.99, 0.95, 0.2
    np.random.seed(seed)
    torch.manual_seed(seed)
    envs = gym.vector.SyncVectorEnv(
        [
            lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))
            for _ in range(n_envs)
        ],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    net = Agent(4, 2)
    adam = torch.optim.Adam(net.parameters(), lr=2.5e-4, eps=1e-5)
    ops = OperationsManager(folder, checkpoint_config=config).attach(model=net, optimizer=adam)  # +
    seen = torch.zeros(n_steps, n_envs, 4)
    actions, log_probs, rewards, dones, values = (torch.zeros(n_steps, n_envs) for _ in range(5))
    observation, _ = envs.reset(seed=seed)
    now, done_now = torch.Tensor(observation), torch.zeros(n_envs)
    for number in range(1, count + 1):
        for t in range(n_steps):
            seen[t], dones[t] = now, done_now
            with torch.no_grad():
                action, log_probs[t], _, values[t] = net(now)
            actions[t] = action
            observation, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[t] = torch.tensor(reward)
            now = torch.Tensor(observation)
            done_now = torch.Tensor(np.logical_or(terminated, truncated))
        with torch.no_grad():
            following = net.critic(now).flatten()
            advantages, last = torch.zeros_like(rewards), torch.zeros(n_envs)
            for t in reversed(range(n_steps)):
                alive = 1.0 - (done_now if t == n_steps - 1 else dones[t + 1])
                after = following if t == n_steps - 1 else values[t + 1]
                delta = rewards[t] + gamma * after * alive - values[t]
                advantages[t] = last = delta + gamma * lam * alive * last
            returns = advantages + values
        flat = [each.flatten(0, 1) for each in (seen, actions, log_probs, advantages, returns)]
        flat_values = values.flatten()
        order = np.arange(n_envs * n_steps)
        for _ in range(epochs):
            np.random.shuffle(order)
            for start in range(0, len(order), batch):
                at = order[start : start + batch]
                states, chosen, old, advantage, target = (each[at] for each in flat)
                _, new, entropy, value = net(states, chosen.long())
                ratio = (new - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
                policy_loss = torch.max(-advantage * ratio, -advantage * clipped).mean()
                near = flat_values[at] + torch.clamp(value - flat_values[at], -clip, clip)
                errors = torch.max((value - target) ** 2, (near - target) ** 2)
                loss = policy_loss - 0.01 * entropy.mean() + 0.25 * errors.mean()
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                adam.step()
        if ops.on_training_step(number, {"loss": loss.item()})["halt"]:  # +
            break  # +
        yield number
    ops.close()  # +

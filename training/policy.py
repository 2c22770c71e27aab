"""The network of PPO: an actor and a critic, apart, two layers of 64 each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn.functional import linear


def _layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Orthogonal weights and zero biases (37 details of PPO, no. 2)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _mlp(inputs: int, outputs: int, hidden: int, gain: float) -> nn.Sequential:
    return nn.Sequential(
        _layer(inputs, hidden, math.sqrt(2)),
        nn.Tanh(),
        _layer(hidden, hidden, math.sqrt(2)),
        nn.Tanh(),
        _layer(hidden, outputs, gain),
    )


class ActorCritic(nn.Module):
    """Policy and value function.

    Args:
        state_dim: length of a flat observation.
        action_dim: how many actions there are, or how long an action is.
        continuous: actions are vectors from a diagonal Gaussian, whose spread does not depend on
            the state (37 details, continuous no. 1), instead of one of `action_dim` choices.
        hidden: width of both layers.
    """

    def __init__(
        self, state_dim: int, action_dim: int, *, continuous: bool = False, hidden: int = 64
    ) -> None:
        super().__init__()
        self.actor = _mlp(state_dim, action_dim, hidden, 0.01)
        self.critic = _mlp(state_dim, 1, hidden, 1.0)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if continuous else None

    def distribution(self, observations: Tensor) -> Distribution:
        """The policy for a batch of observations, shape (..., state_dim)."""
        output = self.actor(observations)
        if self.log_std is None:
            return Categorical(logits=output, validate_args=False)
        spread = self.log_std.exp().expand_as(output)
        return Independent(Normal(output, spread, validate_args=False), 1, validate_args=False)

    def act(self, observations: Tensor, *, best: bool = False) -> Tensor:
        """An action for each observation: drawn, or the `best` one the policy knows."""
        # This runs every step, and to call five modules costs more than what they compute.
        layers: Iterable[Any] = self.actor
        one, _, two, _, three = layers
        inner = linear(observations, one.weight, one.bias).tanh()
        output = linear(linear(inner, two.weight, two.bias).tanh(), three.weight, three.bias)
        if self.log_std is None:
            if best:
                return output.argmax(-1)
            # What torch.multinomial does, number for number, less its checks: the largest of the
            # probabilities, each divided by an exponential deviate of its own.
            chances = output.softmax(-1)
            return (chances / torch.empty_like(chances).exponential_()).argmax(-1)
        return output if best else torch.normal(output, self.log_std.exp().expand_as(output))

    def value(self, observations: Tensor) -> Tensor:
        """The expected return of a batch of observations, shape (...,)."""
        values: Tensor = self.critic(observations)
        return values.squeeze(-1)

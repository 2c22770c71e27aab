"""What the scripts share: a manager for a scenario, damage, and facts told as lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from training import AnomalyConfig, CheckpointConfig, LearningScheduleConfig, OperationsManager

torch.set_num_threads(1)
logging.disable(logging.INFO)
FOLDER = Path(sys.argv[1])


def manager(name: str, *, every: int = 2, **anomaly: Any) -> OperationsManager:
    """Its checkpoints are `every` so many steps, and on disk when the step returns.

    Runs this short say little of what is normal: a spike is fifty times the loss before it, acts at
    once, and a checkpoint needs no probation.
    """
    return OperationsManager(
        FOLDER / name,
        schedule_config=LearningScheduleConfig(entropy_decay_steps=8, entropy_decay_type="linear"),
        checkpoint_config=CheckpointConfig(
            save_interval_steps=every,
            async_save=False,
            loss_spike_threshold=50.0,
            reward_drop_threshold=0.02,
        ),
        anomaly_config=AnomalyConfig(profile="spec", probation_steps=0, **anomaly),
    )


def tell(scenario: str, **facts: Any) -> None:
    print(json.dumps({"scenario": scenario, **facts}), flush=True)


def weights(module: torch.nn.Module) -> torch.Tensor:
    """A copy of all parameters, as one vector."""
    return torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])


def broken_gradient(module: torch.nn.Module, at: int) -> dict[str, Any]:
    """Let one gradient be NaN in the `at`-th backward pass, from 1."""
    seen: dict[str, Any] = {"passes": 0, "injected": 0}
    parameter = next(module.parameters())

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen["passes"] += 1
        if seen["passes"] == at:
            seen["injected"] += 1
            return gradient * torch.nan
        return gradient

    parameter.register_hook(spoil)
    return seen


def inside(ops: OperationsManager, path: str) -> dict[str, Any]:
    """What one checkpoint holds."""
    payload: dict[str, Any] = ops.store.load(path).payload
    return payload


def holds(ops: OperationsManager, path: str) -> list[str]:
    """The names of its parts."""
    payload = inside(ops, path)
    return sorted([*payload, *(f"extra.{name}" for name in payload.get("extra", {}))])


def same(module: torch.nn.Module, saved: dict[str, Any]) -> bool:
    """Whether a module has exactly these weights."""
    own = module.state_dict()
    return own.keys() == saved.keys() and all(own[name].equal(saved[name]) for name in own)


class Steps:
    """Whether each step of an optimizer moved any weight."""

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.moved: list[bool] = []
        before = [torch.empty(0)]
        optimizer.register_step_pre_hook(lambda *_: before.__setitem__(0, weights(module)))
        optimizer.register_step_post_hook(
            lambda *_: self.moved.append(not weights(module).equal(before[0]))
        )

"""What is broken, where and for how long: each fault is a function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.ppo import PPOTrainer
from training.rollout import Rollout

SPIKE = 100.0  # what the learning rate is multiplied by
HUGE = 1e12


class FaultyEnvs:
    """A vector environment whose rewards can lie; it remembers the true returns.

    Attributes:
        change: applied to the rewards that are handed out, None to leave them.
        returns: true return of each episode that ended, oldest first.
    """

    def __init__(self, envs: Any) -> None:
        self._envs = envs
        self.num_envs = envs.num_envs
        self.metadata = envs.metadata
        self.single_action_space = envs.single_action_space
        self.change: Callable[[Any], Any] | None = None
        self.returns: list[float] = []
        self._running = np.zeros(envs.num_envs)

    def reset(self, *, seed: int | None = None) -> Any:
        self._running[:] = 0.0
        return self._envs.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        seen, rewards, terminated, truncated, info = self._envs.step(actions)
        self._running += rewards
        for index in np.flatnonzero(terminated | truncated):
            self.returns.append(float(self._running[index]))
            self._running[index] = 0.0
        told = rewards if self.change is None else self.change(rewards)
        return seen, told, terminated, truncated, info

    def close(self) -> None:
        self._envs.close()


@dataclass
class Patient:
    """The run as a fault sees it.

    Attributes:
        trainer, envs: its parts.
        begin: the update at which the fault begins.
        folder: of its checkpoints, if it has any.
        settle: waits until every checkpoint is on disk.
        seeded: what torch's generator had been seeded with when the fault began.
    """

    trainer: PPOTrainer
    envs: FaultyEnvs
    begin: int
    folder: Path
    settle: Callable[[], object]
    seeded: int


class Fault:
    """Nothing breaks. A fault overrides what it breaks; `since` counts updates from its begin."""

    name = "healthy"
    told = "nothing breaks"
    lasts = 0

    def before_collect(self, patient: Patient, since: int) -> None:
        """Before the rollout."""

    def before_train(self, patient: Patient, since: int) -> None:
        """After the rollout, before the update; the learning rate is set."""


class LearningRate(Fault):
    name = "learning rate x100"
    told = "for 3 updates"
    lasts = 3

    def before_train(self, patient: Patient, since: int) -> None:
        if 0 <= since < self.lasts:
            patient.trainer.learning_rate *= SPIKE


class _OneNaN(Rollout):
    def advantages(self, gamma: float, gae_lambda: float) -> torch.Tensor:
        found = super().advantages(gamma, gae_lambda)
        found[0, 0] = math.nan
        return found


class NaNBatch(Fault):
    name = "NaN batch"
    told = "one advantage of one rollout is not a number"
    lasts = 1

    def before_train(self, patient: Patient, since: int) -> None:
        rollout = patient.trainer._rollout
        if since == 0 and rollout is not None:
            names = Rollout.__dataclass_fields__
            patient.trainer._rollout = _OneNaN(**{n: getattr(rollout, n) for n in names})


class HugeReward(Fault):
    name = "one reward of 1e12"
    told = "one step of one environment"
    lasts = 1

    def before_collect(self, patient: Patient, since: int) -> None:
        if since != 0:
            return

        def once(rewards: Any) -> Any:
            patient.envs.change = None
            told = np.array(rewards)
            told[0] = HUGE
            return told

        patient.envs.change = once


class SignFlip(Fault):
    name = "rewards' sign flipped"
    told = "for 20 updates"
    lasts = 20

    def before_collect(self, patient: Patient, since: int) -> None:
        patient.envs.change = np.negative if 0 <= since < self.lasts else None


class BitFlip(Fault):
    name = "bit flip in a weight"
    told = "the highest exponent bit of one weight of the policy's last layer"
    lasts = 1

    def before_collect(self, patient: Patient, since: int) -> None:
        if since == 0:
            weight = patient.trainer.network.actor[-1].weight.data
            weight.view(torch.int32)[0, 0] ^= 1 << 30


class ZeroedLayer(Fault):
    name = "zeroed layer"
    told = "the policy's second hidden layer"
    lasts = 1

    def before_collect(self, patient: Patient, since: int) -> None:
        if since == 0:
            layer = patient.trainer.network.actor[2]
            layer.weight.data.zero_()
            layer.bias.data.zero_()


class PoisonedCheckpoint(LearningRate):
    name = "poisoned checkpoint"
    told = "one bit of the newest checkpoint's weights, then learning rate x100 for 3 updates"

    def before_collect(self, patient: Patient, since: int) -> None:
        if since != 0:
            return
        patient.settle()
        found = sorted(patient.folder.glob("step_*.pt"))
        if found:
            content = bytearray(found[-1].read_bytes())
            content[len(content) // 3] ^= 0x40
            found[-1].write_bytes(content)


class Repeatable(Fault):
    name = "repeatable spike"
    told = "learning rate x100 in every update until the random generators are reseeded"
    lasts = 1

    def before_train(self, patient: Patient, since: int) -> None:
        if since >= 0 and torch.initial_seed() == patient.seeded:
            patient.trainer.learning_rate *= SPIKE


FAULTS: tuple[type[Fault], ...] = (
    Fault,
    LearningRate,
    NaNBatch,
    HugeReward,
    SignFlip,
    BitFlip,
    ZeroedLayer,
    PoisonedCheckpoint,
    Repeatable,
)

"""TorchRL: `OperationsHook(ops).register(trainer)`.

A step is one collected batch and everything that was learned from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from training.callbacks.host import Watch, imported
from training.operations import OperationsManager

_TrainerHookBase: Any = imported("torchrl.trainers", "torchrl").TrainerHookBase
_METRICS = {
    "entropy": "entropy",
    "kl_approx": "approx_kl",
    "explained_variance": "explained_variance",
    "grad_norm": "grad_norm",
    "grad_norm_0": "grad_norm",
}


class OperationsHook(_TrainerHookBase):  # type: ignore[misc]
    """Watches a `torchrl.trainers.Trainer` that has a loss module and one optimizer.

    The loss is the sum of all that are called `loss...`, the reward the mean return of the episodes
    that ended (a `RewardSum` transform keeps it) or, without one, the mean reward of a frame.
    Sets the loss module's `entropy_coeff`. After a rollback the collector's policy is the restored
    one, its episodes start anew, and what lies in a replay buffer is thrown away.

    Args:
        ops: the run's manager; the caller closes it.
        resume: continue from the last healthy checkpoint in its folder, if there is one.
    """

    def __init__(self, ops: OperationsManager, *, resume: bool = False) -> None:
        self.watch = Watch(ops, resume=resume)
        self.batches = 0
        self._losses: dict[str, float] = {}

    def register(self, trainer: Any, name: str = "operations") -> None:
        """Hook on, before `trainer.train()`."""
        self._trainer = trainer
        trainer.register_op("post_optim_complete_log", self._learned)
        trainer.register_op("post_steps_log", self._look)
        trainer.register_op("shutdown", self.watch.ops.flush)
        trainer.register_module(name, self)
        self.watch.attach(trainer.loss_module, trainer.optimizer, count=_Count(trainer))
        self.batches = self.watch.resumed_step
        if self.batches:
            trainer.collector.update_policy_weights_()
        self._set_entropy(self.watch.ops.schedule_config.entropy_coef(self.batches))

    def state_dict(self) -> dict[str, Any]:
        """What the trainer's own checkpoints keep of operations."""
        return {"batches": self.batches, "ops": self.watch.ops.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.batches = state_dict["batches"]
        self.watch.ops.load_state_dict(state_dict["ops"])

    # -- the trainer's hooks ----------------------------------------------------------------------

    def _learned(self, optim_steps: int, average_losses: Any) -> None:
        if average_losses is not None:
            means = average_losses.detach().items()
            self._losses = {name: float(value) for name, value in means if value.numel() == 1}

    def _look(self, batch: Any) -> dict[str, float] | None:
        losses, self._losses = self._losses, {}
        if not losses:  # the first frames are only collected
            return None
        self.batches += 1
        metrics = {ours: losses[theirs] for theirs, ours in _METRICS.items() if theirs in losses}
        metrics["loss"] = sum(v for name, v in losses.items() if name.startswith("loss"))
        reward = _reward(batch)
        if reward is not None:
            metrics["reward"] = reward
        result = self.watch.look(self.batches, metrics)
        self._set_entropy(result["entropy_coef"])
        if result["rollback_path"]:
            self._start_anew()
        if self.watch.stops:
            self._trainer.request_stop("operations halted the run")
        return {"entropy_coeff": result["entropy_coef"], "lr_scale": result["lr_scale"]}

    # -- inside -----------------------------------------------------------------------------------

    def _start_anew(self) -> None:
        collector, buffer = self._trainer.collector, self._trainer.replay_buffer
        collector.update_policy_weights_()
        collector.reset()
        if buffer is not None:
            buffer.empty()

    def _set_entropy(self, coefficient: float) -> None:
        present = getattr(self._trainer.loss_module, "entropy_coeff", None)
        if isinstance(present, torch.Tensor):
            present.fill_(coefficient)


def _reward(batch: Any) -> float | None:
    """Of a batch, as the class says; None while no episode has ended."""
    if batch is None:  # it went straight into a replay buffer
        return None
    returns = batch.get(("next", "episode_reward"), None)
    if returns is None:
        return float(batch.get(("next", "reward")).mean())
    ended = returns[batch.get(("next", "done"))]
    return float(ended.mean()) if ended.numel() else None


class _Count:
    """How far the run is."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, int]:
        return {"frames": self._trainer.collected_frames, "updates": self._trainer._optim_count}

    def load_state_dict(self, state: Mapping[str, int], /) -> None:
        self._trainer.collected_frames = state["frames"]
        self._trainer._optim_count = state["updates"]

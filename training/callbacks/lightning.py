"""Lightning: `Trainer(callbacks=[OperationsCallback(ops)])`.

A step is one of the optimizer. Lightning makes the gradients inside `optimizer.step`, in a closure:
the guard looks again when the closure is done, or it would see the gradients of the step before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from training.callbacks.host import LearningRates, Watch, imported
from training.operations import OperationsManager

_Callback: Any = imported("lightning.pytorch", "lightning").Callback
_METRICS = ("reward", "entropy", "approx_kl", "grad_norm", "explained_variance")


class OperationsCallback(_Callback):  # type: ignore[misc]
    """Watches `Trainer.fit`: the loss `training_step` returns, and what it logs under the names
    `reward`, `entropy`, `approx_kl`, `grad_norm` and `explained_variance`.

    Sets `entropy_coef` of a module that has one, and scales the learning rate.

    Weights are put back in place in one process only. In several nothing is kept here: an
    anomaly to act upon stops the training, to be continued from the trainer's own checkpoint.

    Args:
        ops: the run's manager; the caller closes it. With more than one optimizer the first is its
            optimizer, the others are parts of the run.
        resume: continue from the last healthy checkpoint in the folder of `ops`, if there is one.
            The data begins anew.
    """

    def __init__(self, ops: OperationsManager, *, resume: bool = False) -> None:
        self.watch = Watch(ops, resume=resume)
        self._seen = 0

    # -- Lightning's hooks ------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._rates = LearningRates(schedulers)
        self.watch.in_place = trainer.world_size == 1
        optimizer, *others = trainer.optimizers
        if self.watch.in_place:
            parts = {f"optimizer_{n}": other for n, other in enumerate(others, start=2)}
            self.watch.ops.attach(extra=parts)
        progress = {f"schedule_{n}": scheduler for n, scheduler in enumerate(schedulers, start=1)}
        self.watch.attach(pl_module, optimizer, **progress)
        self._rates.scale(self.watch.lr_scale)
        if self.watch.resumed_step > trainer.global_step:
            _continue_from(trainer.fit_loop.epoch_loop, self.watch.resumed_step)
        self._seen = trainer.global_step
        self._set_entropy(pl_module, self.watch.ops.schedule_config.entropy_coef(self._seen))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.watch.ops.guard is not None:
            self.watch.ops.guard.check(optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # gradients are still being accumulated
            return
        self._seen = trainer.global_step
        logged = trainer.callback_metrics
        metrics = {name: float(logged[name]) for name in _METRICS if name in logged}
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            metrics["loss"] = float(loss)
        result = self.watch.look(self._seen, metrics)
        self._rates.scale(self.watch.lr_scale)
        self._set_entropy(pl_module, result["entropy_coef"])
        if self.watch.stops:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.watch.ops.flush()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.watch.ops.flush()  # whatever happened, the checkpoints under way are whole

    def state_dict(self) -> dict[str, Any]:
        return self.watch.ops.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watch.ops.load_state_dict(state_dict)

    # -- inside -----------------------------------------------------------------------------------

    def _set_entropy(self, module: Any, coefficient: float) -> None:
        if hasattr(module, "entropy_coef"):
            module.entropy_coef = coefficient


def _continue_from(loop: Any, step: int) -> None:
    """Have `trainer.global_step` count on, whichever way the module optimizes."""
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    loop.manual_optimization.optim_step_progress.total.completed = step
    loop._batches_that_stepped = step  # the x-axis of the loggers

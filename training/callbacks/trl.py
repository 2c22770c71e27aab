"""TRL and Transformers: `trainer.add_callback(OperationsCallback(ops, trainer))`.

A step is one of the optimizer. The trainer's own `loss` is no witness: where it is NaN, the average
of those before is logged in its place (`logging_nan_inf_filter`). So broken updates are dropped at
the optimizer, and what is logged tells spikes and falling rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.callbacks.host import LearningRates, Watch, imported
from training.operations import OperationsManager

_TrainerCallback: Any = imported("transformers", "transformers trl").TrainerCallback
_METRICS = ("loss", "reward", "entropy", "grad_norm")


class OperationsCallback(_TrainerCallback):  # type: ignore[misc]
    """Watches `Trainer` and everything made of it: SFT, DPO, GRPO, RLOO.

    Sets `entropy_coef` where the trainer has an entropy bonus (GRPO: it must be > 0 in the
    config, or the trainer leaves it out altogether), scales the learning rate, and after a rollback
    lets new completions be generated.

    Weights are put back in place in one process only. In several, or under DeepSpeed or FSDP,
    nothing is kept here: an anomaly to act upon stops the training, to be continued from the
    trainer's own checkpoint.

    Args:
        ops: the run's manager; the caller closes it.
        trainer: the one this is added to.
        resume: continue from the last healthy checkpoint in the folder of `ops`, if there is one.
            The data begins anew.
    """

    def __init__(self, ops: OperationsManager, trainer: Any, *, resume: bool = False) -> None:
        self.watch = Watch(ops, resume=resume)
        self._trainer = trainer
        self._seen = 0

    # -- the trainer's hooks ----------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        sharded = getattr(args, "deepspeed", None) or getattr(args, "fsdp", None)
        self.watch.in_place = args.world_size == 1 and not sharded
        schedule = getattr(parts["lr_scheduler"], "scheduler", parts["lr_scheduler"])
        self._rates = LearningRates([schedule])
        optimizer = getattr(parts["optimizer"], "optimizer", parts["optimizer"])
        self.watch.attach(parts["model"], optimizer, schedule=schedule)
        self._rates.scale(self.watch.lr_scale)
        if self.watch.resumed_step > state.global_step:
            state.global_step = self.watch.resumed_step
            # Or the first loss is averaged over steps of another process, too.
            self._trainer._globalstep_last_logged = state.global_step
            self._trainer._initial_global_step = state.global_step
        self._seen = state.global_step
        self._set_entropy(self.watch.ops.schedule_config.entropy_coef(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> Any:
        if not control.should_log:  # else `on_log` follows, and knows more
            self._look(state, control, {})
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **parts: Any
    ) -> Any:
        if "loss" in logs:
            self._look(state, control, logs)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.watch.ops.flush()

    # -- inside -----------------------------------------------------------------------------------

    def _look(self, state: Any, control: Any, logs: Mapping[str, Any]) -> None:
        if state.global_step == self._seen:
            return
        self._seen = state.global_step
        metrics = {name: logs[name] for name in _METRICS if isinstance(logs.get(name), float)}
        if not math.isfinite(metrics.get("grad_norm", 0.0)):
            metrics.pop("loss", None)  # the stand-in for a NaN: 0 where every step is logged
        result = self.watch.look(state.global_step, metrics)
        self._set_entropy(result["entropy_coef"])
        self._rates.scale(self.watch.lr_scale)
        if result["rollback_path"] and hasattr(self._trainer, "_buffered_inputs"):
            self._trainer._buffered_inputs = None  # what the broken policy wrote
        control.should_training_stop |= self.watch.stops

    def _set_entropy(self, coefficient: float) -> None:
        adapts = getattr(self._trainer, "use_adaptive_entropy", False)  # the trainer's own rule
        if hasattr(self._trainer, "entropy_coef") and not adapts:
            self._trainer.entropy_coef = coefficient

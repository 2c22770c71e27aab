"""OperationsManager: watches a run, keeps its checkpoints, takes it back when it breaks.

    ops = OperationsManager(checkpoint_dir="./checkpoints")
    result = ops.on_training_step(step, {"loss": loss, "reward": reward}, model.state_dict)
    entropy_coef = result["entropy_coef"]

Thin: schedules and normalizers are the gateway's primitives, the circuit is the gateway's, and each
other subject has a file of its own here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any, Self

from gateway.clock import Clock
from gateway.primitives.normalization import Normalizer
from training.anomaly import Anomaly, AnomalyDetector
from training.circuit import TrainingCircuit
from training.config import (
    AnomalyConfig,
    CheckpointConfig,
    CircuitBreakerConfig,
    LearningScheduleConfig,
    RetuningConfig,
)
from training.errors import SaveSkipped, TrainingError
from training.keeper import Keeper, ModelState
from training.recovery import RecoveryPolicy
from training.retuning import Retuning, Suggestions


class OperationsManager:
    """The owner's facade: one call a step.

    Args:
        checkpoint_dir: this run's own folder; made with the first checkpoint.
        schedule_config, checkpoint_config, anomaly_config, circuit_breaker_config,
            retuning_config: see `training.config`; each may be replaced, or changed in place, at
            any time, and takes effect from the next step.
        gateway: a live `Gateway`, whose circuit and TTL are reported instead of our own.
        enable_all_features: False makes every call do nothing and report so.
        seed: where reseeding after a rollback starts from.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str] = "./checkpoints",
        *,
        schedule_config: LearningScheduleConfig | None = None,
        checkpoint_config: CheckpointConfig | None = None,
        anomaly_config: AnomalyConfig | None = None,
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        retuning_config: RetuningConfig | None = None,
        gateway: Any = None,
        enable_all_features: bool = True,
        seed: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.checkpoint_dir = os.fspath(checkpoint_dir)
        self.schedule_config = schedule_config or LearningScheduleConfig()
        self.checkpoint_config = checkpoint_config or CheckpointConfig()
        self.anomaly_config = anomaly_config or AnomalyConfig()
        self.circuit_breaker_config = circuit_breaker_config or CircuitBreakerConfig()
        self.retuning_config = retuning_config or RetuningConfig()
        self.enabled = enable_all_features
        self.reward_normalizer = Normalizer(self.schedule_config.reward_norm_window)
        self.circuit_breaker = TrainingCircuit(lambda: self.circuit_breaker_config, clock, gateway)
        self.retuning = Retuning(lambda: self.retuning_config)
        self._detector = AnomalyDetector(
            lambda: self.anomaly_config, lambda: self.checkpoint_config
        )
        self._recovery = RecoveryPolicy(lambda: self.anomaly_config)
        self._keeper = Keeper(
            self.checkpoint_dir, lambda: self.checkpoint_config, self.state_dict, seed
        )
        self._halted = False
        self._last_step: int | None = None
        self._marks = 0

    # -- every step -----------------------------------------------------------------------------

    def on_training_step(
        self,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        model_state: ModelState | None = None,
    ) -> dict[str, Any]:
        """Look at one step: normalize, judge, save if due, go back if need be.

        Args:
            step: rises from call to call; the caller's word counts.
            metrics: `loss` and `reward`, and whatever else is known (`approx_kl`, `entropy`,
                `grad_norm`, `explained_variance`); numbers or 0-d tensors. Missing ones are missed
                by nobody.
            model_state: a `state_dict()`, or a function that makes one (it is called on the steps
                that save). Not needed after `attach`.

        Returns:
            A dict: `entropy_coef`, `metrics` (the caller's, with `normalized_reward`,
            `reward_mean`, `reward_std`), `checkpoint_path`, `anomaly`, `rollback_path` (None where
            nothing happened), `should_downshift`, `current_ttl`, `restored` (which attached parts
            went back), `restored_step`, `lr_scale`, `halt`, `events` (what happened, in words).

        Raises:
            SaveFailed: a checkpoint could not be written and `on_save_error` is `raise`.
        """
        numbers = dict(metrics or {})
        events: list[str] = []
        result: dict[str, Any] = {
            "entropy_coef": self.schedule_config.entropy_coef(step),
            "metrics": numbers,
            "checkpoint_path": None,
            "anomaly": None,
            "rollback_path": None,
            "restored": [],
            "restored_step": None,
            "lr_scale": self._keeper.lr_scale,
            "halt": self._halted,
            "events": events,
        }
        if self.enabled:
            self._note_step(step, events)
            found = self._detector.observe(step, numbers)
            self._normalize(numbers, found)
            if found:
                result["anomaly"] = found[0]
                events.extend(str(anomaly) for anomaly in found)
            sure = next((anomaly for anomaly in found if anomaly.acts), None)
            if sure is not None and self.checkpoint_config.enable_auto_rollback:
                self._recover(step, sure, result)
            self._save_if_due(step, numbers, model_state, flagged=sure is not None, result=result)
        else:
            numbers.update(normalized_reward=0.0, reward_mean=0.0, reward_std=0.0)
        result["should_downshift"], result["current_ttl"] = self.circuit_breaker.standing()
        return result

    # -- the language model and its users ---------------------------------------------------------

    def on_llm_success(self, service: str = "qwen") -> None:
        """A call of the language model answered."""
        if self.enabled:
            self.circuit_breaker.success()

    def on_llm_failure(self, service: str = "qwen") -> None:
        """A call of the language model failed."""
        if self.enabled:
            self.circuit_breaker.failure()

    def on_user_feedback(self, feedback: Mapping[str, Any]) -> Suggestions | None:
        """Take one rating, `{"rating": 4.5, "user_id": ..., "formula_id": ...}`.

        Returns:
            Suggested hyperparameters once there are enough ratings and anything is to be suggested,
            else None. `should_apply` says whether the ratings are clear enough to act on.

        Raises:
            FeedbackRejected: no rating from 1 to 5.
        """
        return self.retuning.add(feedback) if self.enabled else None

    # -- the whole run ----------------------------------------------------------------------------

    def attach(
        self,
        *,
        model: Any = None,
        optimizer: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Self:
        """Name the parts of the run: checkpoints then hold everything, rollbacks restore in place.

        Args:
            model: a `torch.nn.Module`.
            optimizer: its optimizer.
            extra: further parts with `state_dict` and `load_state_dict`, by name.
        """
        attached = self._keeper.attached
        if model is not None:
            attached.model = model
        if optimizer is not None:
            attached.optimizer = optimizer
        attached.extra.update(extra or {})
        return self

    def resume(self) -> dict[str, Any] | None:
        """Continue from the last healthy checkpoint in the folder: the attached parts, the random
        generators and this manager's own state.

        Returns:
            `step`, `path`, `restored`, and `passed_by`: newer checkpoints that could not be used,
            and why. None if there is nothing to continue from.

        Raises:
            CheckpointForeign: the checkpoint is of another run; nothing has changed.
        """
        found = self._keeper.resume()
        if found is None:
            return None
        loaded, restored = found
        if "ops" in loaded.payload:
            self.load_state_dict(loaded.payload["ops"])
            restored.append("ops")
        return {
            "step": loaded.manifest.step,
            "path": loaded.path,
            "restored": restored,
            "passed_by": loaded.passed_by,
        }

    @property
    def store(self) -> Any:
        """The `CheckpointStore`: list, pin, load. Opened when first needed; errors as there."""
        return self._keeper.store

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every checkpoint under way is on disk."""
        self._keeper.flush(timeout_s)

    def close(self) -> None:
        """Flush, and let go of the folder. Idempotent."""
        self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """This manager's own state, in JSON types."""
        return {
            "normalizer": self.reward_normalizer.state_dict(),
            "detector": self._detector.state_dict(),
            "recovery": self._recovery.state_dict(),
            "retuning": self.retuning.state_dict(),
            "last_step": self._last_step,
            "marks": self._marks,
            "rollbacks": self._keeper.rollbacks,
            "lr_scale": self._keeper.lr_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue where `state` was taken."""
        self.reward_normalizer.load_state_dict(state["normalizer"])
        self._detector.load_state_dict(state["detector"])
        self._recovery.load_state_dict(state["recovery"])
        self.retuning.load_state_dict(state["retuning"])
        self._last_step, self._marks = state["last_step"], int(state["marks"])
        self._keeper.rollbacks = int(state["rollbacks"])
        self._keeper.lr_scale = float(state["lr_scale"])

    # -- inside -----------------------------------------------------------------------------------

    def _note_step(self, step: int, events: list[str]) -> None:
        if self._last_step is not None and step < self._last_step:
            events.append(f"step went back from {self._last_step} to {step}")
            self._marks = step // self.checkpoint_config.save_interval_steps
        self._last_step = step
        for failure in self._keeper.on_step():
            self._complain(failure, events)

    def _normalize(self, numbers: dict[str, Any], found: list[Anomaly]) -> None:
        size = self.schedule_config.reward_norm_window
        if self.reward_normalizer.window.size != size:  # the owner changed it: keep what there is
            kept = self.reward_normalizer.state_dict()
            self.reward_normalizer = Normalizer(size)
            self.reward_normalizer.load_state_dict(kept)
        normalizer, score = self.reward_normalizer, 0.0
        flagged = any(anomaly.metric == "reward" and anomaly.acts for anomaly in found)
        try:
            reward = float(numbers["reward"])
            if math.isfinite(reward):
                score = normalizer.normalize(reward, update=not flagged)
        except (KeyError, TypeError, ValueError):
            pass  # no reward this time, or none that can be one
        numbers["normalized_reward"] = score
        numbers["reward_mean"] = normalizer.window.mean
        numbers["reward_std"] = normalizer.window.std

    def _recover(self, step: int, anomaly: Anomaly, result: dict[str, Any]) -> None:
        decision, events = self._recovery.decide(step, anomaly), result["events"]
        try:
            if decision.suspect:
                self._keeper.suspect_last()
            if decision.halt:
                self._halted = result["halt"] = True
            if decision.why:
                events.append(("halt: " if decision.halt else "") + decision.why)
            back = self._keeper.go_back(decision) if decision.restore else None
        except (TrainingError, OSError) as error:
            if decision.restore:
                self._recovery.forget()
            events.append(f"rollback failed: {error}")
            return
        if back is None:
            if decision.restore:
                self._recovery.forget()
                events.append("no healthy checkpoint to return to yet")
            return
        self._detector.forget()
        events += [f"passed by: {why}" for why in back.passed_by]
        events.append(f"rolled back to {back.path}; discard the present rollout")
        result["rollback_path"], result["restored"] = back.path, back.restored
        result["restored_step"], result["lr_scale"] = back.step, self._keeper.lr_scale

    def _save_if_due(
        self,
        step: int,
        numbers: Mapping[str, Any],
        model_state: ModelState | None,
        *,
        flagged: bool,
        result: dict[str, Any],
    ) -> None:
        mark = step // self.checkpoint_config.save_interval_steps
        if mark <= self._marks:
            return
        if flagged or self._halted:
            result["events"].append("checkpoint skipped: this step is flagged")
            return
        try:
            result["checkpoint_path"] = self._keeper.save(step, numbers, model_state)
        except (TrainingError, OSError) as error:
            self._complain(error, result["events"])
        self._marks = mark

    def _complain(self, error: Exception, events: list[str]) -> None:
        raises = self.checkpoint_config.on_save_error == "raise"
        if raises and not isinstance(error, SaveSkipped):
            raise error
        events.append(f"checkpoint failed: {error}")
